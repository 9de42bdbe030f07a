"""What a checkpoint says of its own architecture, in one entry of its metadata."""

from __future__ import annotations

import json
from typing import Any

from jaxguard import checkpoints
from jaxguard.errors import CheckpointError
from jaxguard.models import Model

METADATA_KEY = "jaxguard"
"""Metadata entry, JSON, from which a checkpoint's architecture is found again."""


def description(model: Model) -> dict[str, str]:
    """Checkpoint metadata from which `load` finds the architecture again.

    Args:
        model: a bundled architecture.

    Returns:
        Metadata for `checkpoints.save`.
    """
    fields = {"architecture": model.spec, "input_shape": model.input_shape, "mean": model.mean, "std": model.std}
    return {METADATA_KEY: json.dumps(fields)}


def described(checkpoint: checkpoints.Checkpoint) -> dict[str, Any]:
    """The fields of `description` that a checkpoint carries.

    Raises:
        CheckpointError: the entry is no JSON.
    """
    text = checkpoint.metadata.get(METADATA_KEY, "{}")
    try:
        description = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"expected JSON in the metadata entry '{METADATA_KEY}' of {checkpoint.path}, got {text[:60]!r}: {error}; "
            "pass --arch, --input, --mean and --std yourself after removing the entry"
        ) from error
    return description if isinstance(description, dict) else {}
