"""Big-endian and unaligned content, turned into arrays as this machine stores them."""

import numpy as np


def swapped(dtype: np.dtype) -> np.dtype:
    """The dtype under which big-endian content is read: bfloat16, which numpy cannot swap, goes as 16-bit integers."""
    return np.dtype(f">u{dtype.itemsize}") if dtype.kind == "V" else dtype.newbyteorder(">")


def native(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    r"""The array as `dtype`, aligned and read-only; the same memory where it is so already.

    Args:
        array: of `dtype` or of `swapped(dtype)`.
        dtype: element type in the machine's own byte order.

    >>> native(np.array([258], ">u2"), np.dtype(np.uint16)).astype("<u2").tobytes()
    b'\x02\x01'
    """
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype != dtype:
        array = array.view(dtype)
    if not array.flags.aligned:
        array = array.copy(order="K")
    array.flags.writeable = False
    return array
