"""Gates learned on clean images: what ANP and RNP share.

A gate multiplies one channel where CLP would cut it: at the BatchNorm behind it, or at its kernel and bias where there
is none, so that every architecture has gates and a gate of 0 is a cut. Where a kernel is computed from several leaves,
the gate multiplies those that scale it: the gain of a standardised kernel, both terms of a low-rank adapter. Gates are
descended within [0, 1].
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxguard import surgery, training
from jaxguard.errors import DefenseError, UnscorableError
from jaxguard.graph import ChannelGraph, LeafView, cuts, pairing
from jaxguard.graph.pairing import Layer
from jaxguard.types import ApplyFn, Batch, TrainFn, Variables

Layers = Literal["all", "norms"]
Form = Literal["channel", "weight"]
Statistics = Literal["running", "batch"]


@dataclass(frozen=True)
class BatchStatistics:
    """A model whose norms use the statistics of the current batch; a value, so that equal ones share a program.

    Attributes:
        train_fn: training-mode model.
    """

    train_fn: TrainFn

    def __call__(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Logits `[B, K]` of images `[B, ...]`; updated running statistics are discarded."""
        return self.train_fn(variables, images)[0]


@dataclass(frozen=True)
class Gating:
    """Where a model is gated; a value, so that equal ones share a compiled step.

    Attributes:
        graph: the model's channel graph.
        layers: one vector of gates for each.
        form: `channel` gates weight and bias, so that 0 switches the channel off together with its noise; `weight`, as
            in the reference codes, leaves the bias of a norm (of a convolution, where it has none) and the noise as
            they are.
    """

    graph: ChannelGraph
    layers: tuple[Layer, ...]
    form: Form

    def ones(self) -> tuple[jax.Array, ...]:
        """Open gates, float32 `[C]` per layer."""
        return tuple(jnp.ones(layer.channels) for layer in self.layers)

    def apply(
        self,
        variables: Variables,
        gates: Sequence[jax.Array],
        noise: tuple[Sequence[jax.Array], Sequence[jax.Array]] | None = None,
    ) -> Any:
        """`m (1 + delta) w` and `m (1 + xi) b`; in the form `weight`, `(m + delta) w` and `(1 + xi) b`.

        Args:
            variables: of the model.
            gates: `m`, `[C]` per layer.
            noise: `delta` and `xi`, each `[C]` per layer; none by default.

        Returns:
            Variables of the same tree, shapes and dtypes.
        """
        weight_noise, bias_noise = noise or [[jnp.zeros_like(gate) for gate in gates]] * 2
        for layer, gate, delta, xi in zip(self.layers, gates, weight_noise, bias_noise, strict=True):
            if self.form == "channel":
                weight, bias = gate * (1 + delta), gate * (1 + xi)
            else:
                # The noise adds to the gate rather than multiplying it, as in the authors' code.
                weight, bias = gate + delta, 1 + xi
            weights, biases = _gated_views(self.graph, layer)
            for view, factor in [*((view, weight) for view in weights), *((view, bias) for view in biases)]:
                variables = surgery.edit(variables, {view.path: surgery.scale(view, factor)})
        return variables

    def cut(self, variables: Variables, masks: Sequence[np.ndarray]) -> Any:
        """The model with gates of 0.

        Args:
            variables: of the model; not modified.
            masks: bool `[C]` per layer, True where the channel is cut.

        Returns:
            The edited variables.
        """
        for layer, mask in zip(self.layers, masks, strict=True):
            if not mask.any():
                continue
            if self.form == "channel":
                variables = surgery.cut(self.graph, variables, layer, mask)
                continue
            weights, _ = _gated_views(self.graph, layer)
            for view in weights:
                variables = surgery.edit(variables, {view.path: surgery.zero(view, jnp.asarray(mask))})
        return variables


def gating(graph: ChannelGraph, layers: Layers, form: Form) -> Gating:
    """Finds the channels of a model that can be gated.

    Args:
        graph: the model's channel graph.
        layers: `all` hidden layers that CLP scores; `norms`, as in the reference codes, those with a BatchNorm.
        form: see `Gating`.

    Returns:
        The gating. Layers behind a norm without a scale have no gates.

    Raises:
        UnscorableError: no layer is left.
    """
    found = tuple(layer for layer in pairing.layers(graph) if _is_gated(graph, layer))
    chosen = tuple(layer for layer in found if layers == "all" or layer.affine is not None)
    if not chosen:
        raise UnscorableError(
            f"expected layers that can be gated, got none with {layers=} among {len(graph.producers)} producers; "
            "layers='all' gates kernels where there is no norm, but no norm without a scale"
        )
    return Gating(graph, chosen, form)


def ungated(graph: ChannelGraph) -> tuple[str, ...]:
    """A note on the layers that can have no gates, for a report.

    Args:
        graph: the model's channel graph.

    Returns:
        The note; nothing where there is no such layer.
    """
    names = [layer.name for layer in pairing.layers(graph) if not _is_gated(graph, layer)]
    if not names:
        return ()
    return (
        f"{len(names)} layers behind a norm without a scale, or whose channels no leaf multiplies, have no gates "
        f"and were left alone: {', '.join(names)}.",
    )


@dataclass(frozen=True)
class GateGradient:
    """The gradient of a batch's cross-entropy with respect to the gates.

    Attributes:
        gating: where the model is gated.
        logits_fn: the model.
        alpha: factor of the loss.
    """

    gating: Gating
    logits_fn: ApplyFn
    alpha: float = 1.0

    def __call__(self, gates: Any, state: Any, batch: Batch) -> tuple[dict[str, jax.Array], Any, Any]:
        """A `training.GradientFn` of the gates; its state is the `model`. Records `loss`, without the factor."""
        loss, gradient = jax.value_and_grad(self.loss)(gates, state["model"], batch)
        return {"loss": loss}, state, jax.tree.map(lambda g: self.alpha * g, gradient)

    def loss(self, gates: Any, model: Variables, batch: Batch, noise: Any = None) -> jax.Array:
        """Cross-entropy of the gated model.

        Args:
            gates: `[C]` per layer.
            model: its variables.
            batch: images and labels.
            noise: see `Gating.apply`.

        Returns:
            float32 `[]`.
        """
        logits = self.logits_fn(self.gating.apply(model, gates, noise), jnp.asarray(batch.images))
        return training.cross_entropy(logits, jnp.asarray(batch.labels))


def learn(
    gradient_fn: training.GradientFn,
    gates: Any,
    state: Mapping[str, Any],
    data: Batch,
    key: jax.Array,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    momentum: float,
    augment: training.Augment | None,
    progress: training.Progress | None,
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Descends gates within [0, 1], from where they are.

    Args:
        gradient_fn: with respect to the gates.
        gates: `[C]` per layer.
        state: what the gradient needs, the variables `model` above all.
        data: clean images.
        key: draws batches and augmentation.
        steps: >= 0.
        batch_size: images per step; all of them where there are fewer.
        learning_rate: of SGD, without decay or schedule.
        momentum: of SGD, in [0, 1).
        augment: `(key, images) -> images`.
        progress: called as the work proceeds.

    Returns:
        The gates, `[C]` per layer, and what the gradient recorded, `[steps]` each.

    Raises:
        DefenseError: the loss became NaN or infinite.
    """
    step = training.Step(gradient_fn, _optimizer(learning_rate, momentum), min(batch_size, len(data.images)), augment)
    carry = step.init({"params": gates, **state}, data)
    last, curves = training.descend(step.on(data, key), carry, steps, progress=progress, trains=True)
    training.require_finite_loss(curves["loss"], "learning gates", "lower its learning rate", DefenseError)
    return [np.asarray(gate) for gate in last.params], curves


def _is_gated(graph: ChannelGraph, layer: Layer) -> bool:
    """Whether multiplying leaves multiplies the channels, and none of the leaves is a norm's running statistic."""
    if layer.affine is not None and graph.affines[layer.affine].scale is None:
        return False
    return cuts.why_uncuttable(graph, layer) is None and cuts.find_cut(graph, layer).is_linear


def _gated_views(graph: ChannelGraph, layer: Layer) -> tuple[list[LeafView], list[LeafView]]:
    """The leaves of a layer's cut: those of its weight, and those of its bias."""
    if layer.affine is None:
        biases = {repr(graph.producers[number].bias) for number in layer.uses}
    else:
        biases = {repr(graph.affines[layer.affine].bias)}
    views = [part.view for part in cuts.find_cut(graph, layer).parts]
    return [view for view in views if repr(view) not in biases], [view for view in views if repr(view) in biases]


@functools.lru_cache(maxsize=64)
def _optimizer(learning_rate: float, momentum: float) -> optax.GradientTransformation:
    """SGD within [0, 1]; the identical one for equal arguments, so that a compiled step is found again."""

    def within(updates: Any, gates: Any) -> Any:
        # The update, not the gate, is clipped: optax adds it afterwards.
        return jax.tree.map(lambda update, gate: jnp.clip(gate + update, 0, 1) - gate, updates, gates)

    return optax.chain(training.sgd(learning_rate, momentum=momentum, weight_decay=0.0), optax.stateless(within))
