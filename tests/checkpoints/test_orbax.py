"""Orbax directories: what Orbax writes opens, Orbax opens what is written, and damage is one CheckpointError."""

import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from orbax import checkpoint as ocp

from jaxguard import checkpoints
from jaxguard.errors import CheckpointError

TREE = {
    "params": {
        "conv": {
            "kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
            "b.ias": np.array([1.5, -2], ml_dtypes.bfloat16),
        },
        "blocks": [np.ones(2, np.float16), jnp.zeros(3)],
    },
    "step": np.array(3, np.int32),
    "a/b": np.ones(1, np.float32),
}
LEAVES = checkpoints.flatten(TREE)


def write(path: pathlib.Path, tree=TREE, **options) -> pathlib.Path:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))
    return path


def assert_holds(checkpoint: checkpoints.Checkpoint, leaves=LEAVES) -> None:
    found = checkpoint.read_all()
    assert checkpoint.format == "orbax"
    assert set(found) == set(checkpoint.leaves) == set(leaves)
    for name, leaf in leaves.items():
        assert type(found[name]) is np.ndarray
        assert found[name].dtype == checkpoint.leaves[name].dtype == leaf.dtype
        assert found[name].shape == checkpoint.leaves[name].shape == leaf.shape
        np.testing.assert_array_equal(found[name], leaf)
        np.testing.assert_array_equal(checkpoint.read(name), leaf)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> pathlib.Path:
    """One folder per array, whose files can be damaged one by one; never written to."""
    return write(tmp_path_factory.mktemp("orbax") / "plain", use_ocdbt=False)


@pytest.fixture
def copy(plain, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(plain, tmp_path / "copy"))


@pytest.mark.parametrize(
    "options", [{"use_ocdbt": True}, {"use_ocdbt": False}, {"use_zarr3": True}], ids=["ocdbt", "plain", "zarr3"]
)
def test_what_orbax_writes_opens_without_a_target(options, tmp_path):
    assert_holds(checkpoints.load(write(tmp_path / "model", **options)))


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
with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=sys.argv[2] == "ocdbt")) as checkpointer:
    checkpointer.save(sys.argv[1], args=ocp.args.PyTreeSave(tree))
"""


@pytest.mark.parametrize("kind", ["ocdbt", "plain"])
def test_what_eight_devices_saved_opens_on_one(kind, tmp_path):
    subprocess.run(
        [sys.executable, "-c", SAVED_ON_EIGHT_DEVICES, str(tmp_path / "model"), kind],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        check=True,
        capture_output=True,
    )
    assert jax.device_count() == 1
    values = np.arange(512, dtype=np.float32).reshape(16, 32)
    assert_holds(checkpoints.load(tmp_path / "model"), dict.fromkeys(["both", "rows", "replicated"], values))


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
    with pytest.raises(CheckpointError, match="found the items ema, state; pass the one you mean"):
        checkpoints.load(tmp_path / "run")
    assert checkpoints.load(tmp_path / "run" / "1" / "ema").read("w").tolist() == [0, 0]


def test_writing_is_silent(tmp_path, caplog, capfd):
    with caplog.at_level(logging.INFO):
        checkpoints.save(tmp_path / "model", {"w": np.ones(2)})
        checkpoints.load(tmp_path / "model").read_all()
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_hash_covers_names_and_contents(copy, plain, tmp_path):
    before = checkpoints.load(plain).sha256
    assert checkpoints.load(copy).sha256 == before
    (copy / "step" / "0").write_bytes(b"x")
    assert checkpoints.load(copy).sha256 != before
    shutil.rmtree(copy)
    shutil.copytree(plain, copy)
    (copy / "array_metadatas").rename(copy / "renamed")
    assert checkpoints.load(copy).sha256 != before


def edited_index(directory: pathlib.Path, edit) -> None:
    index = json.loads((directory / "_METADATA").read_text())
    edit(index["tree_metadata"])
    (directory / "_METADATA").write_text(json.dumps(index))


def renamed(keys):
    def edit(tree):
        tree["('step',)"]["key_metadata"] = [{"key": key, "key_type": 2} for key in keys]

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (renamed([".."]), "leaves it or occurs twice"),
        (renamed(["../copy/step"]), "leaves it or occurs twice"),
        (renamed(["/etc"]), "leaves it or occurs twice"),
        (renamed([]), "leaves it or occurs twice"),
        (renamed(["a", "b"]), "'a/b': .*leaves it or occurs twice"),
        (renamed(["absent"]), "'absent': expected a readable array"),
        (renamed(["\ud800"]), "surrogates not allowed"),
        (lambda tree: tree["('step',)"].pop("key_metadata"), "expected key_metadata"),
        (lambda tree: tree.update(x=3), "expected key_metadata"),
        (lambda tree: tree["('step',)"]["value_metadata"].update(value_type="evil.Class"), "'evil.Class'"),
        (lambda tree: tree.clear(), "at least one leaf"),
    ],
)
def test_a_lying_index_is_one_clear_error(edit, message, copy):
    edited_index(copy, edit)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoints.load(copy)
    assert str(copy) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff", b'{"a":1,"a":2}', b'{"tree_metadata": 3}', b"[" * 99_999]
)
def test_a_broken_index_is_one_clear_error(content, copy):
    (copy / "_METADATA").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"header|tree_metadata"):
        checkpoints.load(copy)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": [2**20, 2**20, 4]}, "announced"),
        ({"chunks": [2**20, 2**20, 4]}, "announced"),
        ({"shape": [2, 2**62, 4]}, "readable array|announced"),
        ({"dtype": "|O"}, "readable array"),
        ({"dtype": [["x", "<f4"], ["y", "<f4"]]}, "readable array"),
        ({"zarr_format": 9}, "readable array"),
    ],
)
def test_an_array_that_announces_the_impossible_is_refused_before_it_is_read(fields, message, copy):
    file = copy / "params.conv.kernel" / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoints.load(copy)
    assert str(copy) in str(caught.value)


def test_a_decompression_bomb_stops_at_the_announced_size(copy):
    folder = copy / "params.conv.kernel"
    described = json.loads((folder / ".zarray").read_text()) | {"compressor": {"id": "zlib", "level": 9}}
    (folder / ".zarray").write_text(json.dumps(described))
    (folder / "0.0.0").write_bytes(zlib.compress(bytes(2**26), 9))
    checkpoint = checkpoints.load(copy)
    with pytest.raises(CheckpointError, match="'params/conv/kernel': expected a readable array"):
        checkpoint.read("params/conv/kernel")


def test_damage_in_one_leaf_leaves_the_others_readable(copy):
    (copy / "params.conv.kernel" / "0.0.0").write_bytes(b"garbage")
    checkpoint = checkpoints.load(copy)
    np.testing.assert_array_equal(checkpoint.read("step"), LEAVES["step"])
    with pytest.raises(CheckpointError, match="'params/conv/kernel': expected a readable array"):
        checkpoint.read_all()


def test_a_missing_chunk_is_not_read_as_zeros(copy):
    (copy / "params.conv.kernel" / "0.0.0").unlink()
    with pytest.raises(CheckpointError, match="'params/conv/kernel': expected a readable array"):
        checkpoints.load(copy).read("params/conv/kernel")


def test_a_pipe_inside_is_refused_instead_of_waited_for(copy):
    (copy / "step" / "0").unlink()
    os.mkfifo(copy / "step" / "0")
    with pytest.raises(CheckpointError, match="special file"):
        checkpoints.load(copy)


def test_links_to_files_open_and_broken_links_do_not(copy, tmp_path):
    shutil.move(copy / "step" / "0", tmp_path / "blob")
    (copy / "step" / "0").symlink_to(tmp_path / "blob")
    assert_holds(checkpoints.load(copy))
    (tmp_path / "blob").unlink()
    with pytest.raises(CheckpointError, match="broken link"):
        checkpoints.load(copy)


damage = st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 255), st.sampled_from([1.0, 1.0, 0.5]))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=damage)
@pytest.mark.parametrize("kind", ["ocdbt", "plain"])
def test_only_checkpoint_errors_escape_from_mutated_directories(kind, damage, tmp_path, plain):
    which, place, value, keep = damage
    original, broken = tmp_path / "original", tmp_path / "broken"
    if not original.exists():
        shutil.copytree(plain, original) if kind == "plain" else write(original)
    shutil.rmtree(broken, ignore_errors=True)
    shutil.copytree(original, broken)
    files = sorted(path for path in broken.rglob("*") if path.is_file() and path.stat().st_size)
    chosen = files[int(which * (len(files) - 1))]
    content = bytearray(chosen.read_bytes())
    content[int(place * (len(content) - 1))] = value
    chosen.write_bytes(content[: int(keep * len(content))])
    try:
        found = checkpoints.load(broken).read_all()
    except CheckpointError:
        return
    assert found
