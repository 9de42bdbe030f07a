"""Mutations of pickles, opcode by opcode; nothing is ever unpickled."""

import pickletools
from collections.abc import Sequence
from random import Random

from fuzz_blind import INTEGERS, blind

from jaxguard.checkpoints import numpy_pickle, pickled, pytorch

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


def pickle(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
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
