"""Atomic writing of a file or a directory."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from jaxguard.errors import CheckpointError


@contextlib.contextmanager
def replacing(target: pathlib.Path, *, overwrite: bool) -> Iterator[pathlib.Path]:
    """Yields a sibling path to write to, and renames it to `target` when the block ends without an exception.

    The content is on disk (fsync) before the rename. After an exception nothing is left behind and an old
    `target` is unchanged. A file replaces a file in one step; if either is a directory, the old target is moved
    aside first, so that a crash between two renames leaves it in a hidden sibling folder.

    Args:
        target: file or directory to write.
        overwrite: whether to replace an existing target.

    Raises:
        CheckpointError: the target exists and `overwrite` is False, or its folder does not exist.
    """
    if not target.parent.is_dir():
        raise CheckpointError(
            f"{target}: expected an existing folder to write into, got no {target.parent}; "
            f"create it (mkdir -p {target.parent}) or choose another path"
        )
    if not overwrite and os.path.lexists(target):
        raise CheckpointError(
            f"{target}: expected a path that is free, got an existing checkpoint or other file; "
            "choose another path or pass overwrite=True"
        )
    workspace = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    fresh, aside = workspace / "fresh", workspace / "replaced"
    try:
        yield fresh
        _flush(fresh)
        if os.path.lexists(target) and (_is_real_directory(target) or fresh.is_dir()):
            os.rename(target, aside)
            try:
                os.rename(fresh, target)
            except OSError:
                os.rename(aside, target)
                raise
        else:
            os.replace(fresh, target)
        _fsync(target.parent)
    finally:
        if os.path.lexists(target) or not os.path.lexists(aside):  # never delete the only copy of the old target
            shutil.rmtree(workspace, ignore_errors=True)


def _is_real_directory(path: pathlib.Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _flush(path: pathlib.Path) -> None:
    if path.is_dir():
        for child in path.iterdir():
            _flush(child)
    _fsync(path)


def _fsync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
