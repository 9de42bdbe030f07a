"""PyTorch's tensors as pickles describe them: views of storages, of which the pickle has key, type and size alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxguard.checkpoints import byteorder, header, limits
from jaxguard.checkpoints.checkpoint import DTYPES, LeafSpec
from jaxguard.checkpoints.pickle_objects import Builders, Global, Record, Unreadable

_STORAGES = {
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
}
_DTYPES = {
    "float32": "F32",
    "float64": "F64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
}
_OTHER_STORAGES = {"ComplexDoubleStorage": 16, "QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4}
_OTHER_DTYPES = (
    *("complex128", "complex32", "qint8", "quint8", "qint32", "float4_e2m1fn_x2", "quint4x2", "quint2x4"),
    *(f"{kind}{bits}" for kind in ("int", "uint", "bits") for bits in range(1, 8)),
)
_UNTYPED = frozenset(
    f"{module}.{name}" for module in ("torch", "torch.storage") for name in ("UntypedStorage", "_UntypedStorage")
)
_CODES = {
    **{f"torch.{name}": code for name, code in (_STORAGES | _DTYPES).items()},
    **{f"torch.cuda.{name}": code for name, code in _STORAGES.items()},
}

_TYPES: Mapping[str, tuple[np.dtype | None, int]] = {
    **dict.fromkeys(_UNTYPED, (None, 1)),
    **{name: (DTYPES[code], DTYPES[code].itemsize) for name, code in _CODES.items()},
}
_MAX_ELEMENTS = limits.MAX_LEAF_BYTES // 16

StorageFn = Callable[[str], np.ndarray]
"""Key of a storage -> its bytes, `[n]` uint8, at least as many as announced."""


@dataclass(eq=False, slots=True)  # frozen, it would take three times as long to make
class Storage:
    """One-dimensional memory that tensors view.

    Attributes:
        key: name under which the container keeps it.
        dtype: of its elements; None where it only counts bytes, or where no leaf may have its type.
        kind: name of its type, for messages.
        itemsize: bytes of one of its elements.
        size: elements it is announced to hold.
        first: element of the kept storage at which it begins; other than zero for views of storages only.
    """

    key: str
    dtype: np.dtype | None
    kind: str
    itemsize: int
    size: int
    first: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes that the kept storage must have."""
        return (self.first + self.size) * self.itemsize


@dataclass(eq=False, slots=True)
class Tensor:
    """A tensor leaf: `shape` elements at `first + index · strides` of a storage, all of them inside of it."""

    spec: LeafSpec
    storage: Storage
    first: int
    strides: tuple[int, ...]

    def read(self, storage_fn: StorageFn, *, big_endian: bool = False) -> np.ndarray:
        """The tensor as a read-only view of its storage; copied where that is big-endian or not aligned."""
        dtype = byteorder.swapped(self.spec.dtype) if big_endian else self.spec.dtype
        start = self.storage.first * self.storage.itemsize + self.first * dtype.itemsize
        content = storage_fn(self.storage.key)[: self.storage.nbytes]
        strides = tuple([stride * dtype.itemsize for stride in self.strides])
        if 0 in self.spec.shape:
            return byteorder.native(np.empty(self.spec.shape, dtype), self.spec.dtype)
        return byteorder.native(np.ndarray(self.spec.shape, dtype, content.data, start, strides), self.spec.dtype)


def storage_of(kind: Any, key: Any, size: Any, first: int = 0) -> Storage:
    """The storage that a persistent id names.

    Args:
        kind: global such as `torch.FloatStorage`.
        key: text.
        size: elements, or bytes for an untyped storage.
        first: element of the kept storage at which it begins.

    Raises:
        ValueError: an unknown type, or a key or size that is none.
    """
    if not isinstance(kind, Global) or not isinstance(key, str):
        raise ValueError(f"a storage of type {header.shown(kind)} under the key {header.shown(key)}")
    if not _is_number(size) or not _is_number(first):
        raise ValueError(f"a storage of {header.shown(size)} elements")
    dtype, itemsize = _TYPES.get(kind.name) or (None, _OTHER_STORAGES.get(kind.name.rpartition(".")[2]))
    return Storage(key, dtype, kind.name, itemsize or 0, size, first)  # 0: of an unknown type, which is left out


def _is_number(found: Any) -> bool:
    """Whether `found` counts elements of something that fits into an address space."""
    return type(found) is int and 0 <= found < _MAX_ELEMENTS


def _tensor(storage: Any, first: Any, shape: Any, strides: Any, *rest: Any) -> Tensor | Unreadable:
    """`torch._utils._rebuild_tensor` and `_v2`: `(..., requires_grad, hooks, metadata)` follow."""
    metadata = rest[2] if len(rest) > 2 else None
    if isinstance(storage, Unreadable):
        return storage
    if not isinstance(storage, Storage):
        raise ValueError(f"a tensor whose storage is a {type(storage).__name__}")
    if storage.dtype is None:
        return Unreadable(f"a tensor of type {header.shown(storage.kind)}")
    return _viewed(storage, storage.dtype, first, shape, strides, metadata=metadata)


def _typed_tensor(*args: Any) -> Tensor | Unreadable:
    """`_rebuild_tensor_v3`: the element type follows the hooks, as the storage only counts bytes."""
    storage, first, shape, strides, _, _, kind, *rest = args
    if not isinstance(storage, Storage) or not isinstance(kind, Global):
        raise ValueError(f"a tensor of element type {header.shown(kind)}")
    if kind.name not in _CODES:
        return Unreadable(f"a tensor of type {header.shown(kind.name)}")
    return _viewed(storage, DTYPES[_CODES[kind.name]], first, shape, strides, metadata=rest[0] if rest else None)


def _viewed(
    storage: Storage, dtype: np.dtype, first: Any, shape: Any, strides: Any, *, metadata: Any
) -> Tensor | Unreadable:
    """The tensor from element `first` on, if that is inside of the storage."""
    if metadata and isinstance(metadata, Mapping) and any(metadata.get(name) for name in ("conj", "neg")):
        return Unreadable("a tensor marked as conjugate or negative")
    sizes = limits.checked_shape(shape)
    if not isinstance(strides, tuple) or len(strides) != len(sizes) or not limits.are_sizes(strides):
        raise ValueError(f"the strides {header.shown(strides)} for the shape {header.shown(sizes)}")
    if type(first) is not int or first < 0:
        raise ValueError(f"a tensor that begins at element {header.shown(first)}")
    used, last = [], first
    for size, stride in zip(sizes, strides, strict=True):
        used.append(stride if size > 1 else 0)
        last += (size - 1) * used[-1]
    if 0 not in sizes and (last + 1) * dtype.itemsize > storage.size * storage.itemsize:
        raise ValueError(
            f"a tensor of shape {header.shown(sizes)} and strides {header.shown(strides)} from element {first} on, "
            f"which leaves its storage of {storage.size} elements"
        )
    return Tensor(LeafSpec(sizes, dtype), storage, first, tuple(used))


def _first_argument(value: Any = None, *args: Any) -> Any:
    """Parameters, tensors of a subclass and the like: what they wrap."""
    return value if isinstance(value, Tensor | Unreadable) else Record("torch.Tensor", (value, *args))


def _of_subclass(function: Any, _: Any, args: Any, *rest: Any) -> Any:
    """`torch._tensor._rebuild_from_type_v2(function, class, args, state)`."""
    builder = _REBUILDS.get(function.name) if isinstance(function, Global) else None
    if builder is None or not isinstance(args, tuple):
        return Record("torch.Tensor", (function, args, *rest))
    return builder(*args)


def _unreadable(kind: str) -> Callable[..., Unreadable]:
    return lambda *_: Unreadable(kind)


def _size(shape: Any = ()) -> Any:
    return limits.checked_shape(shape)


_REBUILDS: Builders = {
    **dict.fromkeys(("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"), _tensor),
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _first_argument,
    "torch._utils._rebuild_parameter_with_state": _first_argument,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first_argument,
    "torch._utils._rebuild_qtensor": _unreadable("a quantized tensor"),
    "torch._utils._rebuild_sparse_tensor": _unreadable("a sparse tensor"),
    "torch._utils._rebuild_sparse_csr_tensor": _unreadable("a sparse tensor"),
    "torch._utils._rebuild_nested_tensor": _unreadable("a nested tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": _unreadable("a tensor without content, of the meta device"),
    "torch._utils._rebuild_wrapper_subclass": _unreadable("a tensor that wraps others"),
    "torch.storage._load_from_bytes": _unreadable("a tensor pickled without torch.save"),
}
BUILDERS: Builders = {
    **_REBUILDS,
    **dict.fromkeys(("torch._tensor._rebuild_from_type", "torch._tensor._rebuild_from_type_v2"), _of_subclass),
    **dict.fromkeys(("torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"), _first_argument),
    **dict.fromkeys(("torch.Tensor", "torch.autograd.variable.Variable"), _first_argument),
    "torch.Size": _size,
    "torch.device": lambda *args: Record("torch.device", args),
    "torch.serialization._get_layout": lambda *args: Record("torch.layout", args),
    **dict.fromkeys(("torch.storage.TypedStorage", "torch.storage._TypedStorage"), _unreadable("a storage")),
    **dict.fromkeys(
        (
            *_UNTYPED,
            *_CODES,
            *(
                f"torch.{name}"
                for name in (*_OTHER_STORAGES, *_OTHER_DTYPES, "per_tensor_affine", "per_channel_affine")
            ),
        ),
        _unreadable("a bare storage or element type"),
    ),
}
"""What PyTorch's own pickles refer to."""
