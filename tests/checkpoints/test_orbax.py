"""Orbax directories: what Orbax writes opens, and Orbax opens what is written."""

import json
import logging
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from orbax import checkpoint as ocp
from orbax_trees import LAYOUTS, LEAVES, TREE, assert_holds, write

from jaxguard import checkpoints
from jaxguard.errors import CheckpointError


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_orbax_writes_opens_without_a_target(layout, tmp_path):
    assert_holds(checkpoints.load(write(tmp_path / "model", **LAYOUTS[layout])))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_numbers_of_every_kind_are_those_that_were_saved(layout, tmp_path):
    rng = np.random.default_rng(0)
    numbers = {
        "arrays": {code: rng.integers(1, 3, (3, 5)).astype(dtype) for code, dtype in checkpoints.DTYPES.items()},
        "scalars": {code: np.ones((), dtype) for code, dtype in checkpoints.DTYPES.items()},
        "large": rng.normal(size=(512, 700)).astype(np.float32),
        "of JAX": [jnp.ones((4, 4), jnp.bfloat16), jnp.array(True), jax.random.normal(jax.random.key(0), (7,))],
        "of Python": [1, 2.5, -(2**40)],
        "zeros": np.zeros((9, 9)),
        "special": np.array([np.nan, np.inf, -0.0]),
    }
    leaves = {name: np.asarray(leaf) for name, leaf in checkpoints.flatten(numbers).items()}
    assert_holds(checkpoints.load(write(tmp_path / "model", numbers, **LAYOUTS[layout])), leaves)


@pytest.mark.parametrize("layout", ["zarr3", "ocdbt"])
def test_chunks_smaller_than_a_shard(layout, tmp_path):
    tree = {"w": np.arange(2**16, dtype=np.float32).reshape(256, 256), "v": np.arange(100_000, dtype=np.int32)}
    arguments = ocp.SaveArgs(chunk_byte_size=2**14)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**LAYOUTS[layout])) as checkpointer:
        arguments = jax.tree.map(lambda _: arguments, tree)
        checkpointer.save(tmp_path / "model", args=ocp.args.PyTreeSave(tree, save_args=arguments))
    assert_holds(checkpoints.load(tmp_path / "model"), tree)


def test_what_the_next_interface_of_orbax_writes_opens(tmp_path):
    v1 = pytest.importorskip("orbax.checkpoint.experimental.v1")
    save = getattr(v1, "save", None) or v1.save_pytree  # deprecated since there is the former
    save(tmp_path / "model", TREE)
    assert_holds(checkpoints.load(tmp_path / "model"))


SAVED_ON_EIGHT_DEVICES = """
import sys
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax import checkpoint as ocp

assert jax.device_count() == 8
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("rows", "columns"))
placed = {
    "both": ("rows", "columns"),
    "rows": (("rows", "columns"), None),
    "replicated": (None, None),
}
values = np.arange(512, dtype=np.float32).reshape(16, 32)
tree = {name: jax.device_put(values, NamedSharding(mesh, PartitionSpec(*axes))) for name, axes in placed.items()}
for kind in sys.argv[2:]:
    options = {"use_ocdbt": kind != "plain", "use_zarr3": kind == "zarr3"}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(f"{sys.argv[1]}/{kind}", args=ocp.args.PyTreeSave(tree))
"""


def test_what_eight_devices_saved_opens_on_one(tmp_path):
    kinds = ["ocdbt", "plain", "zarr3"]
    subprocess.run(
        [sys.executable, "-c", SAVED_ON_EIGHT_DEVICES, str(tmp_path), *kinds],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        check=True,
        capture_output=True,
    )
    assert jax.device_count() == 1
    values = np.arange(512, dtype=np.float32).reshape(16, 32)
    for kind in kinds:
        assert_holds(checkpoints.load(tmp_path / kind), dict.fromkeys(["both", "rows", "replicated"], values))


def test_what_a_standard_checkpointer_writes_opens(tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", TREE)
    assert_holds(checkpoints.load(tmp_path / "model"))


def test_orbax_opens_what_is_written(tmp_path):
    leaves = {"params/w": np.arange(6, dtype=np.float32).reshape(2, 3), "params/n": np.array(3, np.int32)}
    checkpoints.save(tmp_path / "model", leaves)
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(tmp_path / "model")
    np.testing.assert_array_equal(found["params"]["w"], leaves["params/w"])
    np.testing.assert_array_equal(found["params"]["n"], leaves["params/n"])


def test_round_trip_of_every_dtype_with_metadata(tmp_path):
    leaves = {f"params/{code}": np.ones((2, 3)).astype(dtype) for code, dtype in checkpoints.DTYPES.items()}
    leaves["params/scalar"] = np.array(2.5, np.float32)
    checkpoints.save(tmp_path / "model", leaves, metadata={"arch": "mlp", "note": "für später"})
    checkpoint = checkpoints.load(tmp_path / "model")
    assert_holds(checkpoint, leaves)
    assert checkpoint.metadata == {"arch": "mlp", "note": "für später"}


def test_string_leaves_are_metadata_and_empty_nodes_are_nothing(tmp_path):
    tree = {"w": np.ones(2), "optimizer": {"name": "sgd", "empty": {}, "none": None}}
    checkpoint = checkpoints.load(write(tmp_path / "model", tree))
    assert list(checkpoint.leaves) == ["w"]
    assert checkpoint.metadata == {"optimizer/name": "sgd"}


def test_a_run_opens_at_its_latest_or_at_a_named_step(tmp_path):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (2, 10):
            manager.save(step, args=ocp.args.StandardSave({"w": np.full(2, step)}))
    (tmp_path / "run" / "99.orbax-checkpoint-tmp").mkdir()
    assert checkpoints.load(tmp_path / "run").read("w").tolist() == [10, 10]
    assert checkpoints.load(f"{tmp_path}/run@2").read("w").tolist() == [2, 2]
    assert checkpoints.load(tmp_path / "run" / "2").read("w").tolist() == [2, 2]
    assert checkpoints.load(f"{tmp_path}/run@2").path == f"{tmp_path}/run@2"
    with pytest.raises(CheckpointError, match="expected step 7"):
        checkpoints.load(f"{tmp_path}/run@7")


def test_step_prefixes_and_zeros(tmp_path):
    options = ocp.CheckpointManagerOptions(step_prefix="step", step_format_fixed_length=5)
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        manager.save(7, args=ocp.args.StandardSave({"w": np.ones(2)}), custom_metadata={"arch": "mlp", "width": 2})
    checkpoint = checkpoints.load(f"{tmp_path}/run@7")
    assert checkpoint.metadata == {"arch": "mlp", "width": "2"}


def test_one_of_several_items_has_to_be_named(tmp_path):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        items = {"state": ocp.args.StandardSave({"w": np.ones(2)}), "ema": ocp.args.StandardSave({"w": np.zeros(2)})}
        manager.save(1, args=ocp.args.Composite(**items))
    with pytest.raises(CheckpointError, match="got the items ema, state; pass the one you mean"):
        checkpoints.load(tmp_path / "run")
    assert checkpoints.load(tmp_path / "run" / "1" / "ema").read("w").tolist() == [0, 0]


def test_writing_is_silent(tmp_path, caplog, capfd):
    with caplog.at_level(logging.INFO):
        checkpoints.save(tmp_path / "model", {"w": np.ones(2)})
        checkpoints.load(tmp_path / "model").read_all()
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


UNUSUAL = {
    "Fortran order": {"order": "F"},
    "other compression": {"compressor": {"id": "zlib", "level": 1}},
    "big-endian": {"dtype": ">f4"},
    "another compression of each chunk": {"chunks": [1, 2, 3], "compressor": {"id": "gzip", "level": 1}},
}


@pytest.mark.parametrize("case", UNUSUAL)
@pytest.mark.parametrize("kind", ["ocdbt", "plain"])
def test_what_is_out_of_the_ordinary_opens_too(case, kind, tmp_path):
    model = write(tmp_path / "model", **LAYOUTS[kind])
    base = {"driver": "file", "path": f"{model}/"}
    folder = "params.conv.kernel/"
    store = (
        {"driver": "ocdbt", "base": base, "path": folder}
        if kind == "ocdbt"
        else {**base, "path": base["path"] + folder}
    )
    metadata = {"shape": [2, 3, 4], "chunks": [2, 3, 4], "dtype": "<f4", "compressor": None} | UNUSUAL[case]
    spec = {"driver": "zarr", "kvstore": store, "metadata": metadata}
    tensorstore.open(spec, create=True, delete_existing=True).result().write(LEAVES["params/conv/kernel"]).result()
    assert_holds(checkpoints.load(model))


@pytest.mark.parametrize("kind", ["ocdbt", "plain"])
def test_chunks_left_out_for_they_hold_zeros_are_zeros(kind, tmp_path):
    model = write(tmp_path / "model", **LAYOUTS[kind])
    index = json.loads((model / "_METADATA").read_text()) | {"store_array_data_equal_to_fill_value": False}
    (model / "_METADATA").write_text(json.dumps(index))
    base = {"driver": "file", "path": f"{model}/"}
    store = {"driver": "ocdbt", "base": base} if kind == "ocdbt" else base
    tensorstore.KvStore.open(store).result().write("params.conv.kernel/0.0.0", None).result()
    assert_holds(checkpoints.load(model), LEAVES | {"params/conv/kernel": np.zeros((2, 3, 4), np.float32)})


def test_hash_covers_names_and_contents(tmp_path):
    plain = write(tmp_path / "plain", use_ocdbt=False)
    copy = shutil.copytree(plain, tmp_path / "copy")
    before = checkpoints.load(plain).sha256
    assert checkpoints.load(copy).sha256 == before
    (copy / "scale" / "0").write_bytes(b"x")
    assert checkpoints.load(copy).sha256 != before
    shutil.rmtree(copy)
    shutil.copytree(plain, copy)
    (copy / "array_metadatas").rename(copy / "renamed")
    assert checkpoints.load(copy).sha256 != before
