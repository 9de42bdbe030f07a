"""JSON headers written by strangers: bounded, UTF-8, one object, no key twice."""

import json
import os
import pathlib
import reprlib
from typing import Any

from jaxguard.checkpoints import refusals

MAX_HEADER_BYTES = 100_000_000
"""Largest header that is parsed; the limit of the safetensors format."""

_OBJECT = "one JSON object as header"
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlevel = 2


def shown(value: Any) -> str:
    """A `repr` that stays on one line for any content of a hostile file."""
    return _SHORT.repr(value)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise refusals.Trick(f"the key {shown(key)} twice, of which readers take either")
            seen.add(key)
    return found


def parse(content: bytes, where: str | os.PathLike[str]) -> dict[str, Any]:
    """Parses the JSON object in `content`.

    Args:
        content: the bytes of the header alone.
        where: file the bytes came from, for the message.

    Returns:
        The object; its values are unchecked.

    Raises:
        DamagedError: not UTF-8, not JSON, or not an object.
        HostileError: nested too deeply, or a key occurs twice.

    >>> parse(b'{"a": 1}', "demo")
    {'a': 1}
    """
    if len(content) > MAX_HEADER_BYTES:
        raise refusals.damaged(where, f"a header of at most {MAX_HEADER_BYTES} bytes", str(len(content)))
    try:
        found = json.loads(content.decode("utf-8"), object_pairs_hook=_unique_keys)
        if b"\\u" in content:  # refuses lone surrogates, which JSON can escape and nothing can print
            json.dumps(found, ensure_ascii=False).encode()
    except refusals.Trick as error:
        raise refusals.hostile(where, _OBJECT, str(error)) from error
    except RecursionError as error:
        raise refusals.hostile(where, _OBJECT, "brackets nested too deeply") from error
    except ValueError as error:
        raise refusals.damaged(where, _OBJECT, f"text that is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise refusals.damaged(where, _OBJECT, f"a JSON {type(found).__name__}")
    return found


def read(path: pathlib.Path) -> dict[str, Any]:
    """Parses a whole file, of which no more than the limit is read.

    Raises:
        CheckpointError: as `parse`.
    """
    with path.open("rb") as file:
        return parse(file.read(MAX_HEADER_BYTES + 1), path)
