"""npz files: what numpy wrote is found, mapped where it can be, and every lie is one error."""

import io
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from jaxguard import checkpoints
from jaxguard.checkpoints import npy
from jaxguard.errors import CheckpointError, UnsupportedError

LEAVES = {
    "params/conv/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "params/conv/bias": np.array([1.5, -2.0, 0.25], ml_dtypes.bfloat16),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "swapped": np.arange(3, dtype=">i4"),
    "scale": np.array(7),
    "empty": np.zeros((0, 3), np.float16),
    "mask": np.array([True, False, True]),
    "wave": np.array([1 + 2j], np.complex64),
}


def record(header: dict | bytes, content: bytes = b"") -> bytes:
    """Bytes of an npy record with the header as given, true or not."""
    text = header if isinstance(header, bytes) else repr(header).encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


def described(descr: object = "<f4", shape: object = (2,), fortran_order: object = False) -> dict:
    return {"descr": descr, "fortran_order": fortran_order, "shape": shape}


def packed(content: bytes, name: str = "w.npy", **options) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as file:
        file.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_saved_is_what_is_read(save, tmp_path):
    save(tmp_path / "x.npz", arch="résumé", **LEAVES)
    checkpoint = checkpoints.load(tmp_path / "x.npz")
    assert (checkpoint.format, checkpoint.metadata) == ("npz", {"arch": "résumé"})
    found = checkpoint.read_all()
    assert list(found) == list(LEAVES)
    for name, leaf in LEAVES.items():
        np.testing.assert_array_equal(found[name], leaf)
        assert found[name].dtype == checkpoint.leaves[name].dtype == leaf.dtype.newbyteorder("=")
        assert found[name].shape == checkpoint.leaves[name].shape == leaf.shape
        assert found[name].flags.aligned and not found[name].flags.writeable


@given(
    leaf=npst.arrays(
        st.sampled_from(["<f4", ">f8", "<i8", "|u1", "?", "<c8", ">f2"]), npst.array_shapes(min_dims=0, min_side=0)
    )
)
@settings(max_examples=100, deadline=None)
def test_any_array_comes_back(leaf):
    buffer = io.BytesIO()
    np.save(buffer, leaf)
    found = npy.parse(buffer.getvalue()).array(np.frombuffer(buffer.getvalue(), np.uint8))
    np.testing.assert_array_equal(found, leaf)
    assert found.dtype.isnative


def test_stored_members_are_views_of_the_file(tmp_path):
    (tmp_path / "x.npz").write_bytes(packed(record(described("|u1"), b"ab")))
    checkpoint = checkpoints.load(tmp_path / "x.npz")
    assert np.shares_memory(checkpoint.read("w"), checkpoint.read("w"))


def test_an_opened_file_keeps_its_content_when_its_name_is_overwritten(tmp_path):
    np.savez(tmp_path / "x.npz", **LEAVES)
    checkpoint = checkpoints.load(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", other=np.ones(1000))
    (tmp_path / "y.npz").rename(tmp_path / "x.npz")
    np.testing.assert_array_equal(checkpoint.read("fortran"), LEAVES["fortran"])


ODD = {
    "objects": (record(described("|O"), b"cos\nsystem\n(S'id'\ntR."), "Python objects"),
    "objects inside": (record(described([("a", "|O")]), bytes(16)), "Python objects"),
    "text": (record(described("<U3"), bytes(24)), "elements of type <U3"),
    "a date": (record(described("<M8[D]"), bytes(16)), "elements of type <M8"),
    "a structure": (record(described([("a", "<f4"), ("b", "<f4")]), bytes(16)), "elements of type"),
    "double complex": (record(described("<c16"), bytes(32)), "elements of type <c16"),
    "any float8": (record(described("|V1"), bytes(2)), r"elements of type |V1"),
}


@pytest.mark.parametrize("case", ODD)
def test_an_array_of_other_things_than_numbers_is_left_out_by_name(case, tmp_path):
    content, reason = ODD[case]
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("odd.npy", content)
        file.writestr("w.npy", record(described(), np.arange(2, dtype="<f4").tobytes()))
    checkpoint = checkpoints.load(tmp_path / "x.npz")
    assert checkpoint.read_all()["w"].tolist() == [0, 1] and list(checkpoint.leaves) == ["w"]
    assert list(checkpoint.left_out) == ["odd"] and reason in checkpoint.left_out["odd"]
    assert "not supported" in checkpoint.left_out["odd"]
    (tmp_path / "x.npz").write_bytes(packed(content))
    with pytest.raises(UnsupportedError, match="'w': "):
        checkpoints.load(tmp_path / "x.npz")


HOSTILE = {
    "size below zero": (record(described(shape=(-2,)), bytes(8)), "shape"),
    "size of many digits": (record(described(shape=(10**200,)), bytes(8)), "shape"),
    "sizes that overflow": (record(described(shape=(2**62, 2**62, 0))), "shape"),
    "size that is none": (record(described(shape=(2.0,)), bytes(8)), "shape"),
    "many axes": (record(described(shape=(1,) * 40), bytes(4)), "shape"),
    "too little": (record(described(), bytes(7)), "got .* bytes where its header announces"),
    "too much": (record(described(), bytes(9)), "got .* bytes where its header announces"),
    "huge": (record(described(shape=(2**40,)), bytes(8)), "got .* bytes where its header announces"),
    "order that is none": (record(described(fortran_order=3), bytes(8)), "does not read"),
    "a missing key": (record({"descr": "<f4", "shape": (2,)}, bytes(8)), "does not read"),
    "unknown type": (record(described("<q9"), bytes(8)), "does not read"),
    "code in place of a header": (record(b"__import__('os').system('id')"), "does not read"),
    "deep header": (record(b"(" * 9000), "does not read"),
    "long header": (record(b" " * 20_000), "does not read"),
    "header longer than the file": (b"\x93NUMPY\x01\x00\xff\xff{", "does not read"),
    "another version": (b"\x93NUMPY\x09\x00" + bytes(100), r"version \(9, 0\) of the npy format, which is not supp"),
    "no magic": (b"x" * 100, "does not read"),
    "empty": (b"", "does not read"),
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("case", HOSTILE)
def test_headers_that_lie_are_one_error(case, compression, tmp_path):
    content, message = HOSTILE[case]
    (tmp_path / "x.npz").write_bytes(packed(content, compression=compression))
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoints.load(tmp_path / "x.npz")
    assert "'w'" in str(caught.value) and len(str(caught.value)) < 600


def test_more_than_the_file_can_hold_is_refused(tmp_path):
    content = packed(record(described(shape=(2**29,)), bytes(8)), compression=zipfile.ZIP_DEFLATED)
    size = len(record(described(shape=(2**29,)))) + 2**31
    for magic, at in {b"PK\x03\x04": 22, b"PK\x01\x02": 24}.items():
        start = content.index(magic) + at
        content = content[:start] + size.to_bytes(4, "little") + content[start + 4 :]
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bytes of arrays in .* bytes on disk"):
        checkpoints.load(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["../../x.npy", "/etc/x.npy", "a\\..\\x.npy", "\u202egnp.npy"])
def test_names_are_only_names(name, tmp_path):
    (tmp_path / "x.npz").write_bytes(packed(record(described(), bytes(8)), name))
    checkpoint = checkpoints.load(tmp_path / "x.npz")
    assert list(checkpoint.leaves) == [name.removesuffix(".npy")]
    assert checkpoint.read_all()[name.removesuffix(".npy")].tolist() == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_truncations_are_one_error(save, tmp_path):
    save(tmp_path / "x.npz", **LEAVES)
    content = (tmp_path / "x.npz").read_bytes()
    for length in range(1, len(content), 37):
        (tmp_path / "x.npz").write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            checkpoints.load(tmp_path / "x.npz")
