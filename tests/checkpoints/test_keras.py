"""Keras files: what Keras wrote opens with the weights it had, and hostile HDF5 is one CheckpointError."""

import json
import pathlib
import shutil
import struct
import subprocess
import sys
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxguard import checkpoints
from jaxguard.checkpoints import hdf5, keras
from jaxguard.errors import CheckpointError, DamagedError, HostileError, UnsupportedError

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
LAYERS = [
    *(["InputLayer", "input_layer"], ["Conv2D", "conv"], ["BatchNormalization", "norm"]),
    *(["DepthwiseConv2D", "depthwise"], ["Lambda", "twice"], ["Flatten", "flatten"], ["Dense", "dense"]),
    *(["Dense", "dense_again"], ["Sequential", "block"]),
]
LEGACY_NAMES = [
    *("conv/kernel", "conv/bias", "norm/gamma", "norm/beta", "norm/moving_mean", "norm/moving_variance"),
    *("depthwise/kernel", "depthwise/bias", "dense/kernel", "dense/bias", "dense_again/kernel", "dense_again/bias"),
    *("block/inner/kernel", "block/inner/bias", "block/outer/kernel", "block/outer/bias"),
]
NAMES = [
    *(f"layers/conv2d/vars/{index}" for index in range(2)),
    *(f"layers/batch_normalization/vars/{index}" for index in range(4)),
    *(f"layers/{layer}/vars/{index}" for layer in ("depthwise_conv2d", "dense", "dense_1") for index in range(2)),
    *(f"layers/sequential/layers/{layer}/vars/{index}" for layer in ("dense", "dense_1") for index in range(2)),
]
"""Of the weights in Keras's order, which is that of `keras_weights.npz`."""


@pytest.fixture(scope="module")
def weights() -> list[np.ndarray]:
    with np.load(GOLDEN / "keras_weights.npz") as pack:
        return [pack[str(index)] for index in range(len(pack))]


@pytest.mark.parametrize(
    ("file", "names"), [("keras.keras", NAMES), ("keras.weights.h5", NAMES), ("keras_legacy.h5", LEGACY_NAMES)]
)
def test_what_keras_wrote_opens(file, names, weights, tmp_path):
    path = shutil.copy(GOLDEN / file, tmp_path / "model.pth")  # the name must not matter
    checkpoint = checkpoints.load(path)
    found = checkpoint.read_all()
    assert checkpoint.format == "keras"
    assert set(found) == set(checkpoint.leaves) == set(names)
    for name, weight in zip(names, weights, strict=True):
        assert type(found[name]) is np.ndarray
        assert found[name].dtype == checkpoint.leaves[name].dtype == weight.dtype
        assert found[name].shape == checkpoint.leaves[name].shape == weight.shape
        np.testing.assert_array_equal(found[name], weight)
        np.testing.assert_array_equal(checkpoint.read(name), weight)


def test_layers_are_in_the_order_of_the_model():
    assert list(checkpoints.load(GOLDEN / "keras_legacy.h5").leaves) == LEGACY_NAMES


@pytest.mark.parametrize("file", ["keras.keras", "keras_legacy.h5"])
def test_of_the_configuration_only_names_are_told(file):
    metadata = checkpoints.load(GOLDEN / file).metadata
    assert metadata["keras_version"] == "3.15.1"
    assert json.loads(metadata["layers"]) == LAYERS
    assert "code" not in str(metadata)


def test_the_original_of_others_equals_its_twin(shared_data):
    original = checkpoints.load(shared_data / "checkpoints" / "originals" / "mnist_lenet5.h5")
    twin = checkpoints.load(shared_data / "checkpoints" / "mnist_clean_lenet5_deepjudge.safetensors")
    assert original.leaves == twin.leaves
    for name, leaf in twin.read_all().items():
        np.testing.assert_array_equal(original.read(name), leaf)


STORED = {
    **{"0": np.float32, "1": np.float64, "2": np.float16, "3": ml_dtypes.bfloat16, "4": np.float32},
    **{"10": np.float32},
}


def test_every_storage_and_dtype():
    checkpoint = checkpoints.load(GOLDEN / "hdf5" / "storages.h5")
    assert [name.split("/")[-1] for name in checkpoint.leaves] == ["0", "1", "2", "3", "4", "5", "6", "10"]
    for name, dtype in STORED.items():
        leaf = checkpoint.read(f"layers/dense/vars/{name}")
        assert leaf.dtype == checkpoint.leaves[f"layers/dense/vars/{name}"].dtype == dtype
        np.testing.assert_array_equal(leaf, (np.arange(70.0).reshape(10, 7) + int(name)).astype(dtype))
    assert checkpoint.read("layers/dense/vars/5") == 5
    assert checkpoint.read("layers/dense/vars/6").shape == (0, 7)


def test_groups_of_the_newer_kind():
    checkpoint = checkpoints.load(GOLDEN / "hdf5" / "dense.h5")
    assert [name.split("/")[-1] for name in checkpoint.leaves] == [str(index) for index in range(20)]
    assert all(checkpoint.read(f"layers/dense/vars/{index}")[0, 0] == index for index in range(20))


REFUSED = {
    "circle": (HostileError, "links in circles"),
    "soft_circle": (DamagedError, "readable HDF5"),
    "external": (DamagedError, "readable HDF5"),
    "external_storage": (DamagedError, "never written"),
    "bomb": (HostileError, "more than the 16 bytes announced"),
    "missing_chunks": (DamagedError, "1 chunks where 2 fill the array"),
    "vast": (HostileError, "4398046511104 announced"),
    "text": (UnsupportedError, "'0': an array of element type object"),
    "compound": (UnsupportedError, "'0': an array of element type"),
    "unwritten": (DamagedError, "never written"),
    "long_names": (DamagedError, "names of 1024 characters in layer_names"),
    "lying_names": (DamagedError, "one weight 'bias', got none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_files_are_one_clear_error(name):
    path = GOLDEN / "hdf5" / f"{name}.h5"
    begun = time.perf_counter()
    kind, message = REFUSED[name]
    with pytest.raises(kind, match=message) as caught:
        checkpoints.load(path).read_all()
    assert str(path) in str(caught.value)
    assert time.perf_counter() - begun < 5


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 1000, 20_000, 50_000])
def test_truncated_files_are_one_clear_error(keep, tmp_path):
    path = tmp_path / "model.h5"
    path.write_bytes((GOLDEN / "keras.weights.h5").read_bytes()[:keep])
    for open_fn in (checkpoints.load, lambda path: keras.open_checkpoint(path, str(path))):
        with pytest.raises(CheckpointError, match=r"model\.h5"):
            open_fn(path).read_all()


def test_a_structure_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr(hdf5, "MAX_READS", 50)
    with pytest.raises(CheckpointError, match="more than 50 reads"):
        checkpoints.load(GOLDEN / "keras.weights.h5")
    monkeypatch.undo()
    monkeypatch.setattr(hdf5, "MAX_SECONDS", 0.0)
    with pytest.raises(CheckpointError, match="0 s to walk"):
        checkpoints.load(GOLDEN / "keras.weights.h5")


def test_a_tree_that_branches_into_itself_is_given_up(tmp_path):
    """Six levels of a hundred links to the same node below: a trillion visits, in 10 kB."""
    content = bytearray((GOLDEN / "hdf5" / "unwritten.h5").read_bytes())
    tree, heap = struct.unpack_from("<QQ", content, 80)
    assert content[tree : tree + 4] == b"TREE"
    assert content[heap : heap + 4] == b"HEAP"
    below = tree
    for level in range(1, 7):
        node = struct.pack("<4sBBHQQQ", b"TREE", 0, level, 100, 2**64 - 1, 2**64 - 1, 0)
        below, content = len(content), content + node + struct.pack("<QQ", below, 0) * 100
    path = tmp_path / "model.h5"
    path.write_bytes(content.replace(struct.pack("<QQ", tree, heap), struct.pack("<QQ", below, heap)))
    begun = time.perf_counter()
    with pytest.raises(CheckpointError, match="takes more than 1000000 reads"):
        checkpoints.load(path)
    assert time.perf_counter() - begun < 20


def archive(path: pathlib.Path, **members: bytes) -> pathlib.Path:
    with zipfile.ZipFile(GOLDEN / "keras.keras") as source:
        content = {name: source.read(name) for name in source.namelist()}
    content |= {"config.json": members.get("config", content["config.json"])}
    content |= {"model.weights.h5": members.get("weights", content["model.weights.h5"])}
    with zipfile.ZipFile(path, "w") as target:
        for name, text in content.items():
            target.writestr(name, text)
    return path


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"weights": b"no HDF5"}, "readable HDF5"),
        ({"weights": b""}, "readable HDF5"),
        ({"config": b"{"}, "one JSON object"),
        ({"config": b'{"config":' + b"[" * 100_000}, "nested too deeply"),
    ],
)
def test_hostile_archives_are_one_clear_error(members, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(archive(tmp_path / "model.keras", **members))


@pytest.mark.parametrize("config", [b"{}", b'{"config": 3}', b'{"config": {"layers": [3, {"class_name": 3}, {}]}}'])
def test_any_other_configuration_is_passed_over(config, tmp_path):
    checkpoint = checkpoints.load(archive(tmp_path / "model.keras", config=config))
    assert len(checkpoint.leaves) == len(NAMES)
    assert "layers" not in checkpoint.metadata


def test_nothing_of_keras_or_hdf5_in_c_is_imported():
    command = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32)); "
        "from jaxguard import checkpoints; checkpoints.load(sys.argv[1]).read_all(); "
        "print({'keras', 'h5py', 'tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, str(GOLDEN / "keras.keras")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    file=st.sampled_from(["keras.keras", "keras.weights.h5", "keras_legacy.h5", "hdf5/dense.h5", "hdf5/storages.h5"]),
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    keep=st.sampled_from([1.0, 1.0, 0.9, 0.5]),
)
def test_only_checkpoint_errors_escape_from_mutated_files(file, places, keep, tmp_path):
    content = bytearray((GOLDEN / file).read_bytes())
    for place, value in places:
        content[int(place * (len(content) - 1))] = value
    path = tmp_path / "x"
    path.write_bytes(content[: int(keep * len(content))])
    try:
        found = checkpoints.load(path).read_all()
    except CheckpointError:
        return
    assert found
