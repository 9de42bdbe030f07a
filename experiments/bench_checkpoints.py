"""How long does jaxguard take to read all leaves of a checkpoint, beside a raw read of the same bytes?

    python experiments/bench_checkpoints.py

A ResNet-18 (11.2 million parameters, 45 MB, random weights) in every format, from a warm page cache. The floor is
`readinto` a fresh buffer of all the bytes on disk. Leaves that jaxguard maps are copied into a fresh buffer too: every
way ends with 45 MB of new memory. Beside each stands the library whose format it is, where it is installed:
Orbax's StandardCheckpointer (arrays on the device, and onto a target), flax.serialization, numpy.load, safetensors,
torch.load with weights_only, h5py. Ways take turns in one run.

Hardware: whatever it runs on, named in the result. Time: a minute on 2 CPU cores.
Expected: at least 0.8 of the raw rate for safetensors and for PyTorch's zip; Orbax's directories, which are compressed
and keep every core busy, 3 times as fast as StandardCheckpointer where two real cores are free.
Result: experiments/results/checkpoints.json.
"""

import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax.serialization
import jax
import machine
import numpy as np
import pyarrow
import safetensors.numpy
from orbax import checkpoint as ocp

from jaxguard import checkpoints, models

try:
    import torch
except ImportError:
    torch = None
try:
    import h5py
except ImportError:
    h5py = None

SEED = 0
ROUNDS = 15
PAUSE = 0.05  # seconds; threads that a library keeps busy after its work would be paid for by the next way
NUM_SHARDS = 4
SPEC = "resnet18"
RESULT = pathlib.Path(__file__).parent / "results" / "checkpoints.json"
RAW, OURS = "raw read", "jaxguard"

Leaves = Mapping[str, np.ndarray]
Ways = dict[str, Callable[[], Any]]


def files(path: pathlib.Path) -> list[pathlib.Path]:
    return [path] if path.is_file() else [child for child in path.rglob("*") if child.is_file()]


def raw(path: pathlib.Path) -> np.ndarray:
    found = files(path)
    buffer, position = np.empty(sum(file.stat().st_size for file in found), np.uint8), 0
    for file in found:
        with file.open("rb", buffering=0) as opened:
            position += opened.readinto(buffer[position:].data)
    return buffer


def ours(path: pathlib.Path) -> Leaves:
    leaves = checkpoints.load(path).read_all()
    mapped = {name: leaf for name, leaf in leaves.items() if not leaf.flags.writeable}
    buffer, position = np.empty(sum(leaf.nbytes for leaf in mapped.values()), np.uint8), 0
    for name, leaf in mapped.items():
        end = position + leaf.nbytes
        buffer[position:end] = leaf.reshape(-1).view(np.uint8)
        leaves[name] = buffer[position:end].view(leaf.dtype).reshape(leaf.shape)
        position = end
    return leaves


def safetensors_file(folder: pathlib.Path, leaves: Leaves) -> tuple[pathlib.Path, Ways]:
    path = folder / "model.safetensors"
    checkpoints.save(path, leaves)
    return path, {"safetensors.numpy.load_file": lambda: safetensors.numpy.load_file(path)}


def sharded(folder: pathlib.Path, leaves: Leaves) -> tuple[pathlib.Path, Ways]:
    path = folder / "sharded"
    path.mkdir()
    names = list(leaves)
    weight_map = {name: f"model-{place % NUM_SHARDS}.safetensors" for place, name in enumerate(names)}
    for file in sorted(set(weight_map.values())):
        checkpoints.save(path / file, {name: leaves[name] for name in names if weight_map[name] == file})
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path, {}


def orbax(folder: pathlib.Path, leaves: Leaves) -> tuple[pathlib.Path, Ways]:
    path = folder / "orbax"
    checkpoints.save(path, leaves)
    target = checkpoints.unflatten(leaves)

    def restore(*given: Any) -> Any:
        with ocp.StandardCheckpointer() as checkpointer:
            return jax.block_until_ready(checkpointer.restore(path, *given))

    zstd = pyarrow.Codec("zstd", compression_level=1)
    deflated = {name: (zstd.compress(np.ascontiguousarray(leaf)), leaf) for name, leaf in leaves.items()}

    def inflate() -> Leaves:
        return {
            name: np.frombuffer(zstd.decompress(data, leaf.nbytes), np.float32).reshape(leaf.shape)
            for name, (data, leaf) in deflated.items()
        }

    return path, {
        "StandardCheckpointer.restore": restore,
        "StandardCheckpointer, target": lambda: restore(target),
        "floor: zstd alone, one core": inflate,
    }


def msgpack(folder: pathlib.Path, leaves: Leaves) -> tuple[pathlib.Path, Ways]:
    path = folder / "model.msgpack"
    checkpoints.save(path, leaves)
    return path, {"flax.serialization": lambda: flax.serialization.msgpack_restore(path.read_bytes())}


def npz(folder: pathlib.Path, leaves: Leaves) -> tuple[pathlib.Path, Ways]:
    path = folder / "model.npz"
    np.savez(path, **leaves)

    def load() -> Leaves:
        with np.load(path, allow_pickle=False) as pack:
            return dict(pack)

    return path, {"numpy.load": load}


def equinox(folder: pathlib.Path, leaves: Leaves) -> tuple[pathlib.Path, Ways]:
    path = folder / "model.eqx"
    with path.open("wb") as file:  # what tree_serialise_leaves does
        for leaf in leaves.values():
            np.save(file, leaf)

    def load() -> list[np.ndarray]:
        with path.open("rb") as file:
            return [np.load(file, allow_pickle=False) for _ in leaves]

    return path, {"numpy.load, leaf by leaf": load}


def torch_files(folder: pathlib.Path, leaves: Leaves) -> dict[str, tuple[pathlib.Path, Ways]]:
    tensors = {name.replace("/", "."): torch.from_numpy(np.array(leaf)) for name, leaf in leaves.items()}
    found = {}
    for name, file, is_zip in (("torch zip", "model.pt", True), ("torch legacy", "model.pth", False)):
        path = folder / file
        torch.save(tensors, path, _use_new_zipfile_serialization=is_zip)
        found[name] = (path, {"torch.load": lambda path=path: torch.load(path, weights_only=True)})
    return found


def hdf5(folder: pathlib.Path, leaves: Leaves) -> tuple[pathlib.Path, Ways]:
    path = folder / "model.weights.h5"
    with h5py.File(path, "w") as file:
        for name, leaf in leaves.items():
            file[f"layers/{name}"] = leaf

    def load() -> Leaves:
        with h5py.File(path) as file:
            return {name: file[f"layers/{name}"][()] for name in leaves}

    return path, {"h5py": load}


def fingerprint(found: Any) -> list[tuple[tuple[int, ...], float]]:
    """Shapes and sums, in an order that does not depend on names."""
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(dict(found) if isinstance(found, Mapping) else found)]
    return sorted((array.shape, float(array.sum(dtype=np.float64))) for array in arrays)


def milliseconds(timed: Ways) -> dict[str, list[float]]:
    for call in timed.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(ROUNDS):
        for name, call in timed.items():
            time.sleep(PAUSE)
            begun = time.perf_counter()
            result = call()
            times[name].append(1e3 * (time.perf_counter() - begun))
            del result
    return times


def measure(path: pathlib.Path, references: Ways, expected: Any) -> dict[str, Any]:
    timed = {RAW: lambda: raw(path), OURS: lambda: ours(path), **references}
    for name, call in timed.items():
        if name != RAW and fingerprint(call()) != expected:
            raise SystemExit(f"{path.name}: {name} read other values")
    times = milliseconds(timed)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "bytes": sum(file.stat().st_size for file in files(path)),
        "ways": {
            name: {
                "median_ms": round(medians[name], 2),
                "least_ms": round(min(times[name]), 2),
                "of_raw_rate": round(medians[RAW] / medians[name], 3),
                "times_slower_than_jaxguard": round(medians[name] / medians[OURS], 2),
            }
            for name in timed
        },
    }


def main() -> None:
    model = models.build(SPEC, num_classes=10, input_shape=(32, 32, 3))
    leaves = checkpoints.flatten(model.init(jax.random.key(SEED)))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        makers = (safetensors_file, sharded, orbax, msgpack, npz, equinox, *((hdf5,) if h5py is not None else ()))
        made = {maker.__name__.removesuffix("_file"): maker(folder, leaves) for maker in makers}
        if torch is not None:
            made |= torch_files(folder, leaves)
        results = {format: measure(path, more, fingerprint(leaves)) for format, (path, more) in made.items()}
    for format, result in results.items():
        print(f"{format}, {result['bytes'] / 1e6:.1f} MB")
        for way, row in result["ways"].items():
            print(f"  {way:30} {row['median_ms']:8.2f} ms  least {row['least_ms']:8.2f} ms  {row['of_raw_rate']:5.2f}")
    packages = ["orbax-checkpoint", "safetensors", "msgpack", "tensorstore", "pyfive"]
    packages += [library.__name__ for library in (torch, h5py) if library is not None]
    environment = machine.environment(
        *packages, seed=SEED, rounds=ROUNDS, parameters=sum(x.size for x in leaves.values())
    )
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"environment": environment, "results": results}, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
