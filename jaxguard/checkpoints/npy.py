"""One array as `numpy.save` writes it: a short header, then the elements. Objects are refused."""

import io
import math
import tokenize
import warnings
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from jaxguard.checkpoints import byteorder, limits, refusals
from jaxguard.checkpoints.checkpoint import DTYPES, LeafSpec

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 10_000
HEAD_BYTES = MAX_HEADER_BYTES + 16
"""So much of a record is enough for `parse`."""

_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_DTYPES = frozenset(DTYPES.values())


@dataclass(frozen=True)
class Record:
    """A parsed header.

    Attributes:
        shape: of the array.
        stored: dtype of the elements in the file.
        dtype: of the leaf they make; None where a leaf may not have it, such as for text or Python objects.
        fortran: whether the first axis varies fastest.
        start: bytes of the header.
    """

    shape: tuple[int, ...]
    stored: np.dtype
    dtype: np.dtype | None
    fortran: bool
    start: int

    @property
    def spec(self) -> LeafSpec:
        """The leaf; raises ValueError where its elements are no numbers."""
        if self.dtype is None:
            raise ValueError(self.problem)
        return LeafSpec(self.shape, self.dtype)

    @property
    def problem(self) -> str:
        """Why the array is no leaf; empty where it is one."""
        if self.stored.hasobject:
            return f"Python objects, which only unpickling would bring back{refusals.NOT_SUPPORTED}"
        return "" if self.dtype is not None else f"elements of type {self.stored.str[:40]}{refusals.NOT_SUPPORTED}"

    @property
    def nbytes(self) -> int:
        """Bytes of header and elements."""
        return self.start + math.prod(self.shape) * self.stored.itemsize

    def array(self, content: np.ndarray) -> np.ndarray:
        """The array, read-only: a view of `content`, or a copy where that is big-endian or not aligned.

        Args:
            content: header and elements, `[nbytes]` uint8.
        """
        order = "F" if self.fortran else "C"
        found = np.ndarray(self.shape, self.stored, content.data, self.start, order=order)
        return byteorder.native(found, self.dtype or self.stored)


def parse(head: bytes) -> Record:
    """Parses the header of a record.

    Args:
        head: its first `HEAD_BYTES` bytes, or all of it.

    Raises:
        ValueError: no such header, or a shape that fits no address space.
        Unsupported: a later version of the format.

    >>> buffer = io.BytesIO()
    >>> np.save(buffer, np.zeros((2, 3), np.float16))
    >>> parse(buffer.getvalue()).spec.shape
    (2, 3)
    """
    source = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(source)
        if version not in _HEADER_READERS:
            raise refusals.Unsupported(f"version {version} of the npy format")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers written by Python 2
            shape, fortran, stored = _HEADER_READERS[version](source, max_header_size=MAX_HEADER_BYTES)
    except refusals.Unsupported:
        raise
    # numpy evaluates the header as a Python literal and lets what the tokenizer raises through.
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError, EOFError) as error:
        raise ValueError(f"a header that numpy does not read ({str(error)[:200]})") from error
    return Record(limits.checked_shape(shape), stored, _leaf_dtype(stored), fortran, source.tell())


def _leaf_dtype(stored: np.dtype) -> np.dtype | None:
    if stored.kind == "V":  # bfloat16, whose name numpy does not keep; one byte could be any float8
        return np.dtype(ml_dtypes.bfloat16) if stored == np.dtype("V2") else None
    dtype = stored.newbyteorder("=")
    return dtype if dtype in _DTYPES else None
