"""Outputs of many models on the same probes: checkpoints in buckets, everything else as an endpoint."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import endpoints, evaluation, execution, meshes
from jaxguard.endpoints import QueryFn
from jaxguard.errors import DataError, FingerprintError, GraphError
from jaxguard.suspects import Suspect
from jaxguard.types import Network

BATCH_SIZE = 250
"""Probes per forward pass."""


def outputs_of(
    models: Sequence[Suspect | QueryFn], images: np.ndarray, *, of_classes: bool = False
) -> list[np.ndarray]:
    """Each model's outputs on the probes.

    Checkpoints of one architecture and equal shapes share one compiled program; on CPU several run at once, on
    accelerators each device runs through its share of them without the host.

    Args:
        models: suspects of known architecture, or functions and endpoints `images -> scores`.
        images: `[N, H, W, C]` float32 in [0, 1].
        of_classes: refuse networks whose outputs are no classes.

    Returns:
        One `[N, K]` per model, in order; `K` may differ.

    Raises:
        ArchitectureError: a checkpoint of unknown architecture.
        FingerprintError: a network that takes other images, or outputs that are not finite, or no classes.
        EndpointError: an endpoint that did not answer, or sent a malformed answer.
    """
    found: dict[int, np.ndarray] = {}
    buckets: dict[Any, list[int]] = defaultdict(list)
    for index, model in enumerate(models):
        if isinstance(model, Suspect):
            buckets[bucket(model.require_network())].append(index)
        else:
            found[index] = endpoints.query(model, images)
    chunks = evaluation.chunked(np.asarray(images, np.float32), BATCH_SIZE)
    for members in buckets.values():
        suspects = [model for index in members if isinstance(model := models[index], Suspect)]
        if of_classes:
            require_classes(suspects[0].name, suspects[0].require_network())
        found |= dict(zip(members, _queried(suspects, chunks, len(images)), strict=True))
    return [found[index] for index in range(len(models))]


def require_classes(name: str, network: Network) -> None:
    """Refuses a network from whose outputs no class per image can be read.

    Raises:
        FingerprintError: it is one.
    """
    try:
        _ = network.num_classes
    except GraphError as error:
        raise FingerprintError(f"{name}: {error}; or take tafa-hinge, which compares outputs of any kind") from error


def bucket(network: Network) -> Any:
    """A hashable value, equal for networks that differ only in the values of their weights."""
    leaves, structure = jax.tree.flatten(network)
    return (structure, *((np.shape(leaf), str(jnp.result_type(leaf))) for leaf in leaves))


def _answers(network: Network, images: jax.Array) -> jax.Array:
    return network(images).astype(jnp.float32)


def _all_answers(chunks: jax.Array, network: Network) -> jax.Array:
    """`[chunks, B, K]`."""
    return jax.lax.map(functools.partial(_answers, network), chunks)


def _queried(suspects: Sequence[Suspect], chunks: jax.Array, count: int) -> list[np.ndarray]:
    """Outputs of networks that differ only in the values of their weights, `[N, K]` each."""

    def one(suspect: Suspect) -> np.ndarray:
        return meshes.chunk_by_chunk(_answers, suspect.require_network(), chunks)

    def several(suspects: Sequence[Suspect]) -> np.ndarray:
        networks = [suspect.require_network() for suspect in suspects]
        stack = jax.tree.map(lambda *leaves: np.stack(leaves), *networks)
        return meshes.chunk_by_chunk(_all_answers, chunks, stack)

    try:
        if execution.models_abreast() and len(suspects) > 1:
            bytes_each = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(suspects[0].require_network()))
            at_once = meshes.divisible(max(1, execution.search_bytes() // bytes_each))
            groups = [suspects[first : first + at_once] for first in range(0, len(suspects), at_once)]
            answers = [row for group in groups for row in several(group)]
        else:
            answers = list(execution.in_threads(one, suspects))
    except (DataError, TypeError, ValueError) as error:
        raise FingerprintError(
            f"{suspects[0].name}: expected a model that takes images {chunks.shape[2:]}, got {type(error).__name__}: "
            f"{error}; give its image shape with --input, and its architecture with --arch"
        ) from error
    return [_finite(suspect, row, count) for suspect, row in zip(suspects, answers, strict=True)]


def _finite(suspect: Suspect, answers: np.ndarray, count: int) -> np.ndarray:
    outputs = answers.reshape(answers.shape[0] * answers.shape[1], -1)[:count]
    if not np.isfinite(outputs).all():
        raise FingerprintError(
            f"{suspect.name}: expected finite outputs, got NaN or infinity for "
            f"{int((~np.isfinite(outputs)).any(1).sum())} of {count} probes; no verdict can be given, check its "
            "weights and normalisation"
        )
    return outputs
