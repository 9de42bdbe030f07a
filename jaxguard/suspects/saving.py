"""From a suspect back to a file, in the form its checkpoint had."""

from __future__ import annotations

import os
import pathlib

import numpy as np

from jaxguard import checkpoints, models
from jaxguard.errors import CheckpointError
from jaxguard.suspects.suspect import METADATA_KEY, Suspect, description

READ_ELSEWHERE = {".bin", ".ckpt", ".tar", ".th", ".pth", ".pt", ".keras", ".hdf5"}
"""Suffixes that other tools take for formats of theirs."""

_SHOWN = 5


def save(
    suspect: Suspect, path: str | os.PathLike[str], *, format: str | None = None, overwrite: bool = False
) -> tuple[str, ...]:
    """Write a suspect's variables under the names, layout, dtypes and format that its checkpoint had.

    Leaves that are no part of the model, such as torch's `num_batches_tracked`, are carried over, and tensors of one
    memory are written under all their names. What was left out when the checkpoint was read is not written. A format
    that jaxguard only reads is replaced by safetensors.

    Args:
        suspect: of `load`, or the result of `repair` on it.
        path: where to; the file appears whole or not at all.
        format: a row of `jaxguard.checkpoints.FORMATS` that can be written; that of the source by default.
        overwrite: whether an existing checkpoint may be replaced.

    Returns:
        What the new file lacks, in full sentences.

    Raises:
        CheckpointError: the path exists or cannot be written, or the suspect came from no checkpoint.
    """
    checkpoint = _source(suspect)
    require_writable(path, suspect, format=format, overwrite=overwrite)
    edited = _edited_leaves(suspect, checkpoint)
    leaves = {
        name: edited[name].astype(spec.dtype) if name in edited else checkpoint.read(name)
        for name, spec in checkpoint.leaves.items()
    }
    for name, others in checkpoint.aliases.items():
        leaves |= dict.fromkeys(others, leaves[name])
    kept = {name: text for name, text in checkpoint.metadata.items() if name != METADATA_KEY}
    checkpoints.save(
        path,
        leaves,
        format=format or written_format(checkpoint),
        metadata=kept if suspect.model is None else {**kept, **description(suspect.model)},
        overwrite=overwrite,
    )
    lost = checkpoint.left_out
    if not lost:
        return ()
    more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    named = ", ".join(f"{name!r} ({why})" for name, why in list(lost.items())[:_SHOWN])
    return (f"Not written, as it was left out when the checkpoint was read: {named}{more}.",)


def require_writable(
    path: str | os.PathLike[str], suspect: Suspect, *, format: str | None = None, overwrite: bool = False
) -> None:
    """Refuse what `save` would refuse, before hours of work rather than after.

    Args:
        path: where a checkpoint is to be written.
        suspect: what is to be written there, once repaired.
        format: see `save`.
        overwrite: whether an existing one may be replaced.

    Raises:
        CheckpointError: the path exists, its folder does not, its suffix is another format's, there is no such format,
            or the suspect came from no checkpoint.
    """
    target = pathlib.Path(path)
    chosen = format or written_format(_source(suspect))
    if chosen not in checkpoints.FORMATS or not checkpoints.FORMATS[chosen].is_written:
        known = ", ".join(name for name, row in checkpoints.FORMATS.items() if row.is_written)
        raise CheckpointError(f"expected a format that can be written ({known}), got {chosen!r} for {target}")
    wanted = checkpoints.FORMATS[chosen].suffix
    others = {row.suffix for row in checkpoints.FORMATS.values()} | READ_ELSEWHERE
    if target.suffix != wanted and target.suffix.lower() in others - {""}:
        raise CheckpointError(
            f"expected a name that ends in {wanted or 'no suffix'} for a checkpoint written as {chosen}, got {target}, "
            "which others would read as something else; choose another name or --format"
        )
    if target.exists() and not overwrite:
        raise CheckpointError(
            f"expected a new path to write to, got {target}, which exists; choose another or --overwrite"
        )
    if not target.absolute().parent.is_dir():
        raise CheckpointError(f"expected a folder to write into, got {target.parent}, which is none; create it first")


def written_format(checkpoint: checkpoints.Checkpoint) -> str:
    """The format in which a repaired copy of a checkpoint is written: its own, or safetensors."""
    return checkpoint.format if checkpoints.FORMATS[checkpoint.format].is_written else "safetensors"


def _source(suspect: Suspect) -> checkpoints.Checkpoint:
    if suspect.checkpoint is None:
        raise CheckpointError(
            f"expected a suspect that was loaded from a checkpoint, got {suspect.name!r}, a model from memory; "
            "write it with jaxguard.checkpoints.save(path, checkpoints.flatten(variables))"
        )
    return suspect.checkpoint


def _edited_leaves(suspect: Suspect, checkpoint: checkpoints.Checkpoint) -> dict[str, np.ndarray]:
    """The suspect's variables by the names of the checkpoint's leaves."""
    variables = suspect.require_network().variables
    if suspect.model is None:
        flat = checkpoints.flatten(variables)
        return {name: flat[path] for name, path in suspect.names.items()}
    leaves = models.unbind(suspect.model, variables, suspect.layout)
    return {
        original: leaves[name] for name, original in models.original_names(suspect.model, checkpoint.leaves).items()
    }
