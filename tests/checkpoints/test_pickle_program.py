"""Every opcode of the standard library's table: what it makes, where its program ends, and which ones are refused."""

import mmap
import pathlib
import pickletools

import pytest

from jaxguard.checkpoints import pickle_program
from jaxguard.checkpoints.pickle_objects import Builders, Record
from jaxguard.errors import CheckpointError, UnsupportedError

BUILDERS: Builders = {"m.pair": lambda *args: ["pair", *args]}
CALL = b"cm\npair\n"

MADE = {
    "INT": (b"I-7\n.", -7),
    "BININT": (b"J\xfe\xff\xff\xff.", -2),
    "BININT1": (b"K\xff.", 255),
    "BININT2": (b"M\x01\x02.", 0x0201),
    "LONG": (b"L12L\n.", 12),
    "LONG1": (b"\x8a\x02\x00\x80.", -(2**15)),
    "LONG4": (b"\x8b\x01\x00\x00\x00\x05.", 5),
    "STRING": (b"S'ab'\n.", "ab"),
    "BINSTRING": (b"T\x02\x00\x00\x00ab.", "ab"),
    "SHORT_BINSTRING": (b"U\x02ab.", "ab"),
    "BINBYTES": (b"B\x02\x00\x00\x00ab.", b"ab"),
    "SHORT_BINBYTES": (b"C\x02ab.", b"ab"),
    "BINBYTES8": (b"\x8e\x02\x00\x00\x00\x00\x00\x00\x00ab.", b"ab"),
    "BYTEARRAY8": (b"\x96\x02\x00\x00\x00\x00\x00\x00\x00ab.", bytearray(b"ab")),
    "NONE": (b"N.", None),
    "NEWTRUE": (b"\x88.", True),
    "NEWFALSE": (b"\x89.", False),
    "UNICODE": (b"V\\u00e4\n.", "ä"),
    "SHORT_BINUNICODE": (b"\x8c\x02\xc3\xa4.", "ä"),
    "BINUNICODE": (b"X\x02\x00\x00\x00\xc3\xa4.", "ä"),
    "BINUNICODE8": (b"\x8d\x02\x00\x00\x00\x00\x00\x00\x00\xc3\xa4.", "ä"),
    "FLOAT": (b"F-1.5\n.", -1.5),
    "BINFLOAT": (b"G\x3f\xf8\x00\x00\x00\x00\x00\x00.", 1.5),
    "EMPTY_LIST": (b"].", []),
    "APPEND": (b"]K\x01a.", [1]),
    "APPENDS": (b"](K\x01K\x02e.", [1, 2]),
    "LIST": (b"(K\x01K\x02l.", [1, 2]),
    "EMPTY_TUPLE": (b").", ()),
    "TUPLE": (b"K\x00(K\x01K\x02t\x86.", (0, (1, 2))),
    "TUPLE1": (b"K\x01\x85.", (1,)),
    "TUPLE2": (b"K\x01K\x02\x86.", (1, 2)),
    "TUPLE3": (b"K\x01K\x02K\x03\x87.", (1, 2, 3)),
    "EMPTY_DICT": (b"}.", {}),
    "DICT": (b"(K\x01K\x02d.", {1: 2}),
    "SETITEM": (b"}K\x01K\x02s.", {1: 2}),
    "SETITEMS": (b"}(K\x01K\x02K\x03K\x04u.", {1: 2, 3: 4}),
    "EMPTY_SET": (b"\x8f.", []),
    "ADDITEMS": (b"\x8f(K\x01K\x02\x90.", [1, 2]),
    "FROZENSET": (b"(K\x01\x91.", [1]),
    "POP": (b"K\x01(0K\x020.", 1),
    "DUP": (b"K\x012\x86.", (1, 1)),
    "MARK": (b"K\x01((K\x02tt.", ((2,),)),
    "POP_MARK": (b"K\x01(K\x02K\x031.", 1),
    "GET": (b"K\x01p300\n0g300\n.", 1),
    "BINGET": (b"K\x01q\xc80h\xc8.", 1),
    "LONG_BINGET": (b"K\x01r\x00\x01\x00\x000j\x00\x01\x00\x00.", 1),
    "PUT": (b"K\x01p7\n0h\x07.", 1),
    "BINPUT": (b"K\x01q\xff0g255\n.", 1),
    "LONG_BINPUT": (b"K\x01r\x01\x00\x01\x000g65537\n.", 1),
    "MEMOIZE": (b"K\x05\x94K\x06\x9400h\x01h\x00\x86.", (6, 5)),
    "GLOBAL": (CALL + b")R.", ["pair"]),
    "STACK_GLOBAL": (b"\x8c\x01m\x8c\x04pair\x93)R.", ["pair"]),
    "REDUCE": (CALL + b"K\x01\x85R.", ["pair", 1]),
    "BUILD": (b"}K\x01b.", {}),
    "INST": (b"(K\x01K\x02im\npair\n.", ["pair", 1, 2]),
    "OBJ": (b"(" + CALL + b"K\x01K\x02o.", ["pair", 1, 2]),
    "NEWOBJ": (CALL + b"K\x01\x85\x81.", ["pair", 1]),
    "NEWOBJ_EX": (CALL + b"K\x01\x85}\x92.", ["pair", 1]),
    "PROTO": (b"\x80\x05N.", None),
    "STOP": (b"K\x01K\x02.", 2),
    "FRAME": (b"\x95\x02\x00\x00\x00\x00\x00\x00\x00N.", None),
    "BINPERSID": (b"K\x01Q.", ("kept under", 1)),
}
EXTENSIONS = {
    "EXT1": b"\x82\x01.",
    "EXT2": b"\x83\x01\x00.",
    "EXT4": b"\x84\x01\x00\x00\x00.",
}
REFUSED = {
    "NEXT_BUFFER": b"\x97.",
    "READONLY_BUFFER": b"N\x98.",
    "PERSID": b"Pabc\n.",
}


def read(content: bytes | mmap.mmap, start: int = 0) -> pickle_program.Program:
    return pickle_program.read(content, "demo", BUILDERS, lambda found: ("kept under", found), start=start)


def test_no_opcode_is_left_out():
    assert MADE.keys() | REFUSED.keys() | EXTENSIONS.keys() == {opcode.name for opcode in pickletools.opcodes}
    for name, program in {**{name: made[0] for name, made in MADE.items()}, **REFUSED, **EXTENSIONS}.items():
        assert name in {opcode.name for opcode, _, _ in pickletools.genops(program)}


@pytest.mark.parametrize("name", MADE)
def test_opcodes_make_what_they_are_documented_to(name, tmp_path: pathlib.Path):
    program, expected = MADE[name]
    (tmp_path / "x.pkl").write_bytes(b"K\x09." + program + b"and more")
    with (tmp_path / "x.pkl").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for found, end in (
            (read(program), len(program)),
            (read(content, start=3), 3 + len(program)),
        ):
            assert found.result == expected
            assert type(found.result) is type(expected)
            assert found.end == end
            assert found.foreign == ()


def test_extensions_are_foreign_since_their_names_are_not_in_the_file():
    for program in EXTENSIONS.values():
        assert read(program).foreign == ("copyreg.extension_1",)


@pytest.mark.parametrize("name", REFUSED)
def test_opcodes_that_no_checkpoint_needs_are_refused(name):
    with pytest.raises(UnsupportedError, match=r"data outside of the file .* at byte [01], which is not supported;"):
        read(REFUSED[name])


@pytest.mark.parametrize("name", MADE)
def test_programs_that_end_early_are_one_error(name):
    program, _ = MADE[name]
    for length in range(len(program)):
        with pytest.raises(CheckpointError, match="expected a pickle"):
            read(program[:length])


@pytest.mark.parametrize("code", sorted(set(range(256)) - {ord(opcode.code) for opcode in pickletools.opcodes}))
def test_other_bytes_are_no_opcodes(code):
    with pytest.raises(CheckpointError, match="got an unknown opcode at byte 1;"):
        read(b"N" + bytes([code]) + b".")


def test_strangers_become_records():
    for program in (b"(K\x01ia\nb\n.", b"(ca\nb\nK\x01o.", b"ca\nb\nK\x01\x85R.", b"ca\nb\nK\x01\x85}\x92."):
        found = read(program)
        assert isinstance(found.result, Record)
        assert (found.result.name, found.result.args, found.foreign) == ("a.b", (1,), ("a.b",))
    named = read(b"ca\nb\n)}K\x02K\x03s\x92}K\x04K\x05sb.").result
    assert (named.args, named.state) == (({2: 3},), {4: 5})


def test_messages_name_the_place():
    with pytest.raises(CheckpointError, match="got the unknown memo 9 at byte 4;"):
        read(b"K\x01K\x02h\x09.")
    with pytest.raises(CheckpointError, match="got items added to a int at byte 7;"):
        read(b"...K\x01K\x02a.", start=3)
