"""CRC-32C, the checksum of OCDBT's nodes and of Zarr's shard indices; the standard library has others only."""

from collections.abc import Iterable

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, lowest bit first
_ALL_ONES = 0xFFFFFFFF


def _remainder(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = tuple(_remainder(byte) for byte in range(256))


def crc32c(content: Iterable[int]) -> int:
    """The checksum of bytes; 20 MB/s, meant for the small parts that carry one.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    table, checksum = _TABLE, _ALL_ONES
    for byte in content:
        checksum = table[(checksum ^ byte) & 0xFF] ^ checksum >> 8
    return checksum ^ _ALL_ONES
