"""Mutations of checkpoints: blind ones of bytes, and ones that keep lengths, checksums and nesting of the container.

A blind mutation of a zip archive or a B+tree mostly hits a checksum; the others decode one layer, mutate what is
inside, and encode it again. All of them draw from one `random.Random`, so that a number brings an input back.
"""

import copy
import io
import json
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgpack

from jaxguard.checkpoints import hdf5, numpy_pickle, pickled, pytorch

INTEGERS = (*(0, 1, -1, 2, 7, 8, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24), *(2**31 - 1, 2**31, 2**32 - 1, 2**32),
            *(2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1))  # fmt: skip
TEXTS = (
    "",
    ".",
    "..",
    "../../x",
    "/etc/hostname",
    "\0",
    "a/b",
    "a" * 2000,
    "é",
    "\udc80",
    "__metadata__",
    "F32",
    "F64",
)
VALUES = (*INTEGERS, 2**64, -(2**63), 10**40, 0.5, 1e308, float("nan"), None, True, False, *TEXTS)
MAX_BYTES = 200_000
_OCDBT = re.compile(rb"\x0c\xdb(?:\x3a\x2a|\x20\xde|\x12\x34)")
_NPY = b"\x93NUMPY"


def mutated(files: dict[str, bytes], others: Sequence[bytes], rng: Random) -> dict[str, bytes]:
    """One to four mutations of the files of a checkpoint.

    Args:
        files: `{relative path: content}`.
        others: contents of other checkpoints, to splice in.
        rng: where all choices come from.
    """
    found = dict(files)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3, 4))):
        name = rng.choice(sorted(found))
        if len(found) > 1 and rng.random() < 0.05:
            _of_folder(found, name, rng)
        else:
            found[name] = content(found[name], others, rng)[:MAX_BYTES]
        if not found:
            break
    return found


def content(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """One mutation of a file: of what its container holds, or blind."""
    structured = _structured(data) if data else None
    if structured is not None and rng.random() < 0.7:
        try:
            return structured(data, others, rng)
        except Exception:  # an earlier mutation made it undecodable, or this one unencodable
            return blind(data, others, rng)
    return blind(data, others, rng)


def blind(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """One mutation that knows nothing of formats."""
    if not data:
        return rng.randbytes(rng.choice((1, 8, 64)))
    return rng.choice(_BLIND)(data, others, rng)


def _of_folder(files: dict[str, bytes], name: str, rng: Random) -> None:
    kept = files.pop(name)
    choice = rng.random()
    if choice < 0.4:  # renamed
        files[rng.choice((f"{name}x", "model.safetensors", "extra/0", "config.json", "checkpoint_7", "_METADATA"))] = (
            kept
        )
    elif choice < 0.8 and files:  # swapped
        other = rng.choice(sorted(files))
        files[name], files[other] = files[other], kept


def _place(data: bytes, rng: Random) -> tuple[int, int]:
    """A block; headers are at the start and at the end, so these are drawn more often."""
    first = rng.randrange(len(data))
    if rng.random() < 0.4:
        first = min(rng.randrange(min(len(data), 64)), len(data) - 1)
    elif rng.random() < 0.2:
        first = max(0, len(data) - 1 - rng.randrange(128))
    return first, min(len(data), first + rng.choice((1, 1, 2, 4, 8, 16, 64, 256, 1024)))


def _flip(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[_place(data, rng)[0]] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    first, _ = _place(data, rng)
    return data[:first] + bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))]) + data[first + 1 :]


def _truncate(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    return data[: max(1, _place(data, rng)[0])]


def _extend(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    size = rng.choice((1, 8, 100, 4096))
    return data + rng.choice((bytes(size), rng.randbytes(size), data[:size]))


def _delete(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    first, end = _place(data, rng)
    return data[:first] + data[end:]


def _duplicate(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    first, end = _place(data, rng)
    return data[:end] + data[first:end] * rng.choice((1, 1, 2, 50)) + data[end:]


def _copy(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """A block on top of another place, or inserted there."""
    first, end = _place(data, rng)
    to, _ = _place(data, rng)
    behind = to + (end - first) * rng.randrange(2)
    return data[:to] + data[first:end] + data[behind:]


def _splice(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """The start of one file and the end of another, or a block of it in between."""
    other = rng.choice(others)
    to, _ = _place(data, rng)
    first, end = _place(other, rng)
    return data[:to] + (other[first:] if rng.random() < 0.5 else other[first:end] + data[to:])


def _integer(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """An integer replaced, or one more or less than it was."""
    width, order = rng.choice((1, 2, 4, 4, 8, 8)), rng.choice(("little", "big"))
    first, _ = _place(data, rng)
    if rng.random() < 0.5:
        first -= first % width
    old = int.from_bytes(data[first : first + width], order)
    new = rng.choice((old + 1, old - 1, old * 2, old + len(data), len(data), *INTEGERS)) % 256**width
    return data[:first] + new.to_bytes(width, order) + data[first + width :]


def _digits(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """A number that is written out."""
    numbers = list(re.finditer(rb"-?\d+", data))
    if not numbers:
        return _set(data, others, rng)
    match = rng.choice(numbers)
    return data[: match.start()] + str(rng.choice((*INTEGERS, 10**30))).encode() + data[match.end() :]


_BLIND = (_flip, _set, _truncate, _extend, _delete, _duplicate, _copy, _splice, _integer, _integer, _digits)


def _structured(data: bytes) -> Callable[[bytes, Sequence[bytes], Random], bytes] | None:
    return next((mutate for is_meant, mutate in _CONTAINERS if is_meant(data)), None)


def tree(found: Any, rng: Random) -> Any:
    """A copy of nested dictionaries and lists with one place changed."""
    holder = [copy.deepcopy(found)]
    places: list[tuple[Any, Any]] = [(holder, 0)]
    for container, key in places:
        inner = container[key]
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner))) if isinstance(inner, list) else []
        places += [(inner, key) for key in keys]
    container, key = rng.choice(places[1:] or places)
    other, other_key = rng.choice(places)
    old = container[key]
    choice = rng.randrange(10)
    if choice == 0 and container is not holder:
        del container[key]
    elif choice == 1 and isinstance(container, dict):
        container[rng.choice(TEXTS)] = container.pop(key)
    elif choice == 2 and isinstance(container, dict):
        container[rng.choice((f"{key}2", *TEXTS))] = copy.deepcopy(old)
    elif choice == 3:
        container[key] = copy.deepcopy(other[other_key])
    elif choice == 4:
        for _ in range(rng.choice((1, 2, 70, 200))):
            container[key] = [container[key]] if rng.random() < 0.5 else {"a": container[key]}
    elif choice == 5 and isinstance(old, list):
        old.extend(old * rng.choice((1, 40)) or [0])
    elif isinstance(old, int) and choice < 8:
        container[key] = rng.choice((old + 1, old - 1, -old, old * 2))
    else:
        container[key] = rng.choice((*VALUES, [], {}, [0], [1, 2**31, 2**31], "<f8", "|O", "float64", "bfloat16"))
    return holder[0]


def _json(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    if rng.random() < 0.1:  # what no decoder gives back
        first = data.index(b":") + 1
        hostile = (
            b"[" * 5000,
            b'{"a":' * 3000,
            b'"\\ud800"',
            b"1" * 5000,
            b"1e999",
            b'{"a":1,"a":2}',
            b"NaN",
            b"-0",
            b"\xff",
        )
        return data[:first] + rng.choice(hostile) + b"," + data[first:]
    return json.dumps(tree(json.loads(data), rng), ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def _json_line(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    line, _, records = data.partition(b"\n")
    if rng.random() < 0.4:
        return _json(line, others, rng) + b"\n" + records
    return line + b"\n" + _npy(records, others, rng)


def _safetensors(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    size = int.from_bytes(data[:8], "little")
    changed = _json(data[8 : 8 + size], others, rng)
    return len(changed).to_bytes(8, "little") + changed + data[8 + size :]


def _msgpack(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    def decoded(packed: bytes) -> Any:
        return msgpack.unpackb(packed, ext_hook=msgpack.ExtType, strict_map_key=False)

    def payload(changed: Any) -> Any:
        """One array of the tree mutated inside of its extension."""
        places = [(changed, key) for key in changed]
        for container, key in places:
            if isinstance(container[key], dict):
                places += [(container[key], inner) for inner in container[key]]
        arrays = [(container, key) for container, key in places if isinstance(container[key], msgpack.ExtType)]
        container, key = rng.choice(arrays)
        code = rng.choice((container[key].code, container[key].code, 1, 2, 3, 4, -1, 127))
        container[key] = msgpack.ExtType(code, msgpack.packb(tree(decoded(container[key].data), rng)))
        return changed

    found = decoded(data)
    return msgpack.packb(payload(found) if rng.random() < 0.5 else tree(found, rng))


def _npy(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """The header of one of the records that lie one behind the other."""
    first = rng.choice([match.start() for match in re.finditer(re.escape(_NPY), data)])
    size = int.from_bytes(data[first + 8 : first + 10], "little")
    text = data[first + 10 : first + 10 + size].decode("latin-1").rstrip()
    dtypes = (
        "<f4",
        ">f8",
        "|O",
        "<c16",
        "|V2",
        "|b1",
        "<M8[ns]",
        "|S4",
        "<U2",
        "<f2",
        "|V1000000",
        "f",
        "O",
        "<i9",
        "m8",
    )
    shapes = (
        "()",
        "(0,)",
        "(2**40,)",
        f"({rng.choice(INTEGERS)},)",
        "(3, 4)",
        "(1,)*40",
        "(True,)",
        "(-1,)",
        "[3]",
        "(3.0,)",
    )
    choice = rng.randrange(6)
    if choice == 0:
        text = re.sub(r"'descr': [^,]+", f"'descr': {rng.choice(dtypes)!r}", text)
    elif choice == 1:
        text = re.sub(r"'descr': [^,]+", "'descr': [('a', '<f4'), ('b', [('c', '|O')])]", text)
    elif choice == 2:
        text = re.sub(r"'shape': \([^)]*\)", f"'shape': {rng.choice(shapes)}", text)
    elif choice == 3:
        text = re.sub("True|False", rng.choice(("True", "False", "1", "None")), text)
    elif choice == 4:
        text = rng.choice(
            ("(" * 500, "{" * 90, "-" * 3000 + "1", "__import__('os')", "'''", "{'descr':", "0x", "\\", "1_", "\0")
        )
    else:
        text = blind(text.encode("latin-1"), others, rng).decode("latin-1")
    header = text.encode("latin-1")[:60_000] + b"\n"
    return data[: first + 8] + len(header).to_bytes(2, "little") + header + data[first + 10 + size :]


def _zip(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """One member rewritten, renamed, dropped, doubled or compressed, under a right checksum."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(entry.filename, archive.read(entry), entry.compress_type) for entry in archive.infolist()]
    programs = [place for place, (name, *_) in enumerate(members) if name.endswith((".pkl", ".h5", ".json", ".npy"))]
    place = rng.choice(programs) if programs and rng.random() < 0.6 else rng.randrange(len(members))
    name, inside, method = members[place]
    choice = rng.random()
    if choice < 0.8:
        members[place] = name, content(inside, others, rng)[:MAX_BYTES], method
    elif choice < 0.85:
        renamed = (
            f"../{name}",
            "/etc/x",
            rng.choice(members)[0],
            name.upper(),
            f"{name}.npy",
            "x/data.pkl",
            "a" * 3000,
        )
        members[place] = rng.choice(renamed), inside, method
    elif choice < 0.9:
        members.pop(place)
    elif choice < 0.95:
        members.append((rng.choice((name, f"{name}2", "archive/byteorder", "metadata.json")), inside, method))
    else:
        members[place] = name, inside + bytes(rng.choice((0, 50_000))), zipfile.ZIP_DEFLATED
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")  # two members of one name are meant
        for name, inside, method in members:
            archive.writestr(zipfile.ZipInfo(name), inside, method)
    return buffer.getvalue()


def _hdf5(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """Words that may be addresses or sizes, and the signatures of structures."""
    signatures = [
        match.start() for match in re.finditer(rb"TREE|SNOD|HEAP|GCOL|OHDR|OCHK|FRHP|FHDB|FHIB|BTHD|BTLF", data)
    ]
    first = rng.choice(signatures) if signatures else 0
    changed = bytearray(data)
    if rng.random() < 0.1 and signatures:
        changed[first : first + 4] = rng.choice((b"TREE", b"SNOD", b"HEAP", b"GCOL", b"OHDR", b"FRHP", b"BTLF"))
        return bytes(changed)
    near = range(max(0, first - 1024), min(len(data) - 8, first + 512))
    words = [at for at in near if 0 < int.from_bytes(data[at : at + 8], "little") < 2 * len(data)]
    if not words or rng.random() < 0.3:
        at = rng.choice(near) if near else 0
        changed[at] = rng.choice((*range(34), 0xFF, 0x80, rng.randrange(256)))
        return bytes(changed)
    at = rng.choice(words)
    value = rng.choice(
        (*signatures, *(int.from_bytes(data[other : other + 8], "little") for other in words), *INTEGERS)
    )
    changed[at : at + 8] = (value % 2**64).to_bytes(8, "little")
    return bytes(changed)


def _ocdbt(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """A node of the B+tree, with its length and checksum made right again."""
    first = rng.choice([match.start() for match in _OCDBT.finditer(data)])
    end = first + int.from_bytes(data[first + 4 : first + 12], "little")
    inside = blind(data[first + 12 : end - 4], others, rng)[:10_000]
    block = data[first : first + 4] + (len(inside) + 16).to_bytes(8, "little") + inside
    return data[:first] + block + struct.pack("<I", crc32c(block)) + data[end:]


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    value = 0xFFFFFFFF
    for byte in data:
        value = (value >> 8) ^ _CRC32C[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def _crc32c_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC32C = tuple(map(_crc32c_of, range(256)))

_KNOWN = sorted({*numpy_pickle.BUILDERS, *pickled.BUILDERS, *pytorch.BUILDERS})
_FOREIGN = (
    "os.system",
    "builtins.eval",
    "builtins.getattr",
    "models.Net",
    "torch.nn.modules.conv.Conv2d",
    "antigravity.x",
)
GLOBALS = tuple(
    "c{}\n{}\n".format(*name.rsplit(".", 1)).encode()
    for name in (*_KNOWN, *_FOREIGN, "torch.FloatStorage", "torch.bfloat16")
)
SNIPPETS = (
    *(opcode.code.encode("latin-1") for opcode in pickletools.opcodes),
    *(f"I{number}\n".encode() for number in INTEGERS),
    *(b"\x8a\x09" + bytes(8) + b"\x01", b"L" + b"9" * 400 + b"L\n", b"\x8b\xff\xff\xff\x7f", b"\x8a\x00", b"F1e999\n"),
    *(b"}", b"]", b")", b"(", b"t", b"\x85", b"\x86", b"\x87", b"R", b"\x81", b"b", b"s", b"u", b"a", b"e", b"Q", b"2"),
    *(
        b"X\x01\x00\x00\x00w",
        b"X\xff\xff\xff\xff",
        b"\x8d" + b"\xff" * 8,
        b"C\x02ab",
        b"N",
        b"\x88",
        b"I01\n",
        b"I00\n",
    ),
    *(b"h\x00", b"q\x00", b"h\x01", b"j\xff\xff\xff\xff", b"\x94", b"\x95" + b"\xff" * 8, b"P1\n", b"\x82\x01", b"."),
    *(
        b"(cos\nsystem\nX\x04\x00\x00\x00trueo",
        b"(S'true'\nios\nsystem\n",
        b"]q\x07(h\x07h\x07e",
        b"2" * 500,
        b"(" * 500,
    ),
    b"cos\nsystem\n(X\x15\x00\x00\x00touch jaxguard_canarytR",
    *GLOBALS,
)
"""Pickle opcodes and short programs."""


def _pickle(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """Opcodes inserted, deleted, doubled, swapped, replaced or changed inside, in one of the pickles of a stream."""
    start, programs = 0, []
    while start < len(data) and len(programs) < 5:
        try:
            places = [at for _, _, at in pickletools.genops(data[start:])]
        except Exception:
            break
        programs.append((start, places))
        start += places[-1] + 1
    first, places = rng.choice(programs)
    bounds = [first + at for at in places] + [first + places[-1] + 1]
    number = rng.randrange(len(places))
    if rng.random() < 0.3:
        number = max(0, len(places) - 1 - rng.randrange(12))
    at, behind = bounds[number], bounds[number + 1]
    end = bounds[min(len(places), number + rng.choice((1, 1, 2, 4, 16)))]
    snippet, to = rng.choice(SNIPPETS), rng.choice(bounds[:-1])
    inside = data[at : at + 1] + blind(data[at + 1 : behind] or b"\0", others, rng)[:4096]
    names = [place for place in range(len(places)) if data[bounds[place] : bounds[place] + 1] == b"c"]
    other = rng.choice(names) if names else number
    changed = (
        data[:at] + data[end:],
        data[:end] + data[at:end] * rng.choice((1, 1, 3, 100)) + data[end:],
        data[:to] + data[at:end] + data[to:],
        data[:at] + inside + data[behind:],
        data[: bounds[other]] + rng.choice(GLOBALS) + data[bounds[other + 1] :],
        data[:at] + snippet + data[behind:],
        data[:at] + snippet + data[at:],
    )
    return rng.choice(changed)


_CONTAINERS: tuple[tuple[Callable[[bytes], object], Callable[[bytes, Sequence[bytes], Random], bytes]], ...] = (
    (lambda data: data.startswith(b"PK\x03\x04"), _zip),
    (lambda data: data.startswith(hdf5.MAGIC), _hdf5),
    (lambda data: data.startswith(_NPY), _npy),
    (lambda data: data[8:9] == b"{", _safetensors),
    (lambda data: data[:1] == b"{" and _NPY in data, _json_line),
    (lambda data: data[:1] == b"{" and not _OCDBT.search(data), _json),
    (_OCDBT.search, _ocdbt),
    (lambda data: data[:1] in (b"\x80", b"(", b"c", b"]", b"}"), _pickle),
    (lambda data: data[0] in (*range(0x81, 0x90), 0xDE, 0xDF), _msgpack),
)
"""How containers begin, and what mutates their contents."""
