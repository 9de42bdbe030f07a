"""Archives, compressed files and other containers hide no call; what they hold beside is passed over."""

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile
import zlib

import numpy as np
import pytest

from jaxguard import checkpoints

RUN = b"\x80\x02cprofile\nrun\n)R."
PLAIN = b"\x80\x02}."


def names(path) -> list[str]:
    return [call.callable for call in checkpoints.examine(path).calls]


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(members: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def npy(header: str, body: bytes, version: int = 1) -> bytes:
    width = 2 if version == 1 else 4
    return b"\x93NUMPY" + bytes([version, 0]) + len(header).to_bytes(width, "little") + header.encode() + body


OBJECTS = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
NUMBERS = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n"

CONTAINERS = {
    "unusual name in a zip": zipped({"archive/weights": RUN}),
    "name of another kind in a zip": zipped({"archive/version": RUN, "byteorder": b"little"}),
    "second of two members of one name": zipped({"a/x.pkl": PLAIN, "a/y.pkl": RUN}).replace(b"y.pkl", b"x.pkl"),
    "deflated": zipped({"a/data.pkl": RUN}, zipfile.ZIP_DEFLATED),
    "bzip2 in a zip": zipped({"a/data.pkl": RUN}, zipfile.ZIP_BZIP2),
    "pickle before a zip": RUN + zipped({"a/data.pkl": PLAIN}),
    "zip behind a pickle": PLAIN + zipped({"a/data.pkl": RUN}),
    "zip in a zip": zipped({"inner.zip": zipped({"a/data.pkl": RUN})}),
    "zip in a tar": tarred({"inner": zipped({"a/data.pkl": RUN})}),
    "old tar of PyTorch": tarred({"sys_info": PLAIN, "pickle": RUN}),
    "between the numbers of an old tar": tarred({"storages": b"\x80\x02K\x02.\x80\x02)." + bytes(100) + RUN}),
    "old format of tar": tarred({"pickle": RUN}, tarfile.USTAR_FORMAT),
    "gzip": gzip.compress(RUN),
    "bzip2": bz2.compress(RUN),
    "xz": lzma.compress(RUN),
    "zlib": zlib.compress(RUN),
    "gzip in gzip": gzip.compress(gzip.compress(RUN)),
    "tar in gzip": gzip.compress(tarred({"pickle": RUN})),
    "array of objects": npy(OBJECTS, RUN),
    "header in other quotes": npy(OBJECTS.replace("'", '"'), RUN),
    "header with an escape": npy(OBJECTS.replace("descr", "\\x64escr"), RUN),
    "header of the second version": npy(OBJECTS, RUN, 2),
    "endless header": npy(OBJECTS.rstrip() + " " * 3000 + "\n", RUN),
    "structured array of objects": npy(OBJECTS.replace("'|O'", "[('a', '<f4'), ('b', '|O')]"), RUN),
    "array of objects in a zip": zipped({"a.npy": npy(OBJECTS, RUN)}),
    "endless header in a zip": zipped({"a.npy": npy(OBJECTS.rstrip() + " " * 3000 + "\n", RUN)}),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_calls_are_found_in_every_container(kind, tmp_path):
    for name in ("x.pt", "x"):
        (tmp_path / name).write_bytes(CONTAINERS[kind])
        assert names(tmp_path / name) == ["profile.run"]


def test_what_nobody_unpickles_is_passed_over(tmp_path):
    for content in (
        zipped({"a/data.pkl": PLAIN, "a/data/0": RUN}),
        npy(NUMBERS, RUN),
        zipped({"a.npy": npy(NUMBERS, RUN)}),
    ):
        (tmp_path / "x.pt").write_bytes(content)
        assert checkpoints.examine(tmp_path / "x.pt") == checkpoints.Code()


def test_what_cannot_be_opened_is_named(tmp_path):
    for content, found in (
        (b"7z\xbc\xaf\x27\x1c" + bytes(100), "7z compression"),
        (b"\x04\x22\x4d\x18" + bytes(100), "lz4 compression"),
        (zipped({"a/data.pkl": RUN})[:60], "not a zip file"),
        (gzip.compress(RUN)[:-4], "end-of-stream"),
    ):
        (tmp_path / "x.pt").write_bytes(content)
        assert found in checkpoints.examine(tmp_path / "x.pt").problem
    # A flag alone encrypts nothing, and lenient loaders read past it.
    content = bytearray(zipped({"a/data.pkl": RUN}))
    content[content.rfind(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.pt").write_bytes(content)
    code = checkpoints.examine(tmp_path / "x.pt")
    assert [call.callable for call in code.calls] == ["profile.run"]
    assert "said to be encrypted" in code.notes[0]


def test_no_tensor_is_read(tmp_path):
    """Two gigabytes that are not there: a sparse file is read as far as its pickle."""
    with (tmp_path / "x.npy").open("wb") as file:
        file.write(npy(NUMBERS, b""))
        file.truncate(2**31)
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.write((16).to_bytes(8, "little") + b"{" + b" " * 14 + b"}")
        file.truncate(2**31)
    for name in ("x.npy", "x.safetensors"):
        assert checkpoints.examine(tmp_path / name) == checkpoints.Code()


def test_arrays_of_joblib_stand_between_opcodes(tmp_path):
    """Written as joblib 1.5 does: the state of the wrapper, the padding, the elements, the rest of the pickle."""
    state = {"shape": (2,), "order": "C", "dtype": np.dtype("<f4"), "allow_mmap": True}
    state["numpy_array_alignment_bytes"] = 16
    opened = pickle.dumps(state, 4)[11:-1]  # without PROTO, FRAME and STOP
    wrapper = b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81" + opened + b"b"
    for padding in (b"\x03\xff\xff\xff", b"\x00"):
        array = b"\x80\x04](" + wrapper + padding + np.ones(2, np.float32).tobytes()
        (tmp_path / "x.joblib").write_bytes(array + b"e.")
        assert checkpoints.examine(tmp_path / "x.joblib") == checkpoints.Code()
        (tmp_path / "x.joblib").write_bytes(array + b"cprofile\nrun\n)Re.")
        assert names(tmp_path / "x.joblib") == ["profile.run"]
    state["dtype"] = np.dtype("O")
    wrapper = b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81" + pickle.dumps(state, 4)[11:-1] + b"b"
    (tmp_path / "x.joblib").write_bytes(b"\x80\x04](" + wrapper + RUN + b"e.")
    assert names(tmp_path / "x.joblib") == ["profile.run"]


def test_objects_in_a_table_of_pandas(tmp_path):
    """PyTables keeps objects as pickles among the other data of HDF5."""
    content = b"\x89HDF\r\n\x1a\n" + bytes(64) + b"PYTABLES_FORMAT_VERSION" + bytes(64) + RUN + bytes(64)
    (tmp_path / "x.h5").write_bytes(content)
    assert names(tmp_path / "x.h5") == ["profile.run"]
