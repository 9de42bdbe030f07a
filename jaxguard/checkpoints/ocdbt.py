"""Checks of OCDBT databases, into which Orbax packs the values of a checkpoint.

A manifest names the newest root of a B+tree, whose leaves hold keys with values or references to parts of files.
TensorStore trusts what a node announces about the length of its keys, so that a small file can take all memory:
every node is checked here before TensorStore reads the database.
"""

import itertools
import operator
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxguard.checkpoints import mapping, ocdbt_nodes, refusals
from jaxguard.checkpoints.ocdbt_nodes import Cursor, Extent

MANIFEST = "manifest.ocdbt"

_NUMBERED_MANIFESTS = "manifest." + "[0-9a-f]" * 16
_MANIFEST_MAGIC, _NODE_MAGIC = b"\x0c\xdb\x3a\x2a", b"\x0c\xdb\x20\xde"
_UUID_BYTES, _LEVEL_BYTES = 16, 4
_MAX_VERSIONS = 2**16
_MAX_TREE_BYTES = 2**28
_MAX_OPENED = 64


@dataclass(frozen=True, eq=False)
class Database:
    """The newest version of a database, checked; its values are still on disk.

    Attributes:
        directory: holds the manifest; its files must not be shortened in place while values are in use.
        entries: `{key: value or extent}`; each extent is inside a file of the directory.
    """

    directory: pathlib.Path
    entries: Mapping[bytes, memoryview | Extent]
    _files: "_Files" = field(repr=False)

    def value(self, key: str) -> memoryview:
        """The value of a key; memory-mapped if it is in a file of its own.

        Raises:
            KeyError: no such key.
            OSError: its file cannot be read.
        """
        found = self.entries[key.encode()]
        return self._files.content(found) if isinstance(found, Extent) else found


@dataclass(frozen=True, slots=True)
class _Node:
    """A node to visit.

    Attributes:
        place: its extent.
        height: 0 for a leaf.
        base: prefix of the paths in it.
        prefix: prefix of the keys in it.
        first: the smallest key below it.
        end: exclusive upper bound of the keys below it, if any.
    """

    place: Extent
    height: int
    base: bytes = b""
    prefix: bytes = b""
    first: bytes = b""
    end: bytes | None = None


class _Files:
    """The files of a database, each measured once; a few of them stay mapped."""

    def __init__(self, directory: pathlib.Path):
        self._directory = directory
        self._sizes: dict[bytes, int] = {}
        self._mapped: dict[bytes, memoryview] = {}

    def check(self, place: Extent) -> None:
        """Raises ValueError for an extent outside the directory, or beyond the end of its file."""
        if (size := self._sizes.get(place.path)) is None:
            name = place.path.decode()
            if {"", ".", ".."}.intersection(name.split("/")):
                raise refusals.Trick(f"a reference to {name[:80]!r}, a path out of the directory")
            if not (self._directory / name).is_file():
                raise ValueError(f"a reference to {name[:80]!r}, which is no file of the directory")
            size = self._sizes[place.path] = (self._directory / name).stat().st_size
        if place.offset + place.length > size:
            raise ValueError(f"{place.length} bytes at byte {place.offset} of a file that has {size}")

    def content(self, place: Extent) -> memoryview:
        """The bytes of an extent, checked."""
        self.check(place)
        if (content := self._mapped.get(place.path)) is None:
            # A file descriptor each: forget all rather than track which was used last.
            if len(self._mapped) >= _MAX_OPENED:
                self._mapped.clear()
            content = self._mapped[place.path] = mapping.mapped(self._directory / place.path.decode()).data
        return content[place.offset : place.offset + place.length]


def opened(directory: pathlib.Path) -> Database:
    """Reads all keys of a database.

    Args:
        directory: holds the manifest.

    Raises:
        ValueError: a damaged database.
        Trick: one whose nodes lead out of the directory, or are a bomb.
        OSError: a file that cannot be read.
    """
    files = _Files(directory)
    found: dict[bytes, memoryview | Extent] = {}
    pending, num_bytes = [_root(directory)], 0
    while pending:
        node = pending.pop()
        cursor = ocdbt_nodes.body(files.content(node.place), _NODE_MAGIC)
        num_bytes += node.place.length + len(cursor.content)
        # References may form a lattice in which a few nodes are reached along exponentially many paths.
        if num_bytes > _MAX_TREE_BYTES:  # one node can be in many places
            raise refusals.Trick(f"a tree of more than {_MAX_TREE_BYTES} bytes")
        (height,) = cursor.take(1)
        if height != node.height:
            raise ValueError(f"a node of height {height} in place of {node.height}")
        table = cursor.files(node.base)
        count = cursor.count(ocdbt_nodes.MAX_ENTRIES - len(found) - len(pending))
        if count == 0:
            raise ValueError("an empty node")
        if height:
            # A stack, filled in reverse: children are visited in the order of their keys.
            pending += reversed(_children(cursor, node, table, count))
        else:
            leaf = _leaf(cursor, node, table, count)
            num_bytes += sum(map(len, leaf))
            found |= leaf
    for place in found.values():
        if isinstance(place, Extent):
            files.check(place)
    return Database(directory, found, files)


def _root(directory: pathlib.Path) -> _Node:
    """The newest root."""
    cursor = _manifest(directory / MANIFEST)
    if cursor is None:
        numbered = sorted(directory.glob(_NUMBERED_MANIFESTS))
        cursor = _manifest(numbered[-1]) if numbered else None
    if cursor is None:
        raise ValueError("a manifest without a tree")
    files = cursor.files(b"")
    count = cursor.count(_MAX_VERSIONS)
    cursor.integers(count)  # numbers of the versions, increasing
    heights = cursor.take(count)
    (place, offset, length) = (cursor.integers(count)[-1:] for _ in range(3))
    if not heights or place[0] >= len(files):
        raise ValueError("a root in no file")
    path, base = files[place[0]]
    return _Node(Extent(path, offset[0], length[0]), heights[-1], base)


def _manifest(path: pathlib.Path) -> Cursor | None:
    """A manifest behind the settings it begins with; None where its tree is in a numbered one beside it."""
    cursor = ocdbt_nodes.body(mapping.mapped(path).data, _MANIFEST_MAGIC)
    cursor.take(_UUID_BYTES)
    (kind,) = cursor.take(1)
    cursor.integers(2)  # the longest inline value, the largest node
    cursor.take(1)  # arity of the tree of versions
    if cursor.integer() == 1:
        cursor.take(_LEVEL_BYTES)  # of compression
    return cursor if kind == 0 else None


def _children(cursor: Cursor, node: _Node, files: list[tuple[bytes, bytes]], count: int) -> list[_Node]:
    prefixes, suffixes, shared = (0, *cursor.integers(count - 1)), cursor.integers(count), cursor.integers(count)
    names = cursor.names(prefixes, suffixes)
    keys = _in_order(names, node)
    places, offsets, lengths = (cursor.integers(count) for _ in range(3))
    if max(places) >= len(files):
        raise ValueError("a node in no file")
    if any(length > len(name) for length, name in zip(shared, names, strict=True)):
        raise ValueError("a node whose keys share more than their first one has")
    return [
        _Node(
            Extent(files[place][0], offset, length),
            node.height - 1,
            files[place][1],
            node.prefix + name[:num_shared],
            key,
            end,
        )
        for place, offset, length, name, num_shared, key, end in zip(
            places, offsets, lengths, names, shared, keys, (*keys[1:], node.end), strict=True
        )
    ]


def _leaf(
    cursor: Cursor, node: _Node, files: list[tuple[bytes, bytes]], count: int
) -> dict[bytes, memoryview | Extent]:
    names = cursor.names((0, *cursor.integers(count - 1)), cursor.integers(count))
    keys = _in_order(names, node)
    lengths, kinds = cursor.integers(count), cursor.take(count)
    if max(kinds) > 1:
        raise ValueError("a value that lies neither here nor in a file")
    num_outside = sum(kinds)
    places, offsets = cursor.integers(num_outside), cursor.integers(num_outside)
    if max(places, default=-1) >= len(files):
        raise ValueError("a value in no file")
    outside = iter(zip(places, offsets, strict=True))
    content = memoryview(cursor.content)
    found: dict[bytes, memoryview | Extent] = {}
    for key, length, kind in zip(keys, lengths, kinds, strict=True):
        if kind:
            place, offset = next(outside)
            found[key] = Extent(files[place][0], offset, length)
        else:
            start = cursor.position
            cursor.skip(length)
            found[key] = content[start : start + length]
    if cursor.position != len(content):
        raise ValueError("a node with more behind its values")
    return found


def _in_order(names: list[bytes], node: _Node) -> list[bytes]:
    """The keys of a node in full."""
    keys = [node.prefix + name for name in names] if node.prefix else names
    is_increasing = all(itertools.starmap(operator.lt, itertools.pairwise(keys)))
    if not is_increasing or keys[0] < node.first or (node.end is not None and keys[-1] >= node.end):
        raise ValueError("keys out of order")
    return keys
