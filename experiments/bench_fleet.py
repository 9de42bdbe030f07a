"""At what part of the storage's speed does a store of checkpoints get scanned, and what does one more cost?

    python experiments/bench_fleet.py STORE                      # writes 31 GB below STORE
    python -m venv /tmp/tools && /tmp/tools/bin/pip install torch safetensors modelscan modelaudit
    python experiments/bench_fleet.py STORE --python /tmp/tools/bin/python
    python experiments/bench_fleet.py STORE --large 16 --small 300 --out experiments/results/fleet_hash.json

Two stores of random weights in torch's layout: PreActResNet-18 (45 MB each), and ResNet-20 (1.1 MB). Every scan is the
command, `jaxguard scan FOLDER --out FRESH`, in a process of its own, so all figures hold start-up, discovery, hashing,
scoring and results on disk; programs are compiled beforehand, once, and that time is reported apart. Before it the same
files are read by as many threads into memory that is used again, which is the fastest anything could be: cold (the page
cache is told to drop them) and warm. `scan sha256` is the scan with `--hash sha256`; without it contents are named by
BLAKE3. On a busy machine CPU seconds say more than the clock's. Beside it, in turns on a few files of the large store,
what a user would run instead (`fleet_tools.py`, in an environment of its own): CLP's published loop, modelscan and
ModelAudit. Seconds per file are then without start-up and imports, for all.

Hardware: whatever it runs on, named in the result. Time: 20 minutes on 2 CPU cores, half of it writing the stores.
Expected: on two cores at least 300 small checkpoints per second, cost per checkpoint flat from 100 to 20,000, peak
memory under 2 GiB; 0.6 of the speed of a cold disk.
Result: experiments/results/fleet.json.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import machine
import numpy as np
from rich.progress import track

from jaxguard import checkpoints, models
from jaxguard.models import layouts

STORES = {"large": "preactresnet18", "small": "resnet20"}
THREADS = min(16, 4 * (os.cpu_count() or 1))
TOOLS, TOOL_FILES = ("clp", "modelscan", "modelaudit"), 24
RESULT = pathlib.Path(__file__).parent / "results" / "fleet.json"


def write_store(folder: pathlib.Path, spec: str, count: int) -> list[pathlib.Path]:
    """Checkpoints of random weights, those that are there already excepted."""
    folder.mkdir(parents=True, exist_ok=True)
    model = models.build(spec, num_classes=10, input_shape=(32, 32, 3))
    leaves = {name: leaf.shape for name, leaf in layouts.expected(model, "torch").items()}
    sizes = {name: int(np.prod(shape)) for name, shape in leaves.items()}
    draw = np.random.default_rng(0)
    paths = [folder / f"{k:06d}.safetensors" for k in range(count)]
    for path in track(paths, f"writing {spec}"):
        if path.exists():
            continue
        numbers, start, arrays = draw.standard_normal(sum(sizes.values()), dtype=np.float32) * 0.1, 0, {}
        for name, shape in leaves.items():
            part = numbers[start : start + sizes[name]].reshape(shape)
            is_positive = name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1)
            arrays[name], start = (np.abs(part) + 1 if is_positive else part), start + sizes[name]
        # not `checkpoints.save`, which waits for the disk after each file
        checkpoints.FORMATS["safetensors"].write(path, arrays, {})
    os.sync()
    return paths


def drop(paths: list[pathlib.Path]) -> None:
    """Tell the page cache to forget the files."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_all(paths: list[pathlib.Path]) -> float:
    """Seconds to read the files by several threads, each into memory of its own."""
    largest = max(path.stat().st_size for path in paths)

    def read(part: list[pathlib.Path]) -> None:
        memory = memoryview(np.zeros(largest, np.uint8))
        for path in part:
            with path.open("rb", buffering=0) as file:
                while file.readinto(memory):
                    pass

    start = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, (paths[k::THREADS] for k in range(THREADS))))
    return time.perf_counter() - start


def scan(target: pathlib.Path, cache: str, *options: str) -> dict[str, float]:
    """One scan by the command line: seconds, CPU seconds, and peak memory of its process."""
    with tempfile.TemporaryDirectory(dir=target.parent) as out:
        command = [sys.executable, "-m", "jaxguard", "scan", str(target), "--out", f"{out}/results", "--format", "json"]
        command += ["--output", f"{out}/report.json", "--fail-on", "never"]
        command += options
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        told = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            raise SystemExit(f"the scan of {target} ended with {status}:\n{told[-2000:]}")
        last = json.loads([line for line in told.splitlines() if line.startswith("{")][-1])
        assert last["done"] == last["total"] and not last["failed"], last
        busy = usage.ru_utime + usage.ru_stime
        return {
            "seconds": seconds,
            "cpu_seconds": busy,
            "peak_bytes": usage.ru_maxrss * 1024,
            "checkpoints": last["done"],
        }


def manifest(folder: pathlib.Path, paths: list[pathlib.Path]) -> pathlib.Path:
    path = folder.parent / f"{folder.name}-{len(paths)}.txt"
    path.write_text("".join(f"{one.absolute()}\n" for one in paths))
    return path


def tool(name: str, python: str, paths: list[pathlib.Path]) -> dict[str, Any]:
    """What `fleet_tools.py` says of a few files, or why it does not run."""
    with tempfile.TemporaryDirectory() as folder:
        listed = pathlib.Path(folder) / "files.txt"
        listed.write_text("".join(f"{path.absolute()}\n" for path in paths))
        command = [python, str(pathlib.Path(__file__).with_name("fleet_tools.py")), name, str(listed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"skipped": done.stderr.strip().splitlines()[-1]}
    row = json.loads(done.stdout)
    return row | {"files": len(paths)}


def beside(python: str, paths: list[pathlib.Path], cache: str, rounds: int) -> dict[str, Any]:
    """Seconds per file of the other tools and of scans of the same few files, warm and in turns; medians."""
    many, one = (manifest(paths[0].parent, chosen) for chosen in (paths, paths[:1]))
    rows: dict[str, dict[str, Any]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ("jaxguard scan", *TOOLS)}
    read_all(paths)
    for _ in range(rounds):
        for name in TOOLS:
            rows[name] = tool(name, python, paths)
            seconds[name] += [rows[name].pop("seconds") / len(paths)] if "seconds" in rows[name] else []
        more = scan(many, cache, "--quick")["seconds"] - scan(one, cache, "--quick")["seconds"]
        seconds["jaxguard scan"].append(more / (len(paths) - 1))
    each = {name: {"seconds_each": round(statistics.median(row), 5)} if row else {} for name, row in seconds.items()}
    return {name: {**rows.get(name, {}), **each[name]} for name in each}


def measure(
    name: str, folder: pathlib.Path, paths: list[pathlib.Path], cache: str, *, rounds: int, start: float
) -> dict[str, Any]:
    total = sum(path.stat().st_size for path in paths)
    target = manifest(folder, paths)
    ways: dict[str, list[str]] = {"raw": [], "scan": [], "scan sha256": ["--hash", "sha256"]}
    rows: dict[str, list[float]] = {f"{way} {state}": [] for state in ("cold", "warm") for way in ways}
    busy: dict[str, list[float]] = {row: [] for row in rows if not row.startswith("raw")}
    peaks = []
    for _ in range(rounds):
        for state in ("cold", "warm"):
            for way, options in ways.items():
                if state == "cold":
                    drop(paths)
                else:
                    read_all(paths)
                if way == "raw":
                    rows[f"raw {state}"].append(read_all(paths))
                else:
                    found = scan(target, cache, *options)
                    rows[f"{way} {state}"].append(found["seconds"])
                    busy[f"{way} {state}"].append(found["cpu_seconds"])
                    peaks.append(found["peak_bytes"])
    medians = {row: statistics.median(seconds) for row, seconds in rows.items()}
    return {
        "architecture": STORES[name],
        "checkpoints": len(paths),
        "bytes": total,
        "seconds": {row: [round(one, 3) for one in seconds] for row, seconds in rows.items()},
        "cpu_seconds": {row: round(statistics.median(seconds), 2) for row, seconds in busy.items()},
        "bytes_per_second": {row: round(total / seconds) for row, seconds in medians.items()},
        "checkpoints_per_second": {row: round(len(paths) / seconds, 2) for row, seconds in medians.items()},
        "share_of_raw": {s: round(medians[f"raw {s}"] / medians[f"scan {s}"], 3) for s in ("cold", "warm")},
        "share_of_raw_after_start": {
            state: round(medians[f"raw {state}"] / (medians[f"scan {state}"] - start), 3) for state in ("cold", "warm")
        },
        "peak_bytes": max(peaks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=pathlib.Path)
    parser.add_argument("--large", type=int, default=200)
    parser.add_argument("--small", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", help="of an environment with the other tools, see fleet_tools.py")
    parser.add_argument("--out", type=pathlib.Path, default=RESULT)
    arguments = parser.parse_args()
    counts = {"large": arguments.large, "small": arguments.small}
    folders = {name: arguments.store / name for name in STORES}
    paths = {name: write_store(folders[name], STORES[name], counts[name]) for name in STORES}
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(tempfile.TemporaryDirectory())
        for name in STORES:
            few = manifest(folders[name], paths[name][:8])
            first, second = scan(few, cache), scan(few, cache)
            found[name] = {
                "first_seconds": round(first["seconds"], 2),
                "start_seconds": round(second["seconds"], 2),
                "start_cpu_seconds": round(second["cpu_seconds"], 2),
            }
        for count in [n for n in (100, 1000, 5000, 20_000) if n < counts["small"]]:
            one = scan(manifest(folders["small"], paths["small"][:count]), cache)
            milliseconds = 1000 * (one["seconds"] - found["small"]["start_seconds"]) / count
            found["small"].setdefault("milliseconds_each", {})[count] = round(milliseconds, 3)
        for name in STORES:
            start = found[name]["start_seconds"]
            found[name] |= measure(name, folders[name], paths[name], cache, rounds=arguments.rounds, start=start)
        each = found["small"]["seconds"]["scan warm"]
        whole = 1000 * (statistics.median(each) - found["small"]["start_seconds"]) / counts["small"]
        found["small"].setdefault("milliseconds_each", {})[counts["small"]] = round(whole, 3)
        if arguments.python:
            found["tools"] = beside(arguments.python, paths["large"][:TOOL_FILES], cache, arguments.rounds)
            loop = found["tools"]["clp"].get("seconds_each")
            if loop is not None:
                per_file = statistics.median(found["large"]["seconds"]["scan warm"]) / counts["large"]
                found["large"] |= {"reference_seconds": loop, "times_reference": round(loop / per_file, 1)}
    environment = machine.environment("pyarrow", rounds=arguments.rounds, readers=THREADS)
    result = {"environment": environment, "stores": found}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
