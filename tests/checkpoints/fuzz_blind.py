"""Mutations of bytes that know nothing of formats: bits, blocks, integers, and pieces of other files."""

import re
from collections.abc import Sequence
from random import Random

INTEGERS = (*(0, 1, -1, 2, 7, 8, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24), *(2**31 - 1, 2**31, 2**32 - 1, 2**32),
            *(2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1))  # fmt: skip


def blind(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """One mutation that knows nothing of formats."""
    if not data:
        return rng.randbytes(rng.choice((1, 8, 64)))
    return rng.choice(_BLIND)(data, others, rng)


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
