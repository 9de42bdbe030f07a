"""Mutations of checkpoints: blind ones of bytes, and ones that keep lengths, checksums and nesting of the container.

A blind mutation of a zip archive or a B+tree mostly hits a checksum; the others decode one layer, mutate what is
inside, and encode it again. All of them draw from one `random.Random`, so that a number brings an input back.
"""

import copy
import io
import json
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import fuzz_pickles
import msgpack
from fuzz_blind import INTEGERS, blind

from jaxguard.checkpoints import hdf5

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


_CONTAINERS: tuple[tuple[Callable[[bytes], object], Callable[[bytes, Sequence[bytes], Random], bytes]], ...] = (
    (lambda data: data.startswith(b"PK\x03\x04"), _zip),
    (lambda data: data.startswith(hdf5.MAGIC), _hdf5),
    (lambda data: data.startswith(_NPY), _npy),
    (lambda data: data[8:9] == b"{", _safetensors),
    (lambda data: data[:1] == b"{" and _NPY in data, _json_line),
    (lambda data: data[:1] == b"{" and not _OCDBT.search(data), _json),
    (_OCDBT.search, _ocdbt),
    (lambda data: data[:1] in (b"\x80", b"(", b"c", b"]", b"}"), fuzz_pickles.pickle),
    (lambda data: data[0] in (*range(0x81, 0x90), 0xDE, 0xDF), _msgpack),
)
"""How containers begin, and what mutates their contents."""
