"""Pickles as data: plain values come back, everything else stays inert, and no lie does more than raise one error."""

import argparse
import builtins
import collections
import os
import pathlib
import pickle
import subprocess
import sys
import time

import flax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch_bytes as handmade
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxguard import checkpoints
from jaxguard.checkpoints import pickle_machine, pickle_objects, pickle_program, pickled
from jaxguard.errors import CheckpointError, UnsupportedError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "pytorch"
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
QUICK = 20.0  # seconds of this process; without its guard each of these files takes hours


def read(content: bytes) -> object:
    return pickle_program.read(content, "demo", pickled.BUILDERS).result


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(-(2**60), 2**60), inner)
    ),
    max_leaves=20,
)


def decoded(found: object) -> object:
    """Bytes that Python 3 wrote for Python 2 stay encoded until somebody needs them."""
    if isinstance(found, dict):
        return {key: decoded(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return type(found)(map(decoded, found))
    return bytes(found) if type(found).__name__ == "Encoded" else found


@given(value=VALUES, protocol=st.sampled_from(PROTOCOLS))
@settings(max_examples=100, deadline=None)
def test_plain_values_come_back(value, protocol):
    assert decoded(read(pickle.dumps(value, protocol))) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_containers_come_back_as_plain_ones(protocol):
    values = {
        "ordered": collections.OrderedDict(a=1, b=2),
        "default": collections.defaultdict(list, {"a": [1]}),
        "counter": collections.Counter("aab"),
        "deque": collections.deque([1, 2]),
        "bytearray": bytearray(b"ab"),
    }
    expected = {"ordered": {"a": 1, "b": 2}, "default": {"a": [1]}, "counter": {"a": 2, "b": 1}, "deque": [1, 2]}
    found = read(pickle.dumps(values, protocol))
    assert isinstance(found, dict)
    assert bytes(found.pop("bytearray")) == b"ab"
    assert {key: getattr(value, "elements", None) or value for key, value in found.items()} == expected


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_sets_come_back_as_lists_and_namespaces_as_records(protocol):
    ones, frozen, namespace = read(pickle.dumps([{1}, frozenset({2}), argparse.Namespace(lr=0.5)], protocol))  # pyright: ignore
    assert (ones, frozen) == ([1], [2])
    assert isinstance(namespace, pickle_objects.Record)
    assert (namespace.name, namespace.state) == ("argparse.Namespace", {"lr": 0.5})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pickles_of_arrays_open_under_nested_names(protocol, tmp_path):
    leaves = {
        "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "swapped": np.arange(3, dtype=">i4"),
        "strided": np.arange(10)[::3],
        "brain": np.array([1.5, -2.0], ml_dtypes.bfloat16),
        "empty": np.zeros((0, 3), np.float16),
        "flags": np.array([True, False]),
    }
    content = {"params": {"dense": leaves}, "step": np.float64(2.5), "opt_state": [np.ones(3)]}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
    checkpoint = checkpoints.load(tmp_path / "x.pkl")
    assert (checkpoint.format, checkpoint.metadata) == ("pickle", {"step": "2.5"})
    assert checkpoint.left_out == {"opt_state/0": "optimizer state"}
    found = checkpoint.read_all()
    assert found.keys() == {f"params/dense/{name}" for name in leaves}
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(found[f"params/dense/{name}"], leaf)
        assert found[f"params/dense/{name}"].dtype == leaf.dtype.newbyteorder("=")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pickles_of_jax_arrays_and_frozen_dicts(protocol, tmp_path):
    variables = {"params": {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3, jnp.bfloat16)}}}
    for content in (variables, flax.core.freeze(variables)):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
        checkpoint = checkpoints.load(tmp_path / "x.pkl")
        assert checkpoint.metadata == {}
        found = checkpoint.read_all()
        assert {name: (leaf.shape, leaf.dtype.name) for name, leaf in found.items()} == {
            "params/dense/kernel": ((2, 3), "float32"),
            "params/dense/bias": ((3,), "bfloat16"),
        }
        assert all((leaf == 1).all() for leaf in found.values())


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_tensors_pickled_without_torch_save(protocol):
    checkpoint = checkpoints.load(GOLDEN / f"plain_{protocol}.pkl")
    expected = checkpoints.load(GOLDEN / "state_dict.safetensors").read_all()
    found = checkpoint.read_all()
    assert (checkpoint.format, checkpoint.metadata) == ("pickle", {"epoch": "3", "state_dict": "model"})
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, strict=True)


def test_storages_in_a_pickle_are_counted(tmp_path):
    stream = handmade.legacy(handmade.storage())
    call = b"ctorch.storage\n_load_from_bytes\ng0\n\x85R0"
    program = b"\x80\x02B" + len(stream).to_bytes(4, "little") + stream + b"p0\n0" + call * 1000 + b"N."
    (tmp_path / "x.pkl").write_bytes(program)
    with pytest.raises(CheckpointError, match="more in them than in the file"):
        checkpoints.load(tmp_path / "x.pkl")


def test_arrays_that_python_2_pickled(tmp_path):
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR"
    dtype = b"cnumpy\ndtype\n(U\x02f8I0\nI1\ntR(I3\nU\x01>NNNI-1\nI-1\nI0\ntb"
    content = b"\xbf\xf8" + bytes(6) + b"\x40\x00" + bytes(6)
    state = b"(I1\n(I2\nt" + dtype + b"I00\nU\x10" + content + b"tb"
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02}U\x01w" + made + state + b"s.")
    assert checkpoints.load(tmp_path / "x.pkl").read("w").tolist() == [-1.5, 2.0]


@pytest.mark.parametrize("name", ["numpy.core", "numpy._core"])
def test_both_spellings_of_numpy(name, tmp_path):
    array = pickle.dumps([np.arange(3.0)], 2).replace(b"numpy._core.multiarray", name.encode() + b".multiarray")
    (tmp_path / "x.pkl").write_bytes(array)
    assert checkpoints.load(tmp_path / "x.pkl").read("0").tolist() == [0.0, 1.0, 2.0]


def test_arrays_of_objects_are_refused(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"w": np.array([None, "x"], dtype=object)}))
    with pytest.raises(
        UnsupportedError, match=r"other kinds alone \('w': an array of element type 'O8'\), which is not supported"
    ):
        checkpoints.load(tmp_path / "x.pkl")


class Gadget:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def gadgets(trace: pathlib.Path) -> dict[str, Gadget]:
    command, source = f"touch {trace}", f"open({str(trace)!r}, 'w')"
    return {
        "system": Gadget(os.system, command),
        "eval": Gadget(builtins.eval, source),
        "exec": Gadget(builtins.exec, source),
        "open": Gadget(open, str(trace), "w"),
        "popen": Gadget(subprocess.Popen, ["touch", str(trace)]),
        "import": Gadget(__import__, "antigravity"),
        "getattr": Gadget(getattr, Gadget(__import__, "os"), "system"),
        "nested": Gadget(print, Gadget(os.mkdir, str(trace))),
    }


def containers(program: bytes) -> dict[str, bytes]:
    """The pickle alone, beside a tensor in both of PyTorch's containers, and in place of the legacy header."""
    body = program[:-1]
    beside = b"}(" + handmade.text("w") + handmade.tensor() + handmade.text("x") + body + b"u"
    return {
        "plain": program,
        "zip": handmade.zipped(body),
        "zip beside a tensor": handmade.zipped(beside),
        "stream": handmade.legacy(body),
        "stream beside a tensor": handmade.legacy(beside),
        "header of a stream": handmade.LEGACY_HEAD.replace(b"}.", program),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", gadgets(pathlib.Path()))
def test_gadgets_are_named_and_never_run(kind, protocol, tmp_path):
    trace = tmp_path / "executed"
    program = pickle.dumps(gadgets(trace)[kind], protocol)
    for content in containers(program).values():
        (tmp_path / "x.pt").write_bytes(content)
        assert checkpoints.examine(tmp_path / "x.pt").calls
    assert not trace.exists()


def test_names_of_attributes_do_not_hide_a_gadget(tmp_path):
    for names in (
        b"ctorch\nos.system\n",
        b"ctorch.serialization\nos.popen\n",
        b"cbuiltins\neval\n",
        b"c__builtin__\nexecfile\n",
    ):
        (tmp_path / "x.pt").write_bytes(handmade.zipped(names + b"(" + handmade.text("id") + b"tR"))
        assert checkpoints.examine(tmp_path / "x.pt").calls


@pytest.mark.parametrize("with_tensor", [True, False])
def test_a_class_that_could_be_imported_is_not(with_tensor, tmp_path, monkeypatch):
    (tmp_path / "innocent_looking.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    call = b"cinnocent_looking\nhelper\n(" + handmade.text("x") + b"tR}b"
    program = handmade.mapping(**({"fc.w": handmade.tensor()} if with_tensor else {}), x=call)
    (tmp_path / "x.pt").write_bytes(handmade.zipped(program))
    if with_tensor:
        metadata = checkpoints.load(tmp_path / "x.pt").metadata
        assert metadata == {"foreign_classes": "innocent_looking.helper", "x.0": "x"}
    else:
        with pytest.raises(CheckpointError, match=r"got one without any, but references to innocent_looking\.helper"):
            checkpoints.load(tmp_path / "x.pt")
    assert not (tmp_path / "executed").exists()
    assert "innocent_looking" not in sys.modules


HOSTILE = {
    "empty": (b"", "exhausted"),
    "no stop": (b"}", "exhausted"),
    "unknown opcode": (b"\xff.", "unknown"),
    "nothing on the stack": (b".", "more than is on the stack"),
    "pop of nothing": (b"0.", "more than is on the stack"),
    "dup of nothing": (b"2.", "empty stack"),
    "tuple of what is not there": (b"N\x87.", "more than is on the stack"),
    "taken from below a mark": (b"N(\x85.", "more than is on the stack"),
    "tuple without a mark": (b"t.", "without one"),
    "append to a dict": (b"}Na.", "items added to a dict"),
    "append to a tuple": (b")Na.", "items added to a tuple"),
    "entry of a list": (b"]NNs.", "entries set in a list"),
    "half an entry": (b"}(Nu.", "a key without a value"),
    "memo never written": (b"h\x07.", "unknown memo 7"),
    "memo far out": (b"Np99999999999\n.", "memo index out of range"),
    "memo below zero": (b"Np-1\n.", "memo index out of range"),
    "memo that is no number": (b"Npx\n.", "invalid literal"),
    "called number": (b"I1\n)R.", "a call of a int"),
    "arguments that are none": (b"ca\nb\nNR.", "arguments that are a NoneType"),
    "global of numbers": (b"\x80\x04I1\nI2\n\x93.", "whose name is no text"),
    "global with an endless name": (b"c" + b"a" * 5000 + b"\nb\n.", "at most 1000 characters"),
    "text persistent id": (b"Pabc\n.", "data outside of the file"),
    "persistent id": (b"NQ.", "outside of the pickle"),
    "buffer from outside": (b"\x80\x05\x97.", "data outside of the file"),
    "string longer than the file": (b"X\xff\xff\xff\x7fabc.", "expected 2147483647 bytes"),
    "string longer than memory": (b"\x8d" + b"\xff" * 7 + b"\x7fabc.", "expected|byte count"),
    "string that is not UTF-8": (b"X\x02\x00\x00\x00\xff\xfe.", "codec can't decode"),
    "integer of many digits": (b"L" + b"9" * 5000 + b"L\n.", "4300"),
    "integer of many bytes": (b"\x8b\x00\x01\x00\x00" + b"\x7f" * 256 + b".", "an integer of 2047 bits"),
    "negative length": (b"\x8b\xff\xff\xff\xff.", "byte count < 0"),
    "number that is none": (b"Fabc\n.", "could not convert"),
    "wrong arguments of a builder": (b"cnumpy\ndtype\n)R.", "missing 1 required"),
    "array of a wrong size": (
        b"cnumpy._core.numeric\n_frombuffer\n(C\x02abcnumpy\ndtype\n(X\x02\x00\x00\x00f4tRI3\n\x85tR.",
        "an array of 12 bytes with 2 bytes",
    ),
    "array of sizes below zero": (
        b"cnumpy._core.numeric\n_frombuffer\n(C\x02abcnumpy\ndtype\n(X\x02\x00\x00\x00f4tRI-3\n\x85tR.",
        "a shape",
    ),
    "dictionary of a string": (b"ccollections\nOrderedDict\n(X\x01\x00\x00\x00atR.", "a dictionary made from a str"),
    "too many opcodes": (b"N0" * (pickle_machine.MAX_OPCODES // 2) + b"N.", "opcodes"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_broken_programs_are_one_error(case):
    content, message = HOSTILE[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        read(content)
    assert len(str(caught.value)) < 600


def doubled(depth: int, inner: bytes) -> bytes:
    """Lists of which each holds the one before twice: 2 ** depth places in a few bytes each."""
    return b"](" + inner + b"e" + b"".join(b"p%d\n0](g%d\ng%d\ne" % (i, i, i) for i in range(depth))


@pytest.mark.parametrize("wrap", [handmade.zipped, handmade.legacy])
def test_exponential_sharing_is_not_followed(wrap, tmp_path):
    for inner, message in (
        (b"N", "got one without any"),
        (handmade.tensor(), "got more"),
        (b"ca\nb\n)R", "got one without any"),
    ):
        storages = None if b"storage" in inner else {}
        (tmp_path / "x.pt").write_bytes(wrap(doubled(60, inner), storages))
        start = time.process_time()
        with pytest.raises(CheckpointError, match=message):
            checkpoints.load(tmp_path / "x.pt")
        assert time.process_time() - start < QUICK


@pytest.mark.parametrize("inner", [b"](" + b"N" * 6 + b"e", b"ca\nb\n)R"])
def test_messages_do_not_show_what_is_shared(inner, tmp_path):
    program = inner + b"".join(
        b"p%d\n0](" % i + b"g%d\n" % i * 6 + b"ep%d\n0ca\nb\n(g%d\ntR" % (i + 50, i + 50) for i in range(50)
    )
    for content in (
        handmade.zipped(b"(" + handmade.text("storage") + program + handmade.text("0") + b"NI6\ntQ"),
        handmade.LEGACY_HEAD + b"N." + program + b".",
        handmade.LEGACY_HEAD.replace(b"\x8a\nl\xfc", program + b"\x8a\nl\xfc"),
    ):
        (tmp_path / "x.pt").write_bytes(content)
        start = time.process_time()
        with pytest.raises(CheckpointError) as caught:
            checkpoints.load(tmp_path / "x.pt")
        assert time.process_time() - start < QUICK
        assert len(str(caught.value)) < 1500


def test_keys_are_not_hashed_deeply(tmp_path):
    """The hash of a tuple visits all of its places, so nested tuples as keys would take for ever."""
    chain = b"N\x85" + b"".join(b"p%d\n0g%d\ng%d\n\x86" % (i, i, i) for i in range(60))
    program = b"}(" + chain + b"N" + handmade.text("fc.w") + handmade.tensor() + b"u"
    (tmp_path / "x.pt").write_bytes(handmade.zipped(program))
    start = time.process_time()
    assert list(checkpoints.load(tmp_path / "x.pt").leaves) == ["fc.w"]
    assert time.process_time() - start < QUICK


def test_one_list_is_not_copied_again_and_again(tmp_path):
    size = 200_000
    calls = b"".join(b"ccollections\ndeque\ng0\n\x85R0" for _ in range(size // 10))
    (tmp_path / "x.pt").write_bytes(handmade.zipped(b"](" + b"N" * size + b"ep0\n" + calls, compression=8))
    start = time.process_time()
    with pytest.raises(CheckpointError, match="functions called on more than"):
        checkpoints.load(tmp_path / "x.pt")
    assert time.process_time() - start < QUICK


SHARED = b"}p0\n(" + b"".join(handmade.text(str(i)) + b"N" for i in range(50_000)) + b"u0"
LAYER = handmade.mapping(**{"fc.w": handmade.tensor()})
OFTEN = b"".join(handmade.text(f"x{i}") + b"g0\n" for i in range(50_000))
STATE = b"}(" + handmade.text("_parameters") + LAYER + handmade.text("_modules") + b"}"
STATE += handmade.text("_non_persistent_buffers_set") + b"g0\nu"
REPEATED = {
    "beside the model": (SHARED + b"}(" + handmade.text("net") + LAYER + OFTEN + b"u", None),
    "around tensors": (
        SHARED[:-1]
        + handmade.text("w")
        + handmade.tensor()
        + b"s0}("
        + handmade.text("net")
        + LAYER[:-1]
        + OFTEN
        + b"uu",
        "got more",
    ),
    "as state": (
        SHARED + b"ca\nb\n)R(" + b"g0\n" * 50_000 + handmade.tensor() + b"tbp1\n0](" + b"g1\n" * 50_000 + b"e",
        "got one without any, but references to a.b",
    ),
    "as attributes": (
        SHARED[:-1] + handmade.text("w") + handmade.tensor() + b"s0ca\nb\n)Rg0\nbp1\n0](" + b"g1\n" * 50_000 + b"e",
        "got more",
    ),
    "as buffers": (
        SHARED.replace(b"}p0", b"]p0").replace(b"u0", b"e0")
        + b"ca\nb\n)R"
        + STATE
        + b"bp1\n0]("
        + b"g1\n" * 50_000
        + b"e",
        None,
    ),
}


@pytest.mark.parametrize("case", REPEATED)
def test_one_dictionary_in_many_places_is_not_walked_for_each(case, tmp_path):
    program, message = REPEATED[case]
    (tmp_path / "x.pt").write_bytes(handmade.zipped(program))
    start = time.process_time()
    if message is None:
        assert checkpoints.load(tmp_path / "x.pt").leaves
    else:
        with pytest.raises(CheckpointError, match=message):
            checkpoints.load(tmp_path / "x.pt")
    assert time.process_time() - start < QUICK


CIRCLES = {
    "list in itself": (b"]p0\ng0\na" + handmade.tensor() + b"a", None),
    "state dict in itself": (
        b"}p0\n(" + handmade.text("w") + handmade.tensor() + handmade.text("x") + b"g0\nu",
        None,
    ),
    "without tensors": (b"]p0\ng0\na", "got one without any"),
    "deep": (b"]" * 100_000 + b"a" * 99_999, "got one without any"),
    "deep around a tensor": (b"]" * 100_000 + handmade.tensor() + b"a" * 100_000, "at most 64 levels"),
    "deep tuples": (b"N" + b"\x85" * 100_000, "got one without any"),
    "deep calls": (b"ca\nb\n" * 1000 + b")R" + b"\x85R" * 999, "got one without any, but references to a.b"),
}


@pytest.mark.parametrize("case", CIRCLES)
def test_circles_and_depth_end(case, tmp_path):
    program, message = CIRCLES[case]
    (tmp_path / "x.pt").write_bytes(handmade.zipped(program))
    if message is None:  # no array is new in a circle
        assert len(checkpoints.load(tmp_path / "x.pt").leaves) == 1
        return
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(tmp_path / "x.pt")


def test_a_circle_beside_the_model_does_no_harm(tmp_path):
    program = (
        b"}p0\n("
        + handmade.text("net")
        + handmade.mapping(**{"fc.w": handmade.tensor()})
        + handmade.text("up")
        + b"g0\nu"
    )
    (tmp_path / "x.pt").write_bytes(handmade.zipped(program))
    assert list(checkpoints.load(tmp_path / "x.pt").leaves) == ["fc.w"]


def test_every_truncation_of_a_pickle_is_one_error():
    content = pickle.dumps({"params": {"w": np.arange(4.0)}, "names": [("a", 1.5), {"b"}], "big": 2**100}, 4)
    for length in range(len(content)):
        with pytest.raises(CheckpointError):
            read(content[:length])


def test_names_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "x.pt").write_bytes(handmade.zipped(handmade.mapping(**{"\ud800": handmade.tensor()})))
    with pytest.raises(CheckpointError, match="leaf names that are text"):
        checkpoints.load(tmp_path / "x.pt")
