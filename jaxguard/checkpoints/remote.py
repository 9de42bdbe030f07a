"""Checkpoints behind a URL, brought to a local folder first: `hf://` repositories, and whatever fsspec can open.

The libraries for it are an extra, `pip install 'jaxguard[remote]'`. Only weights and configurations are downloaded, to
`$XDG_CACHE_HOME/jaxguard`, where only so much is kept, or to Hugging Face's own cache where the repository is there
already; what changed behind its URL is downloaded again.
"""

import contextlib
import hashlib
import importlib
import os
import pathlib
import posixpath
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from jaxguard.checkpoints import atomic, downloads, header, repository
from jaxguard.errors import CheckpointError

MAX_FILES = 10_000
MAX_BYTES = 2**36
_BLOCK_BYTES = 2**22
_HUGGING_FACE = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:/([^@]+))?(?:@([\w./-]+))?")
_WEIGHTS = (
    ("*.safetensors", "*.safetensors.index.json"),
    ("flax_model*.msgpack", "flax_model.msgpack.index.json"),
    ("*.keras", "*.h5"),
    ("pytorch_model*.bin", "pytorch_model.bin.index.json", "*.pth", "*.pt"),
)
"""Patterns of a repository's weights, the ones to be preferred first."""


def fetched(given: str) -> pathlib.Path:
    """Downloads what a URL names, unless it is there already.

    Args:
        given: `hf://owner/name`, with `/file` and `@revision` where one is meant, or a file or folder of fsspec.

    Returns:
        The local file or folder.

    Raises:
        CheckpointError: a library is not installed, nothing is there, access is refused, or it is too large.
    """
    fetch = _from_hugging_face if given.startswith("hf://") else _from_file_system
    try:
        return fetch(given)
    except ImportError as error:
        raise _not_installed(given, error) from error
    except CheckpointError:
        raise
    except Exception as error:  # every storage has its own
        raise _unreachable(given, error) from error


def listed(given: str) -> list[str]:
    """The files that a URL of a folder or a pattern means, `gs://bucket/models` or `s3://bucket/**/*.safetensors`.

    Args:
        given: a URL; those of Hugging Face name one repository and are returned as they are, like those of a file.

    Returns:
        URLs in the order of their names.

    Raises:
        CheckpointError: a library is not installed, nothing is there, or access is refused.
    """
    if given.startswith("hf://"):
        return [given]
    system, root = _opened(given)
    try:
        if any(mark in root for mark in "*?["):
            found = [path for path in system.glob(root) if not system.isdir(path)]
        else:
            found = system.find(root) if system.isdir(root) else [root]
        return [system.unstrip_protocol(path) for path in sorted(found)]
    except Exception as error:  # every storage has its own
        raise _unreachable(given, error) from error


def _opened(given: str) -> tuple[Any, str]:
    try:
        return importlib.import_module("fsspec.core").url_to_fs(given)
    except ImportError as error:
        raise _not_installed(given, error) from error
    except Exception as error:
        raise _unreachable(given, error) from error


def _not_installed(given: str, error: ImportError) -> CheckpointError:
    return CheckpointError(
        f"{given}: expected the libraries that open URLs, got {error}; pip install 'jaxguard[remote]', "
        "or download it yourself and pass the path"
    )


def _unreachable(given: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{given}: expected a file or folder that can be downloaded, got {type(error).__name__} "
        f"{header.shown(str(error))}; check its spelling, your access, and the network"
    )


def _from_hugging_face(given: str) -> pathlib.Path:
    match = _HUGGING_FACE.fullmatch(given)
    if match is None or ".." in (match[2] or "").split("/"):
        raise CheckpointError(
            f"expected hf://owner/name, with /file and @revision where one is meant, got {given}; check its spelling"
        )
    repository_id, file, revision = match.groups()
    hub = importlib.import_module("huggingface_hub")
    with _hub_cache(repository_id) as cache:
        if file is not None:
            return pathlib.Path(hub.hf_hub_download(repository_id, file, revision=revision, cache_dir=cache))
        for patterns in _WEIGHTS:
            folder = pathlib.Path(
                hub.snapshot_download(
                    repository_id,
                    revision=revision,
                    allow_patterns=[*repository.CONFIGS, *patterns],
                    ignore_patterns=["*/*"],
                    cache_dir=cache,
                )
            )
            if any(next(folder.glob(pattern), None) for pattern in patterns):
                return folder
    raise CheckpointError(
        f"{given}: expected weights in the repository, got none of "
        f"{', '.join(pattern for patterns in _WEIGHTS for pattern in patterns)}; name the file, hf://{repository_id}/FILE"
    )


@contextlib.contextmanager
def _hub_cache(repository_id: str) -> Iterator[pathlib.Path | None]:
    """Where a repository is downloaded to; None for Hugging Face's own cache, which has it."""
    name = f"models--{repository_id.replace('/', '--')}"
    constants = importlib.import_module("huggingface_hub.constants")
    if (pathlib.Path(constants.HF_HUB_CACHE) / name).is_dir():
        yield None
        return
    entry = downloads.use(name)
    before = downloads.size(entry)
    yield entry
    downloads.use(name)
    if (size := downloads.size(entry)) > before:
        downloads.added(size - before)


def _from_file_system(given: str) -> pathlib.Path:
    system, root = importlib.import_module("fsspec.core").url_to_fs(given)
    is_folder = system.isdir(root)
    found = system.find(root, detail=True) if is_folder else {root: system.info(root)}
    sizes = {path: int(info["size"] or 0) for path, info in found.items() if info["type"] == "file"}
    if not sizes or len(sizes) > MAX_FILES or sum(sizes.values()) > MAX_BYTES:
        raise CheckpointError(
            f"{given}: expected 1 to {MAX_FILES} files of at most {MAX_BYTES} bytes together, got {len(sizes)} of "
            f"{sum(sizes.values())}; pass the folder or the file that holds the weights"
        )
    names = {path: posixpath.relpath(path, root) if is_folder else posixpath.basename(path) for path in sizes}
    for name in names.values():
        if name.startswith("/") or {"..", "."} & set(name.split("/")) or "\0" in name:
            raise CheckpointError(f"{given}: expected files below it, got {header.shown(name)}; download it yourself")
    state = [given, *(f"{name} {system.checksum(path)}" for path, name in sorted(names.items()))]
    key = hashlib.sha256("\n".join(state).encode("utf-8", "surrogatepass")).hexdigest()[:32]
    # The same state has the same time, so that a repeated download does not count as another file.
    modified = int(key[:14], 16)
    cached = downloads.use(key)
    last = posixpath.basename(root.rstrip("/")) or "checkpoint"
    if not cached.is_dir():
        cached.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(cached, overwrite=True) as fresh:
            for path, size in sizes.items():
                target = fresh / last / names[path] if is_folder else fresh / last
                target.parent.mkdir(parents=True, exist_ok=True)
                with system.open(path, "rb") as source, target.open("wb") as file:
                    _copy(source, file, size, given)
                os.utime(target, ns=(modified, modified))
        downloads.use(key)
        downloads.added(sum(sizes.values()))
    return cached / last


def _copy(source: Any, target: BinaryIO, size: int, given: str) -> None:
    left = size
    while block := source.read(_BLOCK_BYTES):
        left -= len(block)
        if left < 0:
            break
        target.write(block)
    if left:
        raise CheckpointError(f"{given}: expected a file of {size} bytes, got {size - left}; it changed, try again")
