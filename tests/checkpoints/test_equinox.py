"""Equinox files and single npy files: records by position, behind a line of JSON or none."""

import pathlib

import numpy as np
import pytest

from jaxguard import checkpoints
from jaxguard.errors import CheckpointError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CONTENT = (GOLDEN / "equinox.eqx").read_bytes()
LINE = CONTENT.index(b"\n") + 1


def test_what_equinox_saved_is_what_is_read():
    checkpoint = checkpoints.load(GOLDEN / "equinox.eqx")
    assert checkpoint.format == "equinox"
    assert checkpoint.metadata == {"mlp": '{"width": 8, "depth": 1}', "activation": "relu"}
    found = checkpoint.read_all()
    with np.load(GOLDEN / "equinox.npz") as expected:
        assert list(found) == list(checkpoint.leaves) == list(expected)
        for name, leaf in expected.items():
            assert (found[name].shape, checkpoint.leaves[name].shape) == (leaf.shape, leaf.shape)
            np.testing.assert_array_equal(found[name].astype(leaf.dtype), leaf)
            assert found[name].flags.aligned and not found[name].flags.writeable
    assert checkpoint.leaves["4"].dtype.name == "bfloat16"


def test_the_line_of_json_may_be_missing(tmp_path):
    (tmp_path / "x").write_bytes(CONTENT[LINE:])
    checkpoint = checkpoints.load(tmp_path / "x")
    assert (checkpoint.format, checkpoint.metadata, len(checkpoint.leaves)) == ("equinox", {}, 9)


def test_one_npy_file_is_one_leaf(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(3.0))
    assert checkpoints.load(tmp_path / "x.npy").read("0").tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT + b"x", "leaf 9 at byte .* does not read"),
        (CONTENT[:-1], "leaf 8 at byte .* bytes announced and .* left"),
        (b'{"a": 1, "a": 2}\n' + CONTENT[LINE:], "the key 'a' twice"),
        (b'{"a": 1]\n' + CONTENT[LINE:], "not JSON"),
        (b'{"a": ' + b"[" * 60_000 + b"\n" + CONTENT[LINE:], "nested too deeply|not JSON"),
        (CONTENT.replace(b"'<f4'", b"'|O' ", 1), "Python objects"),
        (CONTENT.replace(b"(8, 4)", b"(8,-4)", 1), "shape"),
        (CONTENT.replace(b"(8, 4)", b"(9**9)", 1), "does not read"),
        (CONTENT.replace(b"(8, 4)", b"(8, 7)", 1), "does not read"),
        (b"\x93NUMPY", "does not read"),
    ],
)
def test_files_that_lie_are_one_error(content, message, tmp_path):
    (tmp_path / "x.eqx").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(tmp_path / "x.eqx")


def test_truncations_are_one_error_or_fewer_leaves(tmp_path):
    whole = checkpoints.load(GOLDEN / "equinox.eqx").read_all()
    opened = 0
    starts = [length for length in range(LINE + 1, len(CONTENT)) if CONTENT[length:].startswith(b"\x93NUMPY")]
    for length in sorted({*range(1, len(CONTENT), 37), *starts}):
        (tmp_path / "x.eqx").write_bytes(CONTENT[:length])
        try:
            found = checkpoints.load(tmp_path / "x.eqx").read_all()
        except CheckpointError:
            continue
        opened += 1
        assert len(found) < len(whole)
        assert all(leaf.tobytes() == whole[name].tobytes() for name, leaf in found.items())
    assert (
        opened == len(starts) == len(whole) - 1
    )  # cut exactly between two records, which nothing in the file can tell
