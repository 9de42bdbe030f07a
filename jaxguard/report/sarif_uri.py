"""Paths and addresses of checkpoints as URI references (RFC 3986), the only ones that SARIF knows."""

import os
import re
from urllib import parse

BASE = "WORKDIR"
"""Name of the base that relative references are to be resolved against."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PATH = "/!$&'()*+,;=@~"
_RESERVED = f"{_PATH}:?%"


def location(path: str) -> dict[str, str]:
    """Writes where a checkpoint lies as a SARIF `artifactLocation`.

    Args:
        path: absolute or relative path, or URL, as the user gave it. Bytes that are no UTF-8 (surrogate escapes) are
            kept; `..` in an absolute path is resolved in the file system, as the standard wants it (3.10.2).

    Returns:
        `uri`, and `uriBaseId` for a relative path.

    >>> location("runs/Fähre 1.npz"), location("/data/100%#1?.npz")
    ({'uri': 'runs/F%C3%A4hre%201.npz', 'uriBaseId': 'WORKDIR'}, {'uri': 'file:///data/100%25%231%3F.npz'})
    >>> location("hf://owner/model@v1")["uri"], location("./a:b//c.npz")["uri"]
    ('hf://owner/model@v1', 'a%3Ab/c.npz')
    """
    if _SCHEME.match(path):
        return {"uri": _address(path)}
    if path.startswith("/"):
        whole = os.path.realpath(path) if ".." in path.split("/") and "\0" not in path else path
        return {"uri": f"file:///{_segments(whole)}"}
    return {"uri": _segments(path) or ".", "uriBaseId": BASE}


def _segments(path: str) -> str:
    kept = "/".join(part for part in path.split("/") if part not in ("", "."))
    return parse.quote(_bytes(kept), safe=_PATH)


def _address(url: str) -> str:
    """An IRI as a URI: what is reserved or escaped already stays, all else is escaped (RFC 3987, 3.1)."""
    scheme, _, rest = url.partition("://")
    place, hash_sign, fragment = _STRAY_PERCENT.sub("%25", rest).partition("#")
    host, slash, path = place.partition("/")
    brackets = "[]" if host.rpartition("@")[2].startswith("[") else ""
    return (
        f"{scheme.lower()}://{parse.quote(_bytes(host), safe=_RESERVED + brackets)}"
        f"{slash}{parse.quote(_bytes(path), safe=_RESERVED)}{hash_sign}{parse.quote(_bytes(fragment), safe=_RESERVED)}"
    )


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
