"""No trick of a pickle hides a call: opcodes, memo, names, states, what Python reads and pickletools does not.

All programs are written by hand, from the semantics of `pickle.Unpickler`; `profile.run` and `m.f` stand for anything.
"""

import base64
import pickle

import numpy as np
import pytest

from jaxguard import checkpoints

RUN = b"cprofile\nrun\n)R"
"""A call in any protocol."""

FOREIGN = b"cm\nf\n"
"""A name that no list knows."""


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def held(value: bytes) -> bytes:
    return b"B" + len(value).to_bytes(4, "little") + value


def called(program: bytes, tmp_path, name: str = "x.pkl") -> list[str]:
    (tmp_path / name).write_bytes(program)
    return [call.callable for call in checkpoints.examine(tmp_path / name).calls]


GOES_ON = {
    "hexadecimal integer": b"I0x10\n0",
    "integer with an underscore": b"I1_0\n0",
    "hexadecimal long": b"L0xFFL\n0",
    "integer of 3,000 bits": b"\x8b\x77\x01\x00\x00" + b"\x7f" * 375 + b"0",
    "text in another code page": b"S'\\xff\\xfe'\n0",
    "module that is not ASCII": "cmodèle\nNet\n0".encode(),
    "entry of a list": b"]I1\naI0\nI2\ns0",
    "bytes that grow": b"\x96\x01\x00\x00\x00\x00\x00\x00\x00a(I1\nI2\ne0",
    "entry of bytes": b"\x96\x01\x00\x00\x00\x00\x00\x00\x00aI0\nI2\ns0",
    "buffer from outside": b"\x80\x05\x97\x980",
    "persistent id as text": b"Pabc\n0",
    "persistent id": text("abc") + b"Q0",
    "endless name": b"c" + b"a" * 5000 + b"\nb\n0",
    "frame": b"\x80\x04\x95\x01\x00\x00\x00\x00\x00\x00\x00N0",
    "mark that is dropped": b"(0",
    "many names": b"".join(b"cm%d\nf\n0" % n for n in range(10_001)),
    "protocol in the middle": b"N0\x80\x02",
}
"""Programs that leave nothing on the stack, and that not every reader of pickles survives."""


@pytest.mark.parametrize("kind", GOES_ON)
def test_what_python_survives_hides_nothing(kind, tmp_path):
    assert "profile.run" in called(GOES_ON[kind] + RUN + b".", tmp_path)


def test_a_long_way_to_the_call(tmp_path):
    assert called(b"\x80\x02" + b"N0" * 1_100_000 + RUN + b".", tmp_path) == ["profile.run"]


BREAKS = {
    "unknown opcode": b"\xff",
    "end of the file": b"",
    "unknown memo": b"h\x07.",
    "text that ends early": b"X\xff\xff\xff\x7fabc",
    "unknown codec": b"\x8c\x02\xff\xfe.",
}


@pytest.mark.parametrize("kind", BREAKS)
def test_calls_before_an_error_have_been_made(kind, tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02" + RUN + BREAKS[kind])
    code = checkpoints.examine(tmp_path / "x.pkl")
    assert "profile.run" in [call.callable for call in code.calls]
    assert code.problem


NAMES = {
    "dotted": (b"\x80\x04" + text("os") + text("path.os.system") + b"\x93)R.", "os.path.os.system"),
    "memo in the wrong order": (
        b"\x80\x04" + text("run") + b"\x94" + text("profile") + b"\x9400h\x01h\x00\x93)R.",
        "profile.run",
    ),
    "memo written twice": (b"\x80\x02cbuiltins\nset\nq\x000cprofile\nrun\nq\x000h\x00)R.", "profile.run"),
    "memo by text": (b"cprofile\nrun\np007\n0g7\n)R.", "profile.run"),
    "memo far out": (b"\x80\x02cprofile\nrun\nr\xff\xff\xff\xff0j\xff\xff\xff\xff)R.", "profile.run"),
    "twice on the stack": (b"cprofile\nrun\n2)R.", "profile.run"),
    "extension of one byte": (b"\x80\x02\x82\xf0)R.", "copyreg.extension_240"),
    "extension of two bytes": (b"\x80\x02\x83\x00\x01)R.", "copyreg.extension_256"),
    "extension of four bytes": (b"\x80\x02\x84\x00\x00\x01\x00)R.", "copyreg.extension_65536"),
    "computed by a constructor": (
        b"\x80\x04" + text("m") + b"cbuiltins\nstr\n" + text("f") + b"\x85R\x93)R.",
        "a name that is computed",
    ),
    "attributes of what is allowed": (b"ccollections\nOrderedDict.__reduce__.__globals__\n)R.", None),
    "chain of getattr": (
        b"cbuiltins\ngetattr\n(ccollections\nOrderedDict\n" + text("fromkeys") + b"tR)R.",
        "builtins.getattr",
    ),
    "persistent type of a storage": (
        b"\x80\x02(" + text("storage") + FOREIGN + text("0") + text("cpu") + b"K\x01tQ.",
        "m.f",
    ),
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_are_followed_wherever_they_come_from(kind, tmp_path):
    program, name = NAMES[kind]
    found = called(program, tmp_path)
    assert found if name is None else name in found


INDIRECT = {
    "called by a constructor": b"ctorch._tensor\n_rebuild_from_type_v2\n(" + FOREIGN + b"cbuiltins\nint\n)NtR.",
    "called by what a constructor calls": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\ncbuiltins\nint\n("
        + FOREIGN
        + b"cbuiltins\nint\n)NtNtR."
    ),
    "called by jax": b"cjax._src.array\n_reconstruct_array\n(" + FOREIGN + b")NNtR.",
    "class of a generator": b"cnumpy.random._pickle\n__randomstate_ctor\n(" + text("MT19937") + FOREIGN + b"tR.",
    "class to be made": b"ccopyreg\n__newobj__\n(" + FOREIGN + b"tR.",
    "arguments in a list": b"ccollections\ndefaultdict\n(" + FOREIGN + b"lR.",
    "hook of a module that is called": (
        b"ctorch.nn.modules.linear\nLinear\n)\x81}" + text("_forward_pre_hooks") + b"}I0\n" + FOREIGN + b"ssb)R."
    ),
    "method in a state": b"cargparse\nNamespace\n)R}" + text("append") + FOREIGN + b"sbNa.",
    "method in a state that is computed": (
        b"cargparse\nNamespace\n)Rcbuiltins\ndict\n(](" + text("append") + FOREIGN + b"tatRbNa."
    ),
    "method in the slots": b"cargparse\nNamespace\n)R(N}" + text("extend") + FOREIGN + b"stb(Ne.",
    "state setter in a state": b"cargparse\nNamespace\n)R}" + text("__setstate__") + FOREIGN + b"sb}b.",
    "method as an argument": b"ctypes\nSimpleNamespace\n(}" + text("append") + FOREIGN + b"stRNa.",
    "class of an array of joblib": (
        b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}(" + text("subclass") + FOREIGN + text("shape") + b")"
        + text("dtype") + b"cnumpy\ndtype\n" + text("f4") + b"\x85Rubx"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", INDIRECT)
def test_functions_that_others_call_are_found(kind, tmp_path):
    found = called(INDIRECT[kind], tmp_path)
    assert any(name.startswith(("m.f", "torch.nn.modules.linear.Linear(")) for name in found), found


OPENS = {
    "memory map that writes": b"cnumpy\nmemmap\n(" + text("x") + text("uint8") + text("w+") + b"tR.",
    "codec that is a module": b"c_codecs\nencode\n(" + text("x") + text("mine") + b"tR.",
    "bytes that are computed": b"ctorch.storage\n_load_from_bytes\ncbuiltins\nbytes\n](K\x80K\x02e\x85R\x85R.",
    "instance that is called": b"ccollections\nOrderedDict\n)R)R.",
}


@pytest.mark.parametrize("kind", OPENS)
def test_allowed_names_are_allowed_in_their_place_only(kind, tmp_path):
    assert called(OPENS[kind], tmp_path)


INSIDE = {
    "bytes": b"\x80\x03ctorch.storage\n_load_from_bytes\n" + held(RUN + b".") + b"\x85R.",
    "text": b"ctorch.storage\n_load_from_bytes\nc_codecs\nencode\n(Vcprofile\\u000arun\\u000a)R.\nVlatin1\ntR\x85R.",
    "without a beginning": b"\x80\x03ctorch.storage\n_load_from_bytes\n" + held(b"I1\n0" + RUN + b".") + b"\x85R.",
    "twice": (
        b"\x80\x03ctorch.storage\n_load_from_bytes\n"
        + held(b"\x80\x03ctorch.storage\n_load_from_bytes\n" + held(RUN + b".") + b"\x85R.")
        + b"\x85R."
    ),
}


@pytest.mark.parametrize("kind", INSIDE)
def test_pickles_in_pickles_are_followed(kind, tmp_path):
    assert called(INSIDE[kind], tmp_path) == ["profile.run"]


def test_pickles_in_pickles_have_an_end(tmp_path):
    program = RUN + b"."
    for _ in range(8):
        program = b"\x80\x03ctorch.storage\n_load_from_bytes\n" + held(program) + b"\x85R."
    (tmp_path / "x.pkl").write_bytes(program)
    assert "files in files up to 4 deep" in checkpoints.examine(tmp_path / "x.pkl").problem


@pytest.mark.parametrize("encode", [bytes, bytes.hex, base64.b64encode])
def test_a_pickle_that_is_only_data_is_a_note(encode, tmp_path):
    inner = encode(b"\x80\x04cprofile\nrun\n" + text("pass") + b"\x85R.")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"note": "n" * 40, "payload": inner}, 4))
    code = checkpoints.examine(tmp_path / "x.pkl")
    assert not code.calls
    assert code.notes == ("It holds a pickle as data that would call profile.run where unpickled.",)


def test_every_pickle_of_a_row_is_followed(tmp_path):
    """The legacy container of PyTorch: magic number, protocol, system, objects, keys; then the storages."""
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    row = [magic, b"\x80\x02M\xe9\x03.", b"\x80\x02}.", b"\x80\x02}.", b"\x80\x02]."]
    assert called(b"".join([*row, bytes(64)]), tmp_path) == []
    for k in range(5):
        for program in (b"\x80\x02" + RUN + b".", b"I1\n0" + RUN + b"."):
            assert called(b"".join([*row[:k], program, *row[k + 1 :], bytes(64)]), tmp_path) == ["profile.run"]


def test_a_file_is_what_it_holds(tmp_path):
    for name in ("weights", "x.7z", "x.zip", "x.txt", "x.safetensors", "x.npy", "x.h5", "x.bin", "x.onnx"):
        assert called(b"\x80\x02" + RUN + b".", tmp_path, name) == ["profile.run"], name
        assert called(b"I1\n0" + RUN + b".", tmp_path, name) == ["profile.run"], name


def test_what_is_no_pickle_is_named_where_it_should_be_one(tmp_path):
    noise = np.random.default_rng(0).bytes(1000)
    (tmp_path / "x.pkl").write_bytes(b"\xff" + noise)
    assert "expected a pickle" in checkpoints.examine(tmp_path / "x.pkl").problem
    (tmp_path / "x.bin").write_bytes(b"\xff" + noise)
    assert checkpoints.examine(tmp_path / "x.bin").notes == (
        "x.bin begins like no pickle, and was not followed as one.",
    )
    for name in ("README", "x.txt", "x.csv", "x.py", "x.json"):
        (tmp_path / name).write_text("import os\n\nconfig = (os.system)\ncos\nsystem\n")
        assert checkpoints.examine(tmp_path / name) == checkpoints.Code()


@pytest.mark.parametrize("protocol", range(6))
def test_random_states_and_arrays_call_nothing(protocol, tmp_path):
    values = [np.random.default_rng(0), np.random.RandomState(0), np.ma.array([1.0], mask=[True]), np.float32(1)]
    assert called(pickle.dumps(values, protocol), tmp_path) == []


CLASSES = {
    "optimizer state of optax": "optax._src.transform ScaleByAdamState",
    "layer of torchvision": "torchvision.models.resnet BasicBlock",
    "estimator of scikit-learn": "sklearn.linear_model._logistic LogisticRegression",
}


@pytest.mark.parametrize("kind", CLASSES)
def test_objects_of_known_libraries_are_made_but_not_called(kind, tmp_path):
    line = CLASSES[kind].replace(" ", "\n").encode() + b"\n"
    state = b"}" + text("weight") + b"K\x01sb."
    assert called(b"\x80\x02c" + line + b")\x81" + state, tmp_path) == []
    assert called(b"ccopyreg\n_reconstructor\n(c" + line + b"cbuiltins\nobject\nNtR" + state, tmp_path) == []
    assert called(b"\x80\x02c" + line + FOREIGN + b"\x85R.", tmp_path) == [CLASSES[kind].replace(" ", ".")]
