"""Scoring in this process, one network at a time: live networks, and checkpoints where there are few of them.

Unlike a stream this keeps the score of every channel for the report.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from jaxguard import checkpoints, models
from jaxguard.checkpoints import LeafSpec
from jaxguard.detection import cohorts
from jaxguard.detection.records import WEIGHTS, Features, Record
from jaxguard.errors import ArchitectureError, UnscorableError
from jaxguard.fleet import accounting, scoring
from jaxguard.fleet.structure import holds_weights
from jaxguard.graph import pairing
from jaxguard.graph.pairing import Layer, Pairing
from jaxguard.scores import structural, weights
from jaxguard.scores.channel_bounds import require_finite
from jaxguard.scores.weights import WeightFeatures
from jaxguard.suspects import Suspect
from jaxguard.types import LayerSummary, Provenance


def examine(suspect: Suspect, how: Pairing = "dataflow", known: Collection[str] = ()) -> Record:
    """The weights of one network.

    Args:
        suspect: opened, or from memory.
        how: see `jaxguard.graph.pairing.layers`.
        known: cohorts of a profile. Without its own function among them a live network is compared with the bundled
            architecture of the same leaves, or by their names and shapes, as checkpoints are.

    Returns:
        Its record, with the score of every channel.

    Raises:
        UnscorableError: there is nothing to score, or a parameter is not finite.
        ArchitectureError: another pairing where the architecture is not known.
        GraphError: the channel graph cannot be derived.
    """
    cohort, layers, found, remarks = _scored(suspect, how, known)
    summaries = np.stack([np.asarray(field) for field in found.layers], axis=1)
    z = float(scoring.largest_z(summaries[None])[0])
    if not found.finite:
        require_finite(suspect.leaves if suspect.network is None else suspect.network.variables)
    if np.isnan(z):
        raise UnscorableError(f"{suspect.name}: {scoring.UNDEFINED}")
    leaves = accounting.of_suspect(suspect)
    return Record(
        provenance_of(suspect),
        cohort,
        {WEIGHTS: Features(weights.feature_names(layers), np.asarray(found.features))},
        z=z,
        layers=tuple(map(_summary, layers, summaries, found.bounds)),
        notes=(*suspect.notes, *remarks, *accounting.remark(leaves)),
        leaves=leaves,
        left_out={} if suspect.checkpoint is None else suspect.checkpoint.left_out,
        aliases={} if suspect.checkpoint is None else suspect.checkpoint.aliases,
    )


def provenance_of(suspect: Suspect) -> Provenance:
    """Where a network came from; the hash of one from memory is that of its arrays."""
    checkpoint = suspect.checkpoint
    if checkpoint is None:
        variables = None if suspect.network is None else suspect.network.variables
        return Provenance(suspect.name, _digest(variables), architecture=suspect.architecture)
    return Provenance(suspect.name, suspect.sha256, size_of(checkpoint), checkpoint.format, suspect.architecture)


def size_of(checkpoint: checkpoints.Checkpoint) -> int:
    """Bytes on disk: of a file, of an index and its shards, or of all files below a folder."""
    return sum(os.path.getsize(file) for file in checkpoints.parts(checkpoint.location))


def _scored(
    suspect: Suspect, how: Pairing, known: Collection[str]
) -> tuple[str, tuple[Layer, ...], WeightFeatures, tuple[str, ...]]:
    """Cohort, layers, features, and remarks about the channel graph."""
    if suspect.network is None:
        return *_by_names(suspect.leaves, suspect.name, how), ()
    network, cohort = suspect.network, ""
    if suspect.model is not None:
        cohort = cohorts.of_model(suspect.model)
    else:
        flat = checkpoints.flatten(network.variables)
        specs = {name: LeafSpec(leaf.shape, leaf.dtype) for name, leaf in flat.items()}
        cohort, by_names = (cohorts.of_leaves(specs, is_traced=is_traced) for is_traced in (True, False))
        if suspect.checkpoint is None and cohort not in known:
            model = _identified(specs, network.input_spec.shape)
            if model is not None:
                cohort, network = cohorts.of_model(model), model.network(models.bind(model, flat)[0])
            elif by_names in known:
                return *_by_names(flat, suspect.name, how), ()
    layers = pairing.layers(network.graph, how)
    return cohort, layers, _of_graph(network.graph, layers, network.variables), network.graph.remarks


def _identified(specs: dict[str, LeafSpec], input_shape: tuple[int, ...]) -> models.Model | None:
    """The bundled architecture that has these leaves, if there is one."""
    try:
        return models.identify(specs, input_shape=input_shape if len(input_shape) == 3 else None).model
    except ArchitectureError:
        return None


def _by_names(leaves: Any, name: str, how: Pairing) -> tuple[str, tuple[Layer, ...], WeightFeatures]:
    if how != "dataflow":
        raise ArchitectureError(
            f"expected pairing 'dataflow' for {name} of unknown architecture, got {how!r}: the order of its modules is "
            "not known; pass --arch, or your own model with --apply"
        )
    specs = {leaf: LeafSpec(np.shape(array), array.dtype) for leaf, array in leaves.items()}
    producers = structural.require_producers(structural.read(specs))
    found = _of_producers(producers, {leaf: array for leaf, array in leaves.items() if holds_weights(specs[leaf])})
    return cohorts.of_leaves(specs, is_traced=False), structural.layers_of(producers), found


_of_graph = jax.jit(weights.weight_features, static_argnums=(0, 1))
_of_producers = jax.jit(weights.structural_features, static_argnums=0)


def _summary(layer: Layer, row: np.ndarray, bounds: jax.Array) -> LayerSummary:
    numbers = dict(zip(scoring.SUMMARY, row.tolist(), strict=True))
    return scoring.summary_of(layer.name, layer.channels, numbers, np.asarray(bounds))


def _digest(variables: Any) -> str:
    """Content hash of arrays: names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name, leaf in checkpoints.flatten(variables).items():
        digest.update(f"{name} {leaf.shape} {leaf.dtype}\n".encode("utf-8", "surrogateescape"))
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
