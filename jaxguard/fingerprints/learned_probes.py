"""Probes learned together with a verifier that distinguishes copies from independent networks by their outputs.

Adam minimises

    sum_pool weight_pool BCE(verifier(f_member(probes)), pool)        pool 1: owner, copies; 0: independents

over the probes, clipped to [0, 1], and the verifier's weights; each step draws one member of each pool. MetaV and
LiteGuard differ in the verifier only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from jaxguard import programs, training
from jaxguard.errors import FingerprintError
from jaxguard.fingerprints import owner_images, pools
from jaxguard.fingerprints.protocol import Owner, Probes, Space
from jaxguard.fingerprints.spaces import to_space
from jaxguard.training import Progress
from jaxguard.types import ApplyFn, Network, Variables

Start = Literal["data", "noise"]
Arrays = Mapping[str, Any]

STEPS_AT_A_TIME = 10
"""Steps between two draws of the pools' architectures; the member of an architecture is drawn at every step."""


class Verifier(Protocol):
    """A classifier of outputs; hashable, and equal to any other of equal settings."""

    def init(self, key: jax.Array, num_probes: int, num_outputs: int) -> dict[str, jax.Array]:
        """Random weights."""
        ...

    def __call__(self, weights: Arrays, outputs: jax.Array) -> jax.Array:
        """Logits, of any shape, for "these outputs `[N, K]` are a copy's"."""
        ...


class State(NamedTuple):
    """The state of learning.

    Attributes:
        images: `[N, H, W, C]` in [0, 1].
        weights: of the verifier.
        opt_states: Adam's, for images and for weights.
    """

    images: jax.Array
    weights: dict[str, jax.Array]
    opt_states: tuple[Any, Any]


@dataclass(frozen=True)
class Settings:
    """How probes are learned.

    Attributes:
        points: number of probes.
        steps: of Adam.
        probe_rate: Adam's learning rate for pixels.
        verifier_rate: Adam's learning rate for the verifier.
        owner_weight: of the owner's term in the loss; 0 adds the owner to the pool of copies.
        positive_weight: of the copies' term.
        negative_weight: of the independents' term.
        start: whether probes begin as images of the owner (`data`) or as uniform `noise` of the same shape.
        space: of the outputs that the verifier gets.
    """

    points: int
    steps: int
    probe_rate: float
    verifier_rate: float
    owner_weight: float
    positive_weight: float
    negative_weight: float
    start: Start
    space: Space

    @property
    def optimizers(self) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
        """Adam for probes, and for the verifier."""
        return optax.adam(self.probe_rate), optax.adam(self.verifier_rate)

    def begin(self, images: jax.Array, weights: dict[str, jax.Array]) -> State:
        """The state before the first step."""
        first, second = self.optimizers
        return State(images, weights, (first.init(images), second.init(weights)))


@dataclass(frozen=True)
class LearningStep:
    """One step; a value, so that equal settings share a compiled program.

    Attributes:
        settings: how probes are learned.
        verifier: the architecture of the verifier.
        apply_fns: the models of owner, copies and independents.
    """

    settings: Settings
    verifier: Verifier
    apply_fns: tuple[ApplyFn, ApplyFn, ApplyFn]

    def __call__(
        self,
        owner: Variables,
        stacked: tuple[Variables, Variables],
        key: jax.Array,
        state: State,
        index: jax.Array,
    ) -> tuple[State, dict[str, jax.Array]]:
        """Takes one step with one member of each stack, leaves `[M, ...]`."""
        keys = jax.random.split(jax.random.fold_in(key, index), len(stacked))
        drawn = (owner, *(_member(stack, draw) for stack, draw in zip(stacked, keys, strict=True)))
        settings = self.settings
        weights = (settings.owner_weight, settings.positive_weight, settings.negative_weight)

        def loss_fn(learned: tuple[jax.Array, dict[str, jax.Array]]) -> jax.Array:
            images, verifier_weights = learned
            loss = jnp.float32(0)
            for weight, sign, apply_fn, variables in zip(weights, (-1, -1, 1), self.apply_fns, drawn, strict=True):
                if weight:
                    outputs = to_space(apply_fn(variables, images), settings.space)
                    # The logistic loss from the logit: softplus(-z) for copies, softplus(z) for independent networks.
                    loss += weight * jax.nn.softplus(sign * self.verifier(verifier_weights, outputs)).mean()
            return loss

        learned: Any = (state.images, state.weights)
        loss, gradients = jax.value_and_grad(loss_fn)(learned)
        parts: Any = zip(settings.optimizers, gradients, state.opt_states, strict=True)
        updates, opt_states = zip(*(training.update(*part) for part in parts), strict=True)
        moved: Any = optax.apply_updates(learned, updates)
        # Probes are images: pixels stay in [0, 1], the verifier's weights are free.
        return State(jnp.clip(moved[0], 0, 1), moved[1], opt_states), {"loss": loss}


def _member(stack: Variables, key: jax.Array) -> Variables:
    # Drawn inside the program: networks of one architecture share it, whichever is drawn.
    number = jax.random.randint(key, (), 0, len(jax.tree.leaves(stack)[0]))
    return jax.tree.map(lambda leaf: leaf[number], stack)


def learn(
    settings: Settings,
    verifier: Verifier,
    source: pools.Source,
    owner: Owner,
    key: jax.Array,
    *,
    progress: Progress | None = None,
) -> Probes:
    """Learns probes and verifier for one owner.

    Args:
        settings: how probes are learned.
        verifier: the architecture of the verifier.
        source: of the pools.
        owner: needs data, and whatever the pools are made from.
        key: the same key gives the same probes.
        progress: called with the progress.

    Returns:
        The probes; their arrays are the verifier's weights.

    Raises:
        FingerprintError: the owner lacks something, the pools do not fit it, or the loss is not finite.
    """
    method = source.method
    key_pools, key_images, key_verifier, key_draw = jax.random.split(key, 4)
    number = settings.points if settings.start == "data" else 1
    images = jnp.asarray(owner_images.draw(owner, number, key_images, method=method))
    if settings.start == "noise":
        images = jax.random.uniform(key_images, (settings.points, *images.shape[1:]))
    found = source.pools(owner, key_pools, progress)
    if not settings.owner_weight:
        found = found._replace(positives=(owner.network, *found.positives))
    num_outputs = _num_outputs(method, owner.network, found)
    positives, negatives = pools.stacks(found.positives), pools.stacks(found.negatives)
    state = settings.begin(images, verifier.init(key_verifier, settings.points, num_outputs))
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key_draw)).ravel().tolist())
    report = progress and (lambda done, stop, metrics: progress(done, settings.steps, metrics))
    # Another architecture is another program: it is changed from time to time, not at every step.
    for first in range(0, settings.steps, STEPS_AT_A_TIME):
        ours, theirs = _pick(positives, rng), _pick(negatives, rng)
        step = LearningStep(settings, verifier, (owner.network.apply_fn, ours.apply_fn, theirs.apply_fn))
        step_fn = Partial(step, owner.network.variables, (ours.variables, theirs.variables), key_draw)
        count = min(STEPS_AT_A_TIME, settings.steps - first)
        state, metrics = training.descend(step_fn, state, count, start=first, progress=report)
        if not np.isfinite(metrics["loss"]).all():
            raise FingerprintError(
                f"expected a finite loss, got {metrics['loss'][-1]} by step {first + count} of {settings.steps} in "
                f"{method}(); lower probe_rate or verifier_rate, or check the weights of owner and pools for NaN"
            )
    probes = Probes(np.asarray(state.images), {name: np.asarray(value) for name, value in state.weights.items()})
    return probes._replace(notes=(_note(verifier, settings.space, probes, found),))


def confidences(verifier: Verifier, space: Space, probes: Probes, outputs: jax.Array) -> jax.Array:
    """The verifier's confidences `[S, ...]`, in [0, 1], that outputs `[S, N, K]` are a copy's."""
    weights = {name: jnp.asarray(value) for name, value in probes.arrays.items()}
    return jax.nn.sigmoid(_verified(verifier, weights, to_space(outputs, space)))


@partial(programs.jit, static_argnums=0)
def _verified(verifier: Verifier, weights: Arrays, answers: jax.Array) -> jax.Array:
    return jax.vmap(partial(verifier, weights))(answers)


def _note(verifier: Verifier, space: Space, probes: Probes, found: pools.Pools) -> str:
    """The verifier's confidences on the pools that it was trained with."""
    lowest, highest = (
        fold(
            float(
                confidences(verifier, space, probes, _outputs(one.apply_fn, one.variables, probes.images)[None]).mean()
            )
            for one in pool
        )
        for fold, pool in zip((min, max), found, strict=True)
    )
    return (
        f"Learned with {len(found.positives)} copies and {len(found.negatives)} independent networks; on these the "
        f"lowest confidence for a copy is {lowest:.3f}, the highest for an independent network {highest:.3f}."
    )


def _pick(stacked: Sequence[Network], rng: np.random.Generator) -> Network:
    """A random architecture, weighted by its number of members."""
    sizes = [len(jax.tree.leaves(stack)[0]) for stack in stacked]
    return stacked[rng.choice(np.repeat(np.arange(len(stacked)), sizes))]


def _num_outputs(method: str, own: Network, found: pools.Pools) -> int:
    """`K`, which the owner and all networks of the pools share."""
    expected, *others = (one.num_classes for one in (own, *found.positives, *found.negatives))
    if set(others) - {expected}:
        raise FingerprintError(
            f"expected networks with {expected} outputs, as the owner's, got some with "
            f"{sorted(set(others) - {expected})} in the pools of {method}(); leave them out"
        )
    return expected


@partial(programs.jit, static_argnums=0)
def _outputs(apply_fn: ApplyFn, variables: Variables, images: jax.Array) -> jax.Array:
    return apply_fn(variables, images)
