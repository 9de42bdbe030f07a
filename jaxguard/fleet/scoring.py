"""One compiled program per structure: a stack of rows in, layers' summaries and features out."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxguard import models, structural, suspects
from jaxguard.detection import weights
from jaxguard.detection.weights import WeightFeatures
from jaxguard.errors import ArchitectureError
from jaxguard.fleet.structure import Structure
from jaxguard.graph import pairing
from jaxguard.graph.pairing import Layer, Pairing
from jaxguard.kernels.spectrum import Spectrum
from jaxguard.models import Model

SUMMARY = Spectrum._fields
"""What is kept of every layer, in the order of the last axis of `Scores.layers`."""

_AXIS = "checkpoints"
_ROWS_AT_ONCE = {"cpu": 1, "gpu": 8, "tpu": 8}


@dataclass(frozen=True)
class Settings:
    """How a fleet is scored; results of other settings are not used again.

    Attributes:
        arch: architecture of all checkpoints; by default told from each one's leaves.
        input_shape: of one image, by default told likewise.
        pairing: see `jaxguard.graph.pairing.layers`.
    """

    arch: str | None = None
    input_shape: tuple[int, ...] | None = None
    pairing: Pairing = "dataflow"


class Scores(NamedTuple):
    """Of a stack, on the host.

    Attributes:
        layers: `[M, L, len(SUMMARY)]` float32.
        features: `[M, F]` float32.
        finite: `[M]` bool.
    """

    layers: np.ndarray
    features: np.ndarray
    finite: np.ndarray


class Scope(NamedTuple):
    """What is scored in the checkpoints of a structure; plain data, which can be sent to another process.

    Attributes:
        architecture: specification, or `unknown`.
        bucket: what its checkpoints are compared with, see `jaxguard.types.FleetEntry`.
        layers: what is scored.
        feature_names: `F` names.
        notes: what a reader must know, in whole sentences.
    """

    architecture: str
    bucket: str
    layers: tuple[Layer, ...]
    feature_names: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Scorer:
    """What is scored in the checkpoints of a structure, and the program for it.

    Attributes:
        scope: what.
        program: `(stacks [M, W] on the device, counts [devices]) -> (layers, features, finite)`.
    """

    scope: Scope
    program: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]

    def launch(self, rows: np.ndarray, count: int) -> Any:
        """Start scoring the first `count` rows; the rows must stay as they are until the result was collected.

        Args:
            rows: `[M, W]`, M a multiple of the number of local devices.
            count: rows that hold a checkpoint, the first ones.

        Returns:
            For `collect`.
        """
        mesh = device_mesh()
        share = len(rows) // mesh.size
        counts = np.clip(count - share * np.arange(mesh.size), 0, share).astype(np.int32)
        sharding = NamedSharding(mesh, PartitionSpec(_AXIS))
        return self.program(jax.device_put(rows, sharding), jax.device_put(counts, sharding)), count

    def collect(self, launched: Any) -> Scores:
        """Wait for what was launched."""
        (layers, features, finite), count = launched
        return Scores(np.asarray(layers)[:count], np.asarray(features)[:count], np.asarray(finite)[:count])


@functools.lru_cache(maxsize=1)
def device_mesh() -> Mesh:
    """All devices of this process along one axis."""
    return Mesh(np.array(jax.local_devices()), (_AXIS,))


def scorer(structure: Structure, settings: Settings) -> Scorer:
    """Find a structure's architecture, and prepare its program; nothing is compiled yet.

    Args:
        structure: of the checkpoints.
        settings: how they are scored.

    Returns:
        The scorer; structural where no architecture fits.

    Raises:
        UnscorableError: there is nothing to score.
        ArchitectureError: there is no architecture of the name given.
        CheckpointError: the leaves do not fit the architecture that was named.
    """
    described = json.loads(structure.description)
    spec = settings.arch or described.get("architecture")
    input_shape = settings.input_shape or tuple(described.get("input_shape") or ()) or None
    specs = structure.specs()
    if spec is not None:
        return _of_model(structure, models.infer(spec, specs, input_shape=input_shape), settings, ())
    try:
        model = models.identify(specs, input_shape=input_shape).model
    except ArchitectureError as error:
        return _structural(structure, str(error))
    notes = tuple(f"{guess} Pass --arch where that is not so." for guess in model.module.guesses)
    return _of_model(structure, model, settings, notes)


def _of_model(structure: Structure, model: Model, settings: Settings, notes: tuple[str, ...]) -> Scorer:
    graph = suspects.graph_of(model)
    layers = pairing.layers(graph, settings.pairing)
    binding = models.binding_of(model, structure.specs())

    def features_of(leaves: Mapping[str, jax.Array]) -> WeightFeatures:
        by_path = {path: leaves[name] for name, path in binding.paths.items()}
        sums = weights.leaf_sums(by_path)
        lying = {path: by_path[path] for path in binding.channels_first}
        return weights.weight_features(graph, layers, binding.bind_fn(leaves), sums, lying)

    specs = structure.specs()
    shapes = {
        name: _matrices(specs[name].shape, path in binding.channels_first)
        for name, path in binding.paths.items()
        if path.endswith("/kernel")
    }
    size = "x".join(map(str, model.input_shape))
    bucket = f"{model.spec}, {model.num_classes} classes, {size}"
    scope = Scope(model.spec, bucket, layers, weights.feature_names(layers), notes)
    return Scorer(scope, _program(structure, features_of, shapes))


def _structural(structure: Structure, reason: str) -> Scorer:
    leaves = {
        name: spec.shape for (name, spec), o in zip(structure.specs().items(), structure.offsets, strict=True) if o >= 0
    }
    producers = structural.find_producers(leaves)
    layers = structural.layers_of(producers, leaves)

    def features_of(leaves: Mapping[str, jax.Array]) -> WeightFeatures:
        return weights.structural_features(producers, leaves)

    shapes = {one.kernel: _matrices(leaves[one.kernel], one.is_channels_first) for one in producers}
    bucket = f"{suspects.UNKNOWN}, leaves {structure.key}"
    notes = (suspects.structural_note(reason),)
    scope = Scope(suspects.UNKNOWN, bucket, layers, weights.feature_names(layers), notes)
    return Scorer(scope, _program(structure, features_of, shapes))


def _matrices(shape: tuple[int, ...], is_channels_first: bool) -> tuple[int, ...]:
    """`(C, fan-in, taps)`, or `(taps, fan-in, C)`: the shape in which a kernel's norms are computed."""
    if len(shape) < 3:
        return shape
    return (*shape[:2], math.prod(shape[2:])) if is_channels_first else (math.prod(shape[:-2]), *shape[-2:])


def _program(
    structure: Structure,
    features_of: Callable[[Mapping[str, jax.Array]], WeightFeatures],
    shapes: Mapping[str, tuple[int, ...]],
) -> Callable[..., Any]:
    """Compiled over a stack, sharded over the local devices; each runs through the rows that hold something."""
    at_once = _ROWS_AT_ONCE.get(jax.default_backend(), 1)

    def one(rows: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        found = features_of(structure.unpack(rows, number, shapes))
        return jnp.stack(found.layers, axis=1), found.features, found.finite

    def of_device(rows: jax.Array, count: jax.Array) -> tuple[jax.Array, ...]:
        width = at_once if len(rows) % at_once == 0 else 1
        shapes = jax.eval_shape(one, rows, 0)
        empty = tuple(jnp.zeros((len(rows), *shape.shape), shape.dtype) for shape in shapes)

        def step(block: jax.Array, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            start = block * width
            if width == 1:
                new = [array[None] for array in one(rows, start)]
            else:
                new = jax.vmap(one, in_axes=(None, 0))(rows, start + jnp.arange(width))
            return tuple(
                jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0)
                for whole, part in zip(found, new, strict=True)
            )

        return jax.lax.fori_loop(0, -(-count[0] // width), step, empty)

    split = PartitionSpec(_AXIS)
    sharded = jax.shard_map(
        of_device, mesh=device_mesh(), in_specs=(split, split), out_specs=(split, split, split), check_vma=False
    )
    return jax.jit(sharded)
