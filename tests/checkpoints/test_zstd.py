"""Zstandard frames: sound ones of every shape inflate, and none is believed before what it announces is checked."""

import contextlib
import subprocess
import sys

import numcodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxguard.checkpoints import zstd

MAGIC = b"\x28\xb5\x2f\xfd"
CONTENT = b"some weights, " * 50
FRAME = bytes(numcodecs.Zstd(level=3).encode(CONTENT))
LIMIT = 2**20
RUN_OF_MOST = (2**17 << 3 | 1 << 1).to_bytes(3, "little") + b"x"  # a block of 128 KiB in four bytes


def block(content: bytes, *, is_last: bool = True, kind: int = 0, size: int | None = None) -> bytes:
    header = (len(content) if size is None else size) << 3 | kind << 1 | is_last
    return header.to_bytes(3, "little") + content


def sized(size: int, width: int, *, rest: bytes = FRAME[7:]) -> bytes:
    """A frame that announces any size, in 1, 2, 4 or 8 bytes."""
    flag = {1: 0, 2: 1, 4: 2, 8: 3}[width]
    return MAGIC + bytes([flag << 6 | 0x20]) + (size - 256 * (width == 2)).to_bytes(width, "little") + rest


def unsized(rest: bytes, *, checksum: bool = False) -> bytes:
    """A frame that does not announce a size, but a window of 1 MiB."""
    return MAGIC + bytes([checksum << 2, 0x50]) + rest


def inflate(frame: bytes, size: int) -> bytes:
    memory = np.full(size + 64, 0xA5, np.uint8)
    try:
        zstd.inflate_into(memoryview(frame), memory[:size])
    finally:
        assert (memory[size:] == 0xA5).all()
    return memory[:size].tobytes()


FRAMES = {
    "of the library": (FRAME, CONTENT),
    "with a checksum": (bytes(numcodecs.Zstd(checksum=True).encode(CONTENT)), CONTENT),
    "of random bytes": (bytes(numcodecs.Zstd().encode(np.random.default_rng(0).bytes(2**18))), None),
    "size in 1 byte": (sized(3, 1, rest=block(b"abc")), b"abc"),
    "size in 2 bytes": (sized(300, 2, rest=block(b"a" * 300)), b"a" * 300),
    "size in 4 bytes": (sized(len(CONTENT), 4), CONTENT),
    "size in 8 bytes": (sized(len(CONTENT), 8), CONTENT),
    "of an unknown size": (unsized(FRAME[7:]), CONTENT),
    "of several blocks": (unsized(block(b"ab", is_last=False) + block(b"c", kind=1, size=5)), b"abccccc"),
}


@pytest.mark.parametrize("case", FRAMES)
def test_sound_frames_inflate(case):
    frame, content = FRAMES[case]
    content = content or bytes(numcodecs.Zstd().decode(frame))
    assert inflate(frame, len(content)) == content
    assert zstd.inflated(frame, LIMIT) == content


@pytest.mark.parametrize("case", FRAMES)
def test_frames_fill_their_place_or_are_refused(case):
    frame, content = FRAMES[case]
    size = len(content or bytes(numcodecs.Zstd().decode(frame)))
    for other in (size - 1, size + 1, 0):
        with pytest.raises(ValueError, match=r"in place of|expected to decompress|too small"):
            inflate(frame, other)


LIES = {
    "no frame": (b"garbage in place", "no zstd frame"),
    "empty": (b"", "no zstd frame"),
    "magic alone": (MAGIC + b"\x00", "no zstd frame"),
    "header cut short": (MAGIC + b"\xe0\x01\x02", "ends in its header"),
    "reserved bit": (MAGIC + b"\x28\x03" + block(b"abc"), "unknown kind"),
    "skippable": (b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc", "no zstd frame"),
    "more announced": (sized(len(CONTENT) + 1, 4), "in place of|corrupt|expected"),
    "less announced": (sized(len(CONTENT) - 1, 4), "in place of|small|corrupt|expected"),
    "an address space announced": (sized(2**64 - 1, 8), "of 18446744073709551615 bytes in place of"),
    "half an address space announced": (sized(2**62, 8), "in place of"),
    "a second frame": (FRAME + FRAME, "too small|more behind"),
    "a second frame that wraps the sum": (FRAME + sized(2**64 - 100, 8), "too small|more behind"),
    "more behind": (FRAME + b"x", "invalid|more behind"),
    "cut short": (FRAME[:-1], "invalid|more behind|cut short"),
    "checksum of other content": (unsized(FRAME[7:] + b"abcd", checksum=True), "checksum"),
    "unknown block": (unsized(block(b"abc", kind=3)), "unknown kind|invalid"),
    "no last block": (unsized(block(b"abc", is_last=False)), "invalid|cut short"),
    "a dictionary": (MAGIC + b"\x23\x07\x00\x00\x00\x03" + block(b"abc"), "ictionary|in place of"),
}


@pytest.mark.parametrize("case", LIES)
def test_frames_that_lie_are_one_error(case):
    frame, message = LIES[case]
    with pytest.raises(ValueError, match=message):
        inflate(frame, len(CONTENT))
    with pytest.raises(ValueError, match=message):
        zstd.inflated(frame, LIMIT)


def test_small_frames_are_bounded_by_their_blocks():
    frame = unsized(RUN_OF_MOST * 7 + block(b"y"))
    assert zstd.inflated(frame, LIMIT) == b"x" * (7 * 2**17) + b"y"
    with pytest.raises(ValueError, match=f"{LIMIT} bytes in place of at most {LIMIT - 1}"):
        zstd.inflated(frame, LIMIT - 1)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), frame=st.sampled_from([frame for frame, _ in FRAMES.values() if len(frame) < 1000]))
def test_damaged_frames_fill_their_place_or_are_one_error(data, frame):
    damaged = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for attempt in (lambda: inflate(bytes(damaged), len(CONTENT)), lambda: zstd.inflated(bytes(damaged), LIMIT)):
        with contextlib.suppress(ValueError):
            assert len(attempt()) <= LIMIT


BOMBS = """
import resource, sys
import numpy as np
from jaxguard.checkpoints import zstd
import numcodecs
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, resource.RLIM_INFINITY))
run = (2**17 << 3 | 1 << 1).to_bytes(3, "little") + b"x"
for start in (bytes([0, 0x50]), bytes([0xE0]) + (2**33).to_bytes(8, "little")):
    frame = b"\\x28\\xb5\\x2f\\xfd" + start + run * 2**16 + b"\\x01\\x00\\x00"
    out = np.empty(100, np.uint8)
    for attempt in (lambda: zstd.inflate_into(memoryview(frame), out), lambda: zstd.inflated(frame, 2**20)):
        try:
            attempt()
        except ValueError as error:
            print("refused", len(frame))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and RLIMIT_AS")
def test_bombs_of_8_gibibytes_take_no_memory():
    done = subprocess.run([sys.executable, "-c", BOMBS], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines() == ["refused 262153"] * 2 + ["refused 262160"] * 2, done.stderr
