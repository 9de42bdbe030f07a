"""Synthetic images for a defender without data: they match a model's classes and its BatchNorm statistics.

A BatchNorm stores the mean and variance of its inputs in training. Images `x` of chosen labels `y` minimise

    CE(f(x), y) + a D(x) + t TV(x) + w mean (x - 1/2)^2,
    D = mean over BatchNorms and their channels of (mu(x) - mean)^2 / var + (v(x) / var - 1)^2,

where `mu` and `v` are the batch's statistics, `mean` and `var` the running ones, and TV is the mean absolute difference
between neighbours. All labels are one batch, with several images each, because the running statistics are those of all
classes together.

After Yin et al., Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion, CVPR 2020, whose distances are in
the units of each channel; in units of its running standard deviation one `a` suits every architecture. They add random
shifts and flips, and start from noise in the network's units; here a pixel is `tanh(theta) / 2 + 1/2`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from jaxguard import programs, training
from jaxguard.errors import DataError, JaxguardError
from jaxguard.graph import Affine, ChannelGraph
from jaxguard.inversion.descent import squash
from jaxguard.types import Variables
from jaxguard.types.network import count_classes

SPREAD = 0.5
"""Standard deviation of the first noise, before `squash`."""

LEAST_VARIANCE = 1e-5
"""Lower bound of running variances: BatchNorm's epsilon."""


class Synthesis(NamedTuple):
    """Images synthesised from a model.

    Attributes:
        images: `[B, H, W, C]` in [0, 1].
        labels: int32 `[B]`, as requested.
        success: share of the images that the model classifies as labelled.
        distances: `[steps]`, `D` before each step; NaN for a model without BatchNorm.
        norms: number of BatchNorms whose statistics were matched; if 0, only labels and smoothness guided the images.
    """

    images: np.ndarray
    labels: np.ndarray
    success: float
    distances: np.ndarray
    norms: int

    @property
    def source(self) -> str:
        """Description of the images, for `recovered_trigger`."""
        matched = f"{self.norms} BatchNorms matched" if self.norms else "no BatchNorm to match, only labels"
        return f"{len(self.images)} synthesised images ({matched})"


def synthesise(
    graph: ChannelGraph,
    variables: Variables,
    key: jax.Array,
    *,
    labels: jax.Array | np.ndarray,
    steps: int = 300,
    learning_rate: float = 0.1,
    statistics: float = 10.0,
    total_variation: float = 0.1,
    l2: float = 0.1,
    progress: training.Progress | None = None,
) -> Synthesis:
    """Synthesises images of given labels from a model, without data.

    The defaults were chosen on the networks of `jaxguard.demo`, seeds 10-14.

    Args:
        graph: the model's channel graph; images have the shape it was derived at.
        variables: the model's.
        key: draws the first noise.
        labels: int `[B]`; classes as frequent as in training, several images of each.
        steps: of Adam.
        learning_rate: of Adam.
        statistics: `a`.
        total_variation: `t`.
        l2: `w`.
        progress: called a few times per second.

    Raises:
        DataError: no labels, or one that is not a class of the model.
        GraphError: the model's outputs are no classes.
        JaxguardError: the loss became NaN or infinite.
        ValueError: `steps` is not positive, or a weight is negative.

    Example:
        >>> from jaxguard.graph import channel_graph
        >>> model = lambda w, images: images.reshape(len(images), -1) @ w
        >>> graph = channel_graph(model, jnp.eye(4), jnp.zeros((1, 2, 2, 1)))
        >>> made = synthesise(graph, jnp.eye(4), jax.random.key(0), labels=np.arange(4), steps=100)
        >>> made.images.reshape(4, 4).argmax(1).tolist(), made.source
        ([0, 1, 2, 3], '4 synthesised images (no BatchNorm to match, only labels)')
    """
    if steps < 1 or min(statistics, total_variation, l2) < 0:
        raise ValueError(
            f"expected steps >= 1 and weights >= 0, got {steps=}, {statistics=}, {total_variation=}, {l2=} in "
            "synthesise(); leave them out for the defaults"
        )
    num_classes = count_classes(graph.logits)
    labels = np.asarray(labels)
    if labels.ndim != 1 or not labels.size or labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(
            f"expected labels [B] in [0, {num_classes}), got {labels.tolist()[:10]} in synthesise(); pass classes "
            "of the model, such as np.tile(np.arange(10), 5)"
        )
    labels = labels.astype(np.int32)
    norms = tuple(k for k, affine in enumerate(graph.affines) if affine.mean is not None and affine.var is not None)
    matching = _Matching(graph, norms, learning_rate, statistics, total_variation, l2)
    shape = graph.program.shapes[graph.program.images][1:]
    theta = SPREAD * jax.random.normal(key, (len(labels), *shape))
    step_fn = Partial(matching, variables, labels)
    (theta, _), history = training.descend(step_fn, (theta, matching.optimizer.init(theta)), steps, progress=progress)
    if not np.isfinite(history["loss"]).all():
        at = int(np.argmin(np.isfinite(history["loss"])))
        raise JaxguardError(
            f"expected a finite loss, got {history['loss'][at]} at step {at} of {steps} in synthesise(); check the "
            "model's variables for NaN and overflow, or lower learning_rate"
        )
    images = squash(theta)
    success = (programs.jit(graph.apply_fn)(variables, images).argmax(-1) == labels).mean()
    return Synthesis(
        images=np.asarray(images),
        labels=labels,
        success=float(success),
        distances=history["distance"],
        norms=len(norms),
    )


@dataclass(frozen=True)
class _Matching:
    """One step; a value, so that equal settings share a compiled program."""

    graph: ChannelGraph
    norms: tuple[int, ...]
    learning_rate: float
    statistics: float
    total_variation: float
    l2: float

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def __call__(
        self, variables: Variables, labels: jax.Array, state: tuple[jax.Array, Any], index: jax.Array
    ) -> tuple[tuple[jax.Array, Any], dict[str, jax.Array]]:
        del index
        theta, opt_state = state

        def loss_fn(theta: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            images = squash(theta)
            logits, distance = self._observe(variables, images)
            entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            # Total variation: neighbouring pixels of natural images are alike.
            steps_across = (jnp.abs(jnp.diff(images, axis=axis)) for axis in (1, 2) if images.shape[axis] > 1)
            variation = sum((across.mean() for across in steps_across), jnp.zeros(()))
            loss = entropy + self.total_variation * variation + self.l2 * jnp.square(images - 0.5).mean()
            loss = loss + self.statistics * distance if self.norms else loss
            return loss, {"loss": loss, "entropy": entropy, "distance": distance}

        gradient, metrics = jax.grad(loss_fn, has_aux=True)(theta)
        update, opt_state = training.update(self.optimizer, gradient, opt_state)
        return (jnp.asarray(optax.apply_updates(theta, update)), opt_state), metrics

    def _observe(self, variables: Variables, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits `[B, K]` and the distance `D`, from one evaluation of the model."""
        program = self.graph.program_at(images)
        known = self.graph.leaves(program, variables)
        leaves = {path: known[leaf] for path, leaf in zip(program.paths, program.leaves, strict=True)}
        values = program.evaluate({**known, program.images: images})
        parts = [_distances(self.graph.affines[k], values, leaves) for k in self.norms]
        distance = jnp.stack([part.mean() for part in parts]).mean() if parts else jnp.full((), jnp.nan)
        return values[program.logits].astype(jnp.float32), distance


def _distances(affine: Affine, values: dict[int, Any], leaves: dict[str, Any]) -> jax.Array:
    """Squared distances of a batch's statistics from a BatchNorm's running ones, `[C]`."""
    assert affine.mean is not None and affine.var is not None
    array, axes = values[affine.begin].astype(jnp.float32), affine.begin_axes
    others = tuple(k for k in range(array.ndim) if k not in axes)
    # The means have the channel axes in ascending order; the leaves have them in the order of `axes`.
    order = [sorted(axes).index(k) for k in axes]
    mean, var = (jnp.transpose(part, order).reshape(-1) for part in (array.mean(others), array.var(others)))
    running_mean, running_var = (view.read(leaves[view.path]).astype(jnp.float32) for view in (affine.mean, affine.var))
    # In units of each channel's own spread, so that wide channels do not outweigh narrow ones.
    unit = jnp.maximum(running_var, LEAST_VARIANCE)
    return jnp.square(mean - running_mean) / unit + jnp.square((var - running_var) / unit)
