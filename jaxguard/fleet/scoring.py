"""How the checkpoints of a structure are scored: traceable, compiled in whole or in parts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import models, suspects
from jaxguard.checkpoints import LeafSpec, left_out
from jaxguard.detection.records import cohort_of_leaves, cohort_of_model
from jaxguard.errors import ArchitectureError
from jaxguard.fleet import accounting
from jaxguard.fleet.local import Settings
from jaxguard.fleet.structure import Structure
from jaxguard.graph import pairing
from jaxguard.graph.pairing import Layer
from jaxguard.models import Model
from jaxguard.scores import structural, weights
from jaxguard.scores.weights import Reduced, WeightFeatures
from jaxguard.types.findings import LeafAccount


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
    """What is scored in the checkpoints of a structure; plain data that can be sent to another process.

    Attributes:
        architecture: specification, or `unknown`.
        cohort: what its checkpoints are compared with, see `jaxguard.detection.records`.
        layers: what is scored.
        feature_names: `F` names.
        notes: caveats for the reader, in full sentences.
        leaves: what became of every leaf.
        left_out: `(leaf, reason)` of those beside the network.
    """

    architecture: str
    cohort: str
    layers: tuple[Layer, ...]
    feature_names: tuple[str, ...]
    notes: tuple[str, ...]
    leaves: tuple[LeafAccount, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()


class Kernel(NamedTuple):
    """A leaf of which only its norms and sums are needed.

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
        # Reduced kernels are never read again; zeros of their shape keep the tree complete, and XLA drops them.
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
    described, options, specs = json.loads(structure.description), settings.options, structure.specs()
    if options.apply_fn is not None:
        return _of_function(structure, settings)
    spec = options.arch or described.get("architecture")
    input_shape = options.input_shape or tuple(described.get("input_shape") or ()) or None
    extras = models.beside(specs)
    specs = {name: one for name, one in specs.items() if name not in extras}
    if spec is not None:
        return _of_model(models.infer(spec, specs, input_shape=input_shape), settings, (), specs, extras)
    try:
        model = models.identify(specs, input_shape=input_shape).model
    except ArchitectureError as error:
        return _structural(structure, str(error))
    notes = tuple(f"{guess} Pass --arch where that is not so." for guess in model.module.guesses)
    return _of_model(model, settings, notes, specs, extras)


def _of_model(
    model: Model, settings: Settings, notes: tuple[str, ...], specs: Mapping[str, LeafSpec], extras: Mapping[str, str]
) -> Recipe:
    """By a bundled architecture; `extras` are the leaves beside it, with the reasons."""
    graph = model.network(model.shapes()).graph
    layers = pairing.layers(graph, settings.pairing)
    binding = models.binding_of(model, specs)

    def features_of(leaves: Mapping[str, jax.Array], reduced: Mapping[str, Reduced]) -> WeightFeatures:
        known = {binding.paths[name]: one for name, one in reduced.items()}
        return weights.weight_features(graph, layers, binding.bind_fn(leaves), known)

    kernels = {}
    # Shapes alone: nothing is computed to learn how a kernel is arranged.
    arranged = jax.eval_shape(graph.kernels, model.shapes())
    for name, path in binding.paths.items():
        numbers = [k for k, producer in enumerate(graph.producers) if producer.kernel.path == path]
        if numbers and all(graph.reads_leaf(k) and k not in graph.outputs for k in numbers):
            channels, taps, fan_in = arranged[numbers[0]].shape
            is_first = path in binding.channels_first
            shape = (channels, fan_in, taps) if is_first else (taps, fan_in, channels)
            kernels[name] = Kernel(shape, is_first, specs[name].shape)
    accounts = accounting.by_graph(graph, specs, binding.paths)
    scope = _scope(model.spec, cohort_of_model(model), layers, (*left_out.summary(extras), *notes), accounts)
    return Recipe(scope._replace(left_out=tuple(extras.items())), kernels, features_of)


def _of_function(structure: Structure, settings: Settings) -> Recipe:
    """By the user's own function; its kernels are not known by their place in the file, so none is reduced."""
    options, specs = settings.options, structure.specs()
    assert options.apply_fn is not None

    def variables_of(leaves: Mapping[str, Any]) -> Any:
        # A row holds floating-point leaves alone; the others do not count.
        whole = {
            name: leaves[name] if name in leaves else jnp.zeros(one.shape, jax.dtypes.canonicalize_dtype(one.dtype))
            for name, one in specs.items()
        }
        return whole if structure.aliases else suspects.variables_of(whole, options.init_fn)

    apply_fn = options.apply_fn
    if structure.aliases:
        apply_fn = suspects.tied(apply_fn, options.init_fn, dict(structure.aliases))
    shapes = jax.eval_shape(lambda: variables_of({}))
    graph = suspects.network_of(shapes, apply_fn, options.input_shape, options.outputs).graph
    layers = pairing.layers(graph, settings.pairing)

    def features_of(leaves: Mapping[str, jax.Array], reduced: Mapping[str, Reduced]) -> WeightFeatures:
        return weights.weight_features(graph, layers, variables_of(leaves))

    cohort, name = cohort_of_leaves(specs, is_traced=True), getattr(options.apply_fn, "__name__", "apply_fn")
    accounts = accounting.by_graph(graph, specs, {} if structure.aliases else suspects.paths_of(specs, options.init_fn))
    return Recipe(_scope(name, cohort, layers, graph.remarks, accounts), {}, features_of)


def _structural(structure: Structure, reason: str) -> Recipe:
    producers = structural.require_producers(structural.read(structure.specs()))
    layers = structural.layers_of(producers)

    def features_of(leaves: Mapping[str, jax.Array], reduced: Mapping[str, Reduced]) -> WeightFeatures:
        return weights.structural_features(producers, leaves, reduced)

    kernels = {}
    for producer in producers:
        if not producer.is_plain:
            continue
        out, fan_in, taps = producer.axes
        order = (out, fan_in, taps) if producer.is_channels_first else (taps, fan_in, out)
        shape = producer.form.shape
        if sum(order, ()) == tuple(range(len(shape))):
            sizes = tuple(math.prod(shape[axis] for axis in axes) for axes in order)
            kernels[producer.kernel] = Kernel(sizes, producer.is_channels_first, shape)
    cohort = cohort_of_leaves(structure.specs(), is_traced=False)
    notes, accounts = (suspects.structural_note(reason),), accounting.by_names(structure.specs())
    return Recipe(_scope(suspects.UNKNOWN, cohort, layers, notes, accounts), kernels, features_of)


def _scope(
    architecture: str, cohort: str, layers: tuple[Layer, ...], notes: tuple[str, ...], leaves: tuple[LeafAccount, ...]
) -> Scope:
    notes = (*notes, *accounting.remark(leaves))
    return Scope(architecture, cohort, layers, weights.feature_names(layers), notes, leaves)
