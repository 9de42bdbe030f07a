"""Zstandard frames written by strangers, inflated into memory whose size is known before (RFC 8878)."""

import numpy as np

_MAGIC = b"\x28\xb5\x2f\xfd"
_SINGLE_SEGMENT, _CHECKSUM, _RESERVED = 0x20, 0x04, 0x08
_KEY_BYTES = (0, 1, 2, 4)  # of a dictionary, by the lowest two bits of the descriptor
_SIZE_BYTES = (0, 2, 4, 8)  # of the announced size, by the highest two
_LONGEST_HEADER = 18
_BLOCK_HEADER, _CHECKSUM_BYTES = 3, 4
_MAX_BLOCK = 2**17
_RUN, _RESERVED_KIND = 1, 3


def inflate_into(content: memoryview, out: np.ndarray) -> None:
    """Fills `out` with what a frame holds, with the interpreter lock released.

    Args:
        content: the frame, and nothing else.
        out: contiguous memory, `[n]` uint8; nothing is written beyond it, whatever the frame announces.

    Raises:
        ValueError: no sound frame, or one that holds more or fewer than `n` bytes.

    >>> import numcodecs
    >>> out = np.empty(5, np.uint8)
    >>> inflate_into(memoryview(numcodecs.Zstd().encode(b"hello")), out)
    >>> out.tobytes()
    b'hello'
    """
    import numcodecs

    _, announced = _header(bytes(content[:_LONGEST_HEADER]))
    # The codec takes a frame that announces nothing only where it fills the memory, and others where they fit in.
    if announced not in (None, out.size):
        raise ValueError(f"a zstd frame of {announced} bytes in place of {out.size}")
    try:
        numcodecs.Zstd().decode(content, out)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def inflated(content: bytes, limit: int) -> bytes:
    """The content of a frame that has to be small.

    Args:
        content: the frame, and nothing else.
        limit: the most bytes its blocks may come to; each counts as the 128 KiB it could hold.

    Raises:
        ValueError: no sound frame, or one whose blocks could come to more.

    >>> import numcodecs
    >>> inflated(numcodecs.Zstd().encode(b"hello"), limit=2**17)
    b'hello'
    """
    import numcodecs

    start, announced = _header(content)
    bound = _blocks(content, start) * _MAX_BLOCK
    if bound > limit or (announced is not None and announced > bound):
        raise ValueError(f"a zstd frame of {announced or bound} bytes in place of at most {limit}")
    try:
        return bytes(numcodecs.Zstd().decode(content))
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def _header(start: bytes) -> tuple[int, int | None]:
    """Length of a frame's header, and the size it announces, if it does."""
    if len(start) < len(_MAGIC) + 2 or not start.startswith(_MAGIC):
        raise ValueError("content that is no zstd frame")
    descriptor = start[len(_MAGIC)]
    if descriptor & _RESERVED:
        raise ValueError("a zstd frame of an unknown kind")
    is_single = bool(descriptor & _SINGLE_SEGMENT)
    first = len(_MAGIC) + 1 + (not is_single) + _KEY_BYTES[descriptor & 3]
    width = _SIZE_BYTES[descriptor >> 6] or int(is_single)
    if len(start) < first + width:
        raise ValueError("a zstd frame that ends in its header")
    size = int.from_bytes(start[first : first + width], "little") + (256 if width == 2 else 0)
    return first + width, size if width else None


def _blocks(content: bytes, position: int) -> int:
    """How many blocks a frame has from `position` to its end, which has to be that of the content."""
    count, is_last = 0, False
    while not is_last:
        if position + _BLOCK_HEADER > len(content):
            raise ValueError("a zstd frame that is cut short")
        header = int.from_bytes(content[position : position + _BLOCK_HEADER], "little")
        is_last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        if kind == _RESERVED_KIND:
            raise ValueError("a zstd block of an unknown kind")
        position += _BLOCK_HEADER + (1 if kind == _RUN else size)
        count += 1
    if position + _CHECKSUM_BYTES * bool(content[len(_MAGIC)] & _CHECKSUM) != len(content):
        raise ValueError("a zstd frame with more behind it, or less")
    return count
