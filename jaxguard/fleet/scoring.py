"""What is scored in the checkpoints of a structure, and how: traceable, compiled in whole or in parts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import models, suspects
from jaxguard.errors import ArchitectureError
from jaxguard.fleet.structure import Structure
from jaxguard.graph import pairing
from jaxguard.graph.pairing import Layer, Pairing
from jaxguard.kernels.spectrum import Spectrum
from jaxguard.models import Model
from jaxguard.scores import structural, weights
from jaxguard.scores.weights import Reduced, WeightFeatures

SUMMARY = Spectrum._fields
"""What is kept of every layer, in the order of the last axis of `Scores.layers`."""


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
        bucket: what its checkpoints are compared with, see `jaxguard.types.Finding`.
        layers: what is scored.
        feature_names: `F` names.
        notes: what a reader must know, in whole sentences.
    """

    architecture: str
    bucket: str
    layers: tuple[Layer, ...]
    feature_names: tuple[str, ...]
    notes: tuple[str, ...]


class Kernel(NamedTuple):
    """A leaf of which nothing but its norms and sums is needed.

    Attributes:
        shape: in which it is read, `(C, fan-in, taps)` or `(taps, fan-in, C)`.
        is_channels_first: which of the two.
        leaf_shape: in the checkpoint.
    """

    shape: tuple[int, ...]
    is_channels_first: bool
    leaf_shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        """`C`."""
        return self.shape[0 if self.is_channels_first else -1]

    @property
    def numbers(self) -> int:
        """Of one channel."""
        return math.prod(self.shape) // self.channels


class Recipe(NamedTuple):
    """What is scored in the checkpoints of a structure, and how.

    Attributes:
        scope: what.
        kernels: leaves that are reduced one by one before the rest is scored.
        features_of: `(leaves by name, reduced kernels by name) -> features`; traceable. A reduced leaf is not read.
    """

    scope: Scope
    kernels: Mapping[str, Kernel]
    features_of: Callable[[Mapping[str, jax.Array], Mapping[str, Reduced]], WeightFeatures]

    def score(
        self, leaves: Mapping[str, jax.Array], reduced: Mapping[str, Reduced]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What `Scores` holds of one checkpoint; traceable.

        Args:
            leaves: all but the kernels.
            reduced: the kernels.

        Returns:
            The fields of `Scores`, without their first axis.
        """
        unread = {name: jnp.zeros(self.kernels[name].leaf_shape) for name in reduced}
        found = self.features_of({**unread, **leaves}, reduced)
        return jnp.stack(found.layers, axis=1), found.features, found.finite


def recipe_of(structure: Structure, settings: Settings) -> Recipe:
    """Find a structure's architecture, and how it is scored.

    Args:
        structure: of the checkpoints.
        settings: how they are scored.

    Returns:
        The recipe; structural where no architecture fits.

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


def _of_model(structure: Structure, model: Model, settings: Settings, notes: tuple[str, ...]) -> Recipe:
    graph = model.network(model.shapes()).graph
    layers = pairing.layers(graph, settings.pairing)
    specs = structure.specs()
    binding = models.binding_of(model, specs)

    def features_of(leaves: Mapping[str, jax.Array], reduced: Mapping[str, Reduced]) -> WeightFeatures:
        known = {binding.paths[name]: one for name, one in reduced.items()}
        return weights.weight_features(graph, layers, binding.bind_fn(leaves), known)

    kernels = {}
    arranged = jax.eval_shape(graph.kernels, model.shapes())
    for name, path in binding.paths.items():
        numbers = [k for k, producer in enumerate(graph.producers) if producer.kernel.path == path]
        if numbers and all(graph.reads_leaf(k) and k not in graph.outputs for k in numbers):
            channels, taps, fan_in = arranged[numbers[0]].shape
            is_first = path in binding.channels_first
            shape = (channels, fan_in, taps) if is_first else (taps, fan_in, channels)
            kernels[name] = Kernel(shape, is_first, specs[name].shape)
    size = "x".join(map(str, model.input_shape))
    bucket = f"{model.spec}, {model.num_classes} classes, {size}"
    return Recipe(Scope(model.spec, bucket, layers, weights.feature_names(layers), notes), kernels, features_of)


def _structural(structure: Structure, reason: str) -> Recipe:
    shapes = {
        name: spec.shape for (name, spec), o in zip(structure.specs().items(), structure.offsets, strict=True) if o >= 0
    }
    producers = structural.find_producers(shapes)
    layers = structural.layers_of(producers, shapes)

    def features_of(leaves: Mapping[str, jax.Array], reduced: Mapping[str, Reduced]) -> WeightFeatures:
        return weights.structural_features(producers, leaves, reduced)

    kernels = {}
    for producer in producers:
        out, fan_in, taps = producer.axes
        order = (out, fan_in, taps) if producer.is_channels_first else (taps, fan_in, out)
        shape = shapes[producer.kernel]
        if sum(order, ()) == tuple(range(len(shape))):
            sizes = tuple(math.prod(shape[axis] for axis in axes) for axes in order)
            kernels[producer.kernel] = Kernel(sizes, producer.is_channels_first, shape)
    bucket = f"{suspects.UNKNOWN}, leaves {structure.key}"
    notes = (suspects.structural_note(reason),)
    return Recipe(Scope(suspects.UNKNOWN, bucket, layers, weights.feature_names(layers), notes), kernels, features_of)
