"""A file as an array of bytes, paged in when they are read."""

import mmap
import os
import pathlib

import numpy as np


def mapped(path: pathlib.Path) -> np.ndarray:
    """The bytes of a file, `[size]` uint8, read-only; it must not be shortened in place while the array is in use.

    An empty file, which no operating system maps, gives an empty array.
    """
    with path.open("rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size == 0:
            return np.empty(0, np.uint8)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
