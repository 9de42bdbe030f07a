"""What the Zarr metadata of an array may say before TensorStore parses it (https://zarr-specs.readthedocs.io).

TensorStore is fast but trusting: metadata of some kilobytes can overflow its stack (shards nested in shards), make it
allocate gigabytes for one fill value (`|V2147483647`) or keep it busy for minutes (100,000 fields).
"""

from collections.abc import Iterator
from typing import Any

from jaxguard.checkpoints import header, refusals
from jaxguard.checkpoints.checkpoint import DTYPES

MAX_BYTES = 2**16
_MAX_BRACKETS = 256  # also bounds the depth and the number of codecs; Orbax writes about 20
_ZARR3_DTYPES = frozenset(dtype.name for dtype in DTYPES.values())
_ZARR2_DTYPES = _ZARR3_DTYPES | {
    f"{order}{dtype.str[1:]}" for dtype in DTYPES.values() if dtype.isbuiltin == 1 for order in "<>|"
}
# All of these stream, so that decoding stops at the size of the chunk. Blosc allocates whatever a chunk announces.
_CODECS = frozenset({"bytes", "bz2", "crc32c", "gzip", "sharding_indexed", "transpose", "zlib", "zstd"})


class ElementType(refusals.Unsupported):
    """Elements of a type that no leaf may have: the array is left out, the others are read."""


FILE_NAMES = frozenset({".zarray", "zarr.json"})
"""Of the metadata of an array, in any version."""


def file_name(*, is_zarr3: bool) -> str:
    """Name of the metadata in the folder of an array."""
    return "zarr.json" if is_zarr3 else ".zarray"


def check(content: bytes, *, is_zarr3: bool) -> None:
    """Refuses metadata that no checkpoint of numbers needs; shape and chunks are left to TensorStore.

    Args:
        content: JSON.
        is_zarr3: version 3 of the format, otherwise version 2.

    Raises:
        Trick: too large or too deeply nested.
        Unsupported: elements or a codec that is not read.
        DamagedError: not one JSON object.

    >>> check(b'{"dtype": "<f4", "compressor": {"id": "zstd"}}', is_zarr3=False)
    >>> check(b'{"dtype": "|O", "compressor": null}', is_zarr3=False)
    Traceback (most recent call last):
    jaxguard.checkpoints.zarr_metadata.ElementType: elements of type '|O'
    """
    if len(content) > MAX_BYTES:
        raise refusals.Trick(f"more than {MAX_BYTES} bytes of metadata")
    if content.count(b"[") + content.count(b"{") > _MAX_BRACKETS:
        raise refusals.Trick(f"metadata with more than {_MAX_BRACKETS} brackets")
    found = header.parse(content, "metadata")
    kind = found.get("data_type" if is_zarr3 else "dtype")
    if not isinstance(kind, str | list):
        raise ValueError(f"metadata with the element type {header.shown(kind)}")
    if not isinstance(kind, str) or kind not in (_ZARR3_DTYPES if is_zarr3 else _ZARR2_DTYPES):
        raise ElementType(f"elements of type {header.shown(kind)}")
    for name in _codec_names([found.get("codecs"), found.get("compressor"), found.get("filters")]):
        if not isinstance(name, str) or name not in _CODECS:
            raise refusals.Unsupported(f"the codec {header.shown(name)} instead of one of {', '.join(sorted(_CODECS))}")


def _codec_names(codecs: Any) -> Iterator[Any]:
    """Names of codecs, those inside shards included."""
    match codecs:
        case list():
            for codec in codecs:
                yield from _codec_names(codec)
        case dict():
            yield codecs.get("name", codecs.get("id"))
            configuration = codecs.get("configuration")
            if isinstance(configuration, dict):
                yield from _codec_names([configuration.get("codecs"), configuration.get("index_codecs")])
        case str():  # TensorStore takes a bare name too
            yield codecs
