"""PyTorch files written by hand, opcode by opcode, so that every lie can be told."""

import io
import struct
import zipfile

STOP = b"."
ZERO = struct.pack("<f", 0.0)
LEGACY_HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def whole(value: int) -> bytes:
    return b"I%d\n" % value


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(whole, values)) + b"t"


def storage(key: str = "0", size: int = 6, kind: str = "torch FloatStorage", rest: bytes = b"") -> bytes:
    module, name = kind.split()
    return (
        b"(" + text("storage") + f"c{module}\n{name}\n".encode() + text(key) + text("cpu") + whole(size) + rest + b"tQ"
    )


def tensor(shape=(2, 3), strides=(3, 1), first: int = 0, stored: bytes | None = None, rest: bytes = b"") -> bytes:
    place = whole(first) + numbers(*shape) + numbers(*strides)
    content = storage() if stored is None else stored
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + content + place + b"I00\n}" + rest + b"tR"


def mapping(**entries: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def zipped(
    program: bytes,
    storages: dict[str, bytes] | None = None,
    order: bytes | None = None,
    *,
    is_exact: bool = False,
    **options,
) -> bytes:
    """A zip container around a pickle; by default with one storage of six numbers, and those alone it refers to."""
    content = {"0": struct.pack("<6f", *range(6))} if storages is None else storages
    if not is_exact:
        content = {key: value for key, value in content.items() if text(key) in program}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as file:
        file.writestr("archive/data.pkl", program + STOP)
        if order is not None:
            file.writestr("archive/byteorder", order)
        for key, value in content.items():
            file.writestr(f"archive/data/{key}", value)
    return buffer.getvalue()


def legacy(program: bytes, storages: dict[str, bytes] | None = None, counts: dict[str, int] | None = None) -> bytes:
    """A legacy stream around a pickle; `counts` overrides the announced numbers of elements."""
    content = {"0": struct.pack("<6f", *range(6))} if storages is None else storages
    keys = b"](" + b"".join(map(text, content)) + b"e."
    announced = {key: len(value) // 4 for key, value in content.items()} | (counts or {})
    data = b"".join(announced[key].to_bytes(8, "little", signed=True) + value for key, value in content.items())
    return LEGACY_HEAD + program + STOP + keys + data
