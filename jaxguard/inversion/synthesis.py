"""Images where a defender has none: a model takes them for its classes, and its BatchNorms find nothing unusual.

A BatchNorm remembers the mean and variance of what reached it in training. Images `x` of chosen labels `y` minimise

    CE(f(x), y) + a D(x) + t TV(x) + w mean (x - 1/2)^2,
    D = mean over BatchNorms and their channels of (mu(x) - mean)^2 / var + (v(x) / var - 1)^2,

`mu` and `v` being the batch's own statistics where `mean` and `var` are the running ones, and TV the mean absolute
difference between neighbours. All labels are one batch, several images each, since the running statistics are those of
all classes together.

After Yin et al., Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion, CVPR 2020, whose distances are in
the units of each channel; in units of its running standard deviation one `a` serves every architecture. They add random
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

from jaxguard import surgery, training
from jaxguard.errors import DataError, JaxguardError
from jaxguard.graph import Affine, ChannelGraph
from jaxguard.inversion.descent import squash
from jaxguard.types import Variables

SPREAD = 0.5
"""Standard deviation of the first noise, before the squashing."""

LEAST_VARIANCE = 1e-5
"""Running variances count with this at least: BatchNorm's epsilon."""


class Synthesis(NamedTuple):
    """Images made of a model.

    Attributes:
        images: `[B, H, W, C]` in [0, 1].
        labels: int32 `[B]`, as they were asked for.
        success: share of the images to which the model gives their label.
        distances: `[steps]`, `D` before each step; NaN for a model without BatchNorm.
        norms: BatchNorms whose statistics were matched; with 0, labels and smoothness alone guided the images.
    """

    images: np.ndarray
    labels: np.ndarray
    success: float
    distances: np.ndarray
    norms: int

    @property
    def source(self) -> str:
        """What the images are, for `recovered_trigger`."""
        matched = f"{self.norms} BatchNorms matched" if self.norms else "no BatchNorm to match, so by labels alone"
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
    """Makes images of given labels from a model alone.

    The defaults were chosen on the networks of `jaxguard.demo`, seeds 10-14.

    Args:
        graph: the model's channel graph; images have the shape it was derived at.
        variables: the model's.
        key: draws the first noise.
        labels: int `[B]`; as many of each class as in training, several of each.
        steps: of Adam.
        learning_rate: of Adam.
        statistics: `a`.
        total_variation: `t`.
        l2: `w`.
        progress: told how far the descent is, a few times per second.

    Returns:
        The images; `norms` says whether there was a BatchNorm to match.

    Raises:
        DataError: no label, or one that the model has no class for.
        JaxguardError: the loss became NaN or infinite.
        ValueError: `steps` is not positive, or a weight is negative.

    Example:
        >>> from jaxguard.graph import channel_graph
        >>> model = lambda w, images: images.reshape(len(images), -1) @ w
        >>> graph = channel_graph(model, jnp.eye(4), jnp.zeros((1, 2, 2, 1)))
        >>> made = synthesise(graph, jnp.eye(4), jax.random.key(0), labels=np.arange(4), steps=100)
        >>> made.images.reshape(4, 4).argmax(1).tolist(), made.source
        ([0, 1, 2, 3], '4 synthesised images (no BatchNorm to match, so by labels alone)')
    """
    if steps < 1 or min(statistics, total_variation, l2) < 0:
        raise ValueError(
            f"expected steps >= 1 and weights >= 0, came {steps=}, {statistics=}, {total_variation=}, {l2=} in "
            "synthesise(); leave them out for the defaults"
        )
    num_classes = graph.program.shapes[graph.program.logits][-1]
    wanted = np.asarray(labels)
    if wanted.ndim != 1 or not wanted.size or wanted.min() < 0 or wanted.max() >= num_classes:
        raise DataError(
            f"expected labels [B] in [0, {num_classes}), came {wanted.tolist()[:10]} in synthesise(); name classes "
            "of the model, such as np.tile(np.arange(10), 5)"
        )
    norms = tuple(k for k, affine in enumerate(graph.affines) if affine.mean is not None and affine.var is not None)
    matching = _Matching(graph, norms, learning_rate, statistics, total_variation, l2)
    shape = graph.program.shapes[graph.program.images][1:]
    theta = SPREAD * jax.random.normal(key, (len(wanted), *shape))
    step_fn = Partial(matching, variables, wanted.astype(np.int32))
    (theta, _), history = training.descend(step_fn, (theta, matching.optimizer.init(theta)), steps, progress=progress)
    if not np.isfinite(history["loss"]).all():
        at = int(np.argmin(np.isfinite(history["loss"])))
        raise JaxguardError(
            f"expected a finite loss, came {history['loss'][at]} at step {at} of {steps} in synthesise(); look at the "
            "model's variables with jaxguard.checkpoints, or lower learning_rate"
        )
    images = squash(theta)
    success = (jax.jit(graph.apply_fn)(variables, images).argmax(-1) == wanted).mean()
    return Synthesis(
        images=np.asarray(images),
        labels=wanted.astype(np.int32),
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
            steps_across = (jnp.abs(jnp.diff(images, axis=axis)) for axis in (1, 2) if images.shape[axis] > 1)
            variation = sum((across.mean() for across in steps_across), jnp.zeros(()))
            loss = entropy + self.total_variation * variation + self.l2 * jnp.square(images - 0.5).mean()
            loss = loss + self.statistics * distance if self.norms else loss
            return loss, {"loss": loss, "entropy": entropy, "distance": distance}

        gradient, metrics = jax.grad(loss_fn, has_aux=True)(theta)
        update, opt_state = self.optimizer.update(gradient, opt_state)
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
    """How far a batch's statistics are from those a BatchNorm remembers, `[C]`."""
    assert affine.mean is not None and affine.var is not None
    array, axes = values[affine.begin].astype(jnp.float32), affine.begin_axes
    others = tuple(k for k in range(array.ndim) if k not in axes)
    order = [sorted(axes).index(k) for k in axes]
    mean, var = (jnp.transpose(part, order).reshape(-1) for part in (array.mean(others), array.var(others)))
    running_mean, running_var = (
        surgery.read(view, leaves[view.path]).astype(jnp.float32) for view in (affine.mean, affine.var)
    )
    unit = jnp.maximum(running_var, LEAST_VARIANCE)
    return jnp.square(mean - running_mean) / unit + jnp.square((var - running_var) / unit)
