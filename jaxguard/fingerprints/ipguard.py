"""IPGuard: points just across the owner's decision boundaries, which a stolen copy classifies in the same way.

From an image that the owner's model puts into class i, with j another class and Z its logits, Adam minimises

    relu(Z_i - Z_j + k) + relu(max_{t != i, j} Z_t - Z_i)

within [0, 1]: the point crosses into class j until j leads i by k, while i stays second. It stops when the loss is 0.
The fingerprint of a model is the class it gives each point; the score is the share on which owner and suspect agree.

Cao, Jia, Gong: IPGuard: Protecting Intellectual Property of Deep Neural Networks via Fingerprinting the Classification
Boundary, AsiaCCS 2021. The paper's k = 10 is from memory, not checked; re-implementations use 5 with a learning rate of
0.001 (DeepJudge, without bounds on pixels), or 10 with 0.01, stopping when the class changes (QuRD: `stop="class"`).
They use 100 points and 1000 steps. Points that do not cross the boundary are left out here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from jaxguard import programs, training
from jaxguard.errors import FingerprintError
from jaxguard.fingerprints import owner_images
from jaxguard.fingerprints.protocol import Fingerprint, Owner, Probes, factory
from jaxguard.methods import Count, NonNegative, Positive
from jaxguard.training import Progress
from jaxguard.types import ApplyFn, Variables

Start = Literal["data", "noise"]
Target = Literal["least-likely", "random"]
Stop = Literal["loss", "class"]

BETWEEN_LOOKS = 50
"""Steps between two checks whether all points are done; a point that is done no longer moves."""


class State(NamedTuple):
    """Points during the descent.

    Attributes:
        images: `[N, H, W, C]` in [0, 1].
        opt_state: Adam's.
        done: bool `[N]`.
    """

    images: jax.Array
    opt_state: Any
    done: jax.Array


@dataclass(frozen=True)
class Crossing:
    """One step of all points; a value, so that equal settings share a compiled program.

    Attributes: see `ipguard`.
    """

    apply_fn: ApplyFn
    k: float
    learning_rate: float
    stop: Stop

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam."""
        return optax.adam(self.learning_rate)

    def start(self, images: jax.Array) -> State:
        """The state before the first step."""
        return State(images, self.optimizer.init(images), jnp.zeros(len(images), bool))

    def losses(self, logits: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
        """Loss of each point.

        Args:
            logits: `[N, K]`.
            source: int `[N]`, class `i`.
            target: int `[N]`, class `j`.

        Returns:
            `[N]`, 0 where the point has crossed far enough.
        """
        classes = jnp.arange(logits.shape[-1])[None]
        is_source, is_target = classes == source[:, None], classes == target[:, None]
        # Sums of masked logits pick one logit per row, with a gradient to that logit alone.
        first, second = (jnp.where(mask, logits, 0).sum(-1) for mask in (is_source, is_target))
        others = jnp.where(is_source | is_target, -jnp.inf, logits).max(-1)
        return jax.nn.relu(first - second + self.k) + jax.nn.relu(others - first)

    def reached(self, logits: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
        """Which points are done, bool `[N]`."""
        if self.stop == "class":
            return logits.argmax(-1) != source
        return self.losses(logits, source, target) <= 0

    def __call__(
        self, variables: Variables, source: jax.Array, target: jax.Array, state: State, index: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        """Takes one step; points that are done stay where they are."""
        del index

        def loss_fn(images: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            logits = self.apply_fn(variables, images).astype(jnp.float32)
            losses = self.losses(logits, source, target)
            return losses.sum(), (losses, self.reached(logits, source, target))

        gradient, (losses, reached) = jax.grad(loss_fn, has_aux=True)(state.images)
        done = state.done | reached
        update, opt_state = training.update(self.optimizer, gradient, state.opt_state)
        moved = jnp.clip(jnp.asarray(optax.apply_updates(state.images, update)), 0, 1)
        # Masked rather than dropped: the batch keeps its shape until all points are done.
        images = jnp.where(done[:, None, None, None], state.images, moved)
        return State(images, opt_state, done), {"loss": losses.mean(), "done": done.mean()}


@factory
def ipguard(
    *,
    points: Count = 100,
    k: NonNegative = 10.0,
    learning_rate: Positive = 0.01,
    steps: Count = 1000,
    start: Start = "data",
    target: Target = "least-likely",
    stop: Stop = "loss",
) -> Fingerprint:
    """Points near the owner's decision boundaries; the score is the match rate of labels.

    Args:
        points: probes to search for.
        k: lead of the new class, in logits, at which a point is done. A larger k survives stronger changes of a copy,
            but more independent models agree by chance; all of them do once k reaches the usual lead between classes,
            which a note then says.
        learning_rate: of Adam, in pixel values.
        steps: upper limit; all points are one batch.
        start: from the owner's `data`, drawn at random, or from uniform `noise`.
        target: class `j`: the `least-likely` one at the start, or a `random` one other than the source.
        stop: whether a point is done when its `loss` is 0, or as soon as its `class` changes.

    Returns:
        The fingerprint. Making probes raises FingerprintError if the owner has too few images, its logits are not
        finite, or no point crosses.

    Example:
        >>> from jaxguard.types import Network
        >>> brightest = lambda variables, images: 30 * images.reshape(len(images), -1)
        >>> method = ipguard(points=4, start="noise", k=1.0, learning_rate=0.05)
        >>> method.make(Owner(Network({}, brightest, (2, 2, 1))), jax.random.key(0)).images.shape
        (4, 2, 2, 1)
    """

    def make(owner: Owner, key: jax.Array, progress: Progress | None) -> Probes:
        network, (key_start, key_target) = owner.network, jax.random.split(key)
        if start == "data":
            images = jnp.asarray(owner_images.draw(owner, points, key_start, method="ipguard"))
        else:
            images = jax.random.uniform(key_start, (points, *network.input_spec.shape))
        crossing = Crossing(network.apply_fn, k, learning_rate, stop)
        logits = np.asarray(_forward(network.apply_fn, network.variables, images))
        if logits.ndim != 2 or logits.shape[1] < 2 or not np.isfinite(logits).all():
            raise FingerprintError(
                f"expected finite logits [{points}, K] of two classes or more, got shape {logits.shape}, finite: "
                f"{np.isfinite(logits).all()}, of the owner's model in ipguard(); check its weights, and whether it "
                "classifies"
            )
        source, usual = logits.argmax(-1), np.median(np.diff(np.sort(logits)[:, -2:]))
        if target == "random":
            # A shift of 1 to K - 1 modulo K never hits the class itself.
            shift = jax.random.randint(key_target, (points,), 1, logits.shape[1])
            aim = (source + np.asarray(shift)) % logits.shape[1]
        else:
            aim = logits.argmin(-1)
        step_fn = Partial(crossing, network.variables, source, aim)
        found, done = _cross(step_fn, crossing.start(images), steps, progress)
        logits = _forward(network.apply_fn, network.variables, found)
        probes = _kept(found, done | crossing.reached(logits, *map(jnp.asarray, (source, aim))), crossing, steps)
        note = (
            f"On half of the starting images, the owner's first class leads by {usual:.1f} or less, and k is {k}: "
            "points are as deep in their new classes as images are, where independent models agree too; "
            "take a smaller k."
        )
        return probes._replace(notes=(*probes.notes, note)) if start == "data" and k >= usual else probes

    return Fingerprint(
        make_fn=make,
        signature_fn=lambda probes, outputs: outputs.argmax(-1),
        distance_fn=lambda probes, owner, suspects: (suspects == owner[None]).mean(-1, dtype=jnp.float32),
        stolen="high",
        sees="copies whose weights derive from the owner's: fine-tuned, pruned or quantised.",
        blind="extraction and distillation, which form other boundaries; copies with other classes.",
        answers="labels",
    )


def _cross(step_fn: Partial, state: State, steps: int, progress: Progress | None) -> tuple[jax.Array, jax.Array]:
    """Descends until all points are done, for at most `steps` steps: the points, and which of them are done."""
    report = progress and (lambda done, stop, metrics: progress(done, steps, metrics))
    for first in range(0, steps, BETWEEN_LOOKS):
        count = min(BETWEEN_LOOKS, steps - first)
        state, _ = training.descend(step_fn, state, count, start=first, progress=report)
        if bool(state.done.all()):
            break
    return state.images, state.done


def _kept(images: jax.Array, reached: jax.Array, crossing: Crossing, steps: int) -> Probes:
    """The points that crossed."""
    kept = np.asarray(images)[np.asarray(reached)]
    if not len(kept):
        raise FingerprintError(
            f"expected points across the decision boundary, got none of {len(images)} in ipguard with k={crossing.k}, "
            f"{steps=} and learning_rate={crossing.learning_rate}; take a smaller k, more steps or a larger "
            "learning_rate"
        )
    note = f"{len(kept)} of {len(images)} points crossed the owner's decision boundary; the others were left out."
    return Probes(kept, notes=() if len(kept) == len(images) else (note,))


@partial(programs.jit, static_argnums=0)
def _forward(apply_fn: ApplyFn, variables: Variables, images: jax.Array) -> jax.Array:
    return apply_fn(variables, images).astype(jnp.float32)
