"""Why a file is refused, one wording for each of three facts: not supported, damaged, hostile.

Inside a reader, code that knows neither the file nor the leaf raises `ValueError` for a broken promise of the format,
`Unsupported` for a sound feature that is not read, `Trick` for what only a hostile file has; `because` makes the error
of a user out of each.
"""

import os

from jaxguard.errors import CheckpointError, DamagedError, HostileError, UnsupportedError

SAVE_AGAIN = "save the weights again as safetensors"

NOT_SUPPORTED = ", which is not supported"
"""How the reason ends why an entry is left out that may be a weight."""

Where = str | os.PathLike[str]


class Unsupported(ValueError):
    """Sound content that is not read; the message names the feature."""


class Trick(ValueError):
    """Content that no honest writer makes; the message names the trick."""


def damaged(where: Where, expected: str, found: str) -> DamagedError:
    """A broken promise of the format.

    Args:
        where: the path as the user wrote it, and the leaf.
        expected: the promise.
        found: what is there instead.

    >>> str(damaged("m.npz", "8 bytes", "7"))
    'm.npz: expected 8 bytes, got 7; the file is damaged, download or save it again'
    """
    return DamagedError(
        f"{os.fspath(where)}: expected {expected}, got {found}; the file is damaged, download or save it again"
    )


def hostile(where: Where, expected: str, found: str) -> HostileError:
    """A trick on readers; for the arguments see `damaged`."""
    return HostileError(
        f"{os.fspath(where)}: expected {expected}, got {found}; that is a trick on readers, the file is hostile: do "
        "not use it"
    )


def unsupported(where: Where, expected: str, found: str, remedy: str = SAVE_AGAIN) -> UnsupportedError:
    """A sound feature that is not read; for the arguments see `damaged`, `remedy` is what to do about it."""
    return UnsupportedError(f"{os.fspath(where)}: expected {expected}, got {found}, which is not supported; {remedy}")


def because(error: Exception, where: Where, expected: str, found: str = "") -> CheckpointError:
    """The error to raise about a file, of the kind that a reader's own error is.

    Args:
        error: what was raised inside a reader.
        where: see `damaged`.
        expected: likewise.
        found: likewise; by default the message of the error.
    """
    found = found or str(error) or type(error).__name__
    if isinstance(error, Unsupported | UnsupportedError):
        return unsupported(where, expected, found)
    kind = hostile if isinstance(error, Trick | HostileError) else damaged
    return kind(where, expected, found)
