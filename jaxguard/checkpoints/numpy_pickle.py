"""NumPy and JAX arrays inside pickles, from the arguments and the state NumPy stores; copied when they are read."""

from typing import Any

import numpy as np

from jaxguard.checkpoints import byteorder, header, limits
from jaxguard.checkpoints.checkpoint import DTYPES, LeafSpec
from jaxguard.checkpoints.pickle_containers import Encoded, content_of
from jaxguard.checkpoints.pickle_objects import Builders, Global, Record

_DTYPES = {dtype.name: dtype for dtype in DTYPES.values()} | {
    f"{dtype.kind}{dtype.itemsize}": dtype for dtype in DTYPES.values() if dtype.kind != "V"
}
_MODULES = ("numpy.core", "numpy._core")


class Dtype:
    """An element type by its name.

    Attributes:
        name: as numpy wrote it, such as `f4`.
        dtype: the type, None where a leaf may not have it.
        swapped: whether the content is big-endian.
    """

    __slots__ = ("dtype", "name", "swapped")

    def __init__(self, name: Any, *_: Any):
        self.name = header.shown(name.name if isinstance(name, Global) else name)
        known = name.name.rpartition(".")[2] if isinstance(name, Global) else name
        self.dtype = _DTYPES.get(known) if isinstance(known, str) else None
        self.swapped = False

    def build(self, state: Any) -> None:
        """Takes `(version, byte order, ...)`."""
        self.swapped = isinstance(state, tuple) and len(state) > 1 and state[1] in (">", b">")


class Array:
    """An array leaf, once `build` has brought its content.

    Attributes:
        spec: shape and element type; None where it cannot be read.
        problem: what it is in that case, such as `an array of objects`.
    """

    __slots__ = ("_content", "_fortran", "_swapped", "problem", "spec")

    def __init__(self, *_: Any):
        self.spec: LeafSpec | None = None
        self.problem = "an array without content"
        self._content: bytes | bytearray | Encoded = b""
        self._fortran = self._swapped = False

    def build(self, state: Any) -> None:
        """Takes `(version, shape, dtype, is Fortran order, content)`, as numpy's `__setstate__` does."""
        if not isinstance(state, tuple) or not 4 <= len(state) <= 5 or not isinstance(state[-3], Dtype):
            raise ValueError("an array whose state is not shape, dtype, order and content")
        shape, dtype, fortran, content = state[-4:]
        if dtype.dtype is None:
            self.spec, self.problem = None, f"an array of element type {dtype.name}"
            return
        spec = LeafSpec(limits.checked_shape(shape), dtype.dtype)
        self._content = content_of(content)
        if len(self._content) != spec.nbytes:
            raise ValueError(f"an array of {spec.nbytes} bytes with {len(self._content)} bytes of content")
        self.spec, self._fortran, self._swapped = spec, bool(fortran), dtype.swapped

    def read(self) -> np.ndarray:
        """The array, read-only; raises ValueError where its content is no bytes after all."""
        assert self.spec is not None
        stored = byteorder.swapped(self.spec.dtype) if self._swapped else self.spec.dtype
        flat = byteorder.native(np.frombuffer(bytes(self._content), stored), self.spec.dtype)
        return flat.reshape(self.spec.shape, order="F" if self._fortran else "C")


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> Array:
    array = Array()
    array.build((shape, dtype, order == "F", content))
    return array


def _from_jax(function: Any, args: Any, state: Any, *_: Any) -> Array:
    del args
    if not isinstance(function, Global) or BUILDERS.get(function.name) is not Array:
        raise ValueError("a JAX array that is not made from a NumPy array")
    array = Array()
    array.build(state)
    return array


def _scalar(dtype: Any, content: Any = b"", *_: Any) -> Any:
    if not isinstance(dtype, Dtype) or dtype.dtype is None:
        return Record("numpy.scalar", (dtype, content))
    array = Array()
    array.build(((), dtype, False, content))
    return array.read().item()


def _named(name: str) -> Any:
    return lambda *args: Record(name, args)


BUILDERS: Builders = {
    "numpy.dtype": Dtype,
    "numpy.ndarray": _named("numpy.ndarray"),
    **{f"{module}.multiarray._reconstruct": Array for module in _MODULES},
    **{f"{module}.multiarray.scalar": _scalar for module in _MODULES},
    **{f"{module}.numeric._frombuffer": _from_buffer for module in _MODULES},
    **{f"ml_dtypes.{dtype.name}": _named(dtype.name) for dtype in DTYPES.values() if dtype.kind == "V"},
    "jax._src.array._reconstruct_array": _from_jax,
}
"""What a pickle of arrays refers to."""
