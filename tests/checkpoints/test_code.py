"""Code that a loader would run is found, by whatever opcode it is called; nothing of it runs."""

import base64
import json
import pickle
import pickletools
import zipfile

import numpy as np
import pytest

import jaxguard
from jaxguard import checkpoints
from jaxguard.types import Verdict

WEIGHTS = {"fc1/kernel": np.ones((8, 16), np.float32) * np.arange(16, dtype=np.float32)}


def names(path) -> list[str]:
    return [call.callable for call in checkpoints.examine(path).calls]


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


UNKNOWN = {
    "REDUCE": (b"cprofile\nrun\n(" + text("pass") + b"tR.", "profile.run"),
    "INST": (b"(" + text("pass") + b"iprofile\nrun\n.", "profile.run"),
    "OBJ": (b"(cprofile\nrun\n" + text("pass") + b"o.", "profile.run"),
    "NEWOBJ": (b"cprofile\nrun\n(" + text("pass") + b"t\x81.", "profile.run"),
    "NEWOBJ_EX": (b"cprofile\nrun\n)}\x92.", "profile.run"),
    "STACK_GLOBAL": (b"\x80\x04" + text("profile") + text("run") + b"\x93(" + text("pass") + b"tR.", "profile.run"),
    "memo": (b"\x80\x04" + text("profile") + b"q\x000" + text("run") + b"q\x010h\x00h\x01\x93)R.", "profile.run"),
    "BUILD of a name": (b"ca\nB\n}b.", "a.B.__setstate__"),
    "append to a name": (b"ca\nB\n(I1\ne.", "a.B.extend"),
    "entry of a name": (b"cmods\ntable\nI1\nI2\ns.", "mods.table.__setitem__"),
    "a method as state": (
        b"cargparse\nNamespace\n)R}" + text("extend") + b"cprofile\nrun\nsb(" + text("pass") + b"e.",
        "profile.run",
    ),
    "factory": (b"ccollections\ndefaultdict\ncprofile\nrun\n\x85R.", "profile.run"),
    "reconstructor": (b"ccopyreg\n_reconstructor\n(ca\nB\ncbuiltins\nobject\nNtR.", "a.B"),
    "extension registry": (b"\x82\x01)R.", "copyreg.extension_1"),
    "builtins of a module": (b"}" + text("x") + b"cnumpy\n__builtins__\ns.", "numpy.__builtins__"),
    "a module in a module": (b"\x80\x04" + text("os.path") + text("os.system") + b"\x93.", "os.path.os.system"),
    "behind the STOP": (b"\x80\x02}.\x80\x02cprofile\nrun\n)R.", "profile.run"),
    "before a break": (b"\x80\x02cprofile\nrun\n)R\xff", "profile.run"),
    "in bytes": (
        b"\x80\x03cpickle\nloads\nC" + bytes([len(b"cprofile\nrun\n)R.")]) + b"cprofile\nrun\n)R.\x85R.",
        "profile.run",
    ),
    "the result of a call": (b"cbuiltins\ngetattr\n(ca\nB\n" + text("run") + b"tR)R.", "builtins.getattr"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_calls_of_unknown_functions_are_found(kind, tmp_path):
    program, name = UNKNOWN[kind]
    (tmp_path / "x.pkl").write_bytes(program)
    assert name in names(tmp_path / "x.pkl")


DANGEROUS = """
os.system posix.system nt.system subprocess.Popen builtins.eval builtins.exec builtins.compile builtins.__import__
builtins.getattr builtins.open webbrowser.open socket.create_connection requests.get aiohttp.ClientSession shutil.rmtree
sys.exit runpy.run_path importlib.import_module pickle.loads _pickle.loads operator.attrgetter bdb.Bdb pdb.set_trace
asyncio.run pip.main pydoc.pipepager venv.create torch.hub.load torch._inductor.codecache.compile_file timeit.timeit
numpy.testing._private.utils.runstring functools.partial httplib.HTTPSConnection types.CodeType code.interact
idlelib.pyshell.ModifiedInterpreter.runcode lib2to3.pgen2.grammar.Grammar.loads profile.Profile.runctx doctest.debug
ensurepip._run_pip uuid._get_command_stdout cProfile.run logging.FileHandler logging.config.listen ctypes.CDLL
multiprocessing.util.spawnv_passfds distutils.file_util.write_file linecache.getline smtplib.SMTP tempfile.mktemp
zipimport.zipimporter marshal.loads dill.loads joblib.load urllib.request.urlopen commands.getoutput trace.Trace.run
"""
"""Names that scanners of pickles hold to be dangerous."""


@pytest.mark.parametrize("full", DANGEROUS.split())
def test_what_other_scanners_flag_is_no_clean_file(full, tmp_path):
    module, _, name = full.rpartition(".")
    (tmp_path / "x.pkl").write_bytes(f"c{module}\n{name}\n".encode() + b"(" + text("x") + b"tR.")
    assert full in names(tmp_path / "x.pkl")


def test_plain_arrays_call_nothing(tmp_path):
    for protocol in range(6):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": WEIGHTS, "s": {1, 2}, "c": 1j}, protocol))
        assert checkpoints.examine(tmp_path / "x.pkl") == checkpoints.Code()


def test_a_class_that_is_only_named_is_a_note(tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02}" + text("cls") + b"cmodels\nNet\ns.")
    code = checkpoints.examine(tmp_path / "x.pkl")
    assert not code.calls
    assert code.notes == ("Classes and functions named in it: models.Net.",)


def test_weights_beside_a_call_are_scored(tmp_path):
    body = pickle.dumps({**WEIGHTS, "extra": None}, 2)
    assert [one.name for one, *_ in pickletools.genops(body)][-3:] == ["NONE", "SETITEMS", "STOP"]
    (tmp_path / "x.pkl").write_bytes(body[:-3] + b"cprofile\nrun\n(" + text("pass") + b"tRu.")
    checkpoint = checkpoints.load(tmp_path / "x.pkl")
    assert list(checkpoint.leaves) == ["fc1/kernel"]
    assert checkpoint.code[0].callable == "profile.run"
    assert checkpoint.code[0].arguments == "('pass')"
    (finding,) = jaxguard.scan(str(tmp_path / "x.pkl")).findings
    assert finding.verdict is Verdict.CODE_EXECUTION
    assert finding.code == checkpoint.code


def test_archives_are_followed(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}, 2))
        archive.writestr("x/extra.pkl", b"cprofile\nrun\n)R.")
        archive.writestr("x/data/0", b"cother\nrun\n)R.")  # a storage, which nobody unpickles
    assert names(tmp_path / "x.pt") == ["profile.run"]
    objects = np.array([None], object)
    np.savez(tmp_path / "x.npz", a=objects)
    assert checkpoints.examine(tmp_path / "x.npz").calls == ()
    body = b"\x93NUMPY\x01\x00" + (22).to_bytes(2, "little") + b"{'descr':'|O',       }" + b"cprofile\nrun\n)R."
    (tmp_path / "x.npy").write_bytes(body)
    assert names(tmp_path / "x.npy") == ["profile.run"]


def test_marshalled_code_in_a_keras_file(tmp_path):
    function = {"class_name": "__lambda__", "config": {"code": base64.b64encode(b"x").decode()}}
    layer = {"class_name": "Lambda", "config": {"name": "lambda", "function": function}}
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"config": {"layers": [layer]}}))
        archive.writestr("model.weights.h5", b"")
    assert names(tmp_path / "x.keras") == ["keras.layers.Lambda"]


def test_code_beside_a_model_is_a_note(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "x", "auto_map": {"AutoModel": "modeling_x.Model"}}')
    (tmp_path / "modeling_x.py").write_text("")
    code = checkpoints.examine(tmp_path)
    assert not code.calls
    assert "modeling_x.Model" in code.notes[0]
    assert "modeling_x.py" in code.notes[1]


def test_what_begins_with_no_opcode_is_not_followed(tmp_path):
    from jaxguard.checkpoints import code

    assert {ord(one) for one in pickletools.code2op} == code._OPCODES
    # A file that is both: as safetensors a header of 0x1458 bytes, as a pickle a text of 20 bytes and then a call.
    payload = b"{" + b" " * 16 + b"cos\nsystem\n(U\x02idtR."
    path = tmp_path / "model.safetensors"
    path.write_bytes((ord("X") + (20 << 8)).to_bytes(8, "little") + payload.ljust(0x1458))
    assert names(path) == ["os.system"]
