"""A folder with a model: what Hugging Face's `from_pretrained` opens, or a checkpoint among other files.

Of several weights the safest are read: safetensors before msgpack before pickles. The folder's configuration is read as
text; code that it names or contains is never run.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from jaxguard.checkpoints import header, refusals, sharded
from jaxguard.errors import CheckpointError

CONFIGS = ("config.json", "preprocessor_config.json")
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "flax_model.msgpack",
    "flax_model.msgpack.index.json",
    "tf_model.h5",
    "model.keras",
    "model.weights.h5",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names of Hugging Face and Keras, preferred ones first."""

_MAX_FILES = 10_000
_MAX_CONFIG_BYTES = 2**22
_MAX_FIELDS = 200
_MAX_FIELD_LENGTH = 2000


def holds_weights(folder: pathlib.Path) -> bool:
    """Whether a folder has one of WEIGHTS."""
    return any(_is_filled(folder / name) for name in WEIGHTS)


def weights_file(folder: pathlib.Path, given: str, is_checkpoint_fn: Callable[[pathlib.Path], bool]) -> pathlib.Path:
    """The file in a folder that holds the weights.

    Args:
        folder: a directory that is no checkpoint itself.
        given: the path as the user wrote it.
        is_checkpoint_fn: whether a file that is not empty is one, from its content.

    Returns:
        The best of WEIGHTS, else the only index of shards, else the only checkpoint.

    Raises:
        CheckpointError: nothing that can be opened, or more than one.
    """
    for name in WEIGHTS:
        if _is_filled(folder / name):
            return folder / name
    files = sorted(path for path, _ in zip(folder.iterdir(), range(_MAX_FILES), strict=False) if _is_filled(path))
    indexes = [path for path in files if path.name.endswith(sharded.INDEX_SUFFIX)]
    if len(indexes) == 1:
        return indexes[0]
    found = indexes or [path for path in files if not path.name.startswith(".") and is_checkpoint_fn(path)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(header.shown(path.name) for path in found[:5])
        raise CheckpointError(
            f"{given}: expected one checkpoint in the folder, got {len(found)}: {names}; pass the file you mean"
        )
    names = ", ".join(header.shown(path.name) for path in files[:5]) or "no files"
    raise CheckpointError(
        f"{given}: expected a checkpoint, got a directory without an Orbax index and without a checkpoint in it "
        f"({names}); pass the folder or the file that holds the weights"
    )


def configuration(folder: pathlib.Path, given: str) -> dict[str, str]:
    """The short fields of `config.json` and `preprocessor_config.json`: text unchanged, everything else as JSON.

    Args:
        folder: that may hold them.
        given: the path as the user wrote it.

    Returns:
        Such as `{"model_type": "resnet", "architectures": '["ResNetForImageClassification"]', "num_labels": "1000"}`.

    Raises:
        DamagedError: no JSON object.
        UnsupportedError: a file that is too long.
    """
    found: dict[str, str] = {}
    for name in CONFIGS:
        path = folder / name
        if not _is_filled(path):
            continue
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            size, remedy = str(path.stat().st_size), "pass the file with the weights"
            raise refusals.unsupported(f"{given}: {name}", f"at most {_MAX_CONFIG_BYTES} bytes", size, remedy)
        fields = header.parse(path.read_bytes(), f"{given}: {name}")
        labels = fields.get("id2label")
        if "num_labels" not in fields and isinstance(labels, dict):
            found["num_labels"] = str(len(labels))
        for field, value in list(fields.items())[:_MAX_FIELDS]:
            text = _text(value)
            if len(field) <= _MAX_FIELD_LENGTH and len(text) <= _MAX_FIELD_LENGTH:
                found.setdefault(field, text)
    return found


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "nested too deeply"


def _is_filled(path: pathlib.Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
