"""The descent that all kinds of triggers share: candidates x images in one batch, the network's weights shared.

Candidates of all classes and starts are rows of one batch, so convolutions stay ordinary ones. Chunks of one size bound
the memory, share one compiled program, and run on all cores.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxguard import execution, memory, meshes, programs, training
from jaxguard.inversion.batches import rows_of
from jaxguard.inversion.trigger_models import TriggerModel
from jaxguard.types import ApplyFn, Variables

LEAST = -20.0
"""An image counts with so low a log probability at least."""

MOMENTUM = 0.7

RATES = (0.16, 0.01)
"""Steps at the beginning and at the end, as shares of what a pixel can change."""

GRADIENT = 1.3
"""Cost of a backward pass in forward passes, as measured on ResNet-20 and WRN-16-1 on CPU."""


class OutOfTimeError(Exception):
    """The time that a search was given is over; never leaves `jaxguard.inversion`."""


class UnsearchableError(Exception):
    """What a kind of trigger lacks to be searched; never leaves `jaxguard.inversion`."""


@dataclass(eq=False)
class Clock:
    """What a search has cost, and whether it may go on.

    Attributes:
        total: forward passes that are expected in all.
        budget: seconds; None for no limit.
        progress: told about the forward passes.
        done: forward passes so far, a backward pass counted as `GRADIENT`.
        is_stopped: whether the user wants no more.
    """

    total: float
    budget: float | None = None
    progress: training.Progress | None = None
    done: float = 0.0
    is_stopped: bool = False
    _start: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._start

    def spend(self, forwards: float) -> None:
        """Counts forward passes.

        Raises:
            OutOfTimeError: the time is over.
        """
        with self._lock:
            self.done += forwards
            if self.progress is not None:
                self.progress(int(min(self.done, self.total)), int(self.total), {})
        if self.is_stopped or (self.budget is not None and self.seconds > self.budget):
            raise OutOfTimeError


@dataclass(frozen=True, eq=False)
class Task:
    """A network and the images that its triggers are searched on.

    Attributes:
        apply_fn: model in evaluation mode, normalisation included; hashable.
        variables: its variables, on the device.
        images: `[B, H, W, C]` in [0, 1]; few, of all classes.
        labels: int `[B]`.
        clock: counts the cost.
    """

    apply_fn: ApplyFn
    variables: Variables
    images: np.ndarray
    labels: np.ndarray
    clock: Clock

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(H, W, C)` of the images."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels


class Candidates(NamedTuple):
    """Triggers of one family.

    Attributes:
        given: leaves `[N, ...]`.
        free: leaves `[N, ...]`, what is searched for.
    """

    given: Any
    free: Any

    def take(self, rows: np.ndarray) -> Candidates:
        """Some of them, in another order."""
        return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], self)


def stamped_logits(
    task: Task,
    model: TriggerModel,
    make_fn: Callable[[np.ndarray], Candidates],
    number: int,
    images: np.ndarray,
    *,
    shown: np.ndarray | None = None,
) -> np.ndarray:
    """Logits of stamped images, candidate by candidate; forward only.

    Args:
        task: the network.
        model: the family of the triggers.
        make_fn: numbers of candidates `[n]` -> these candidates; called chunk by chunk.
        number: of candidates, `N`.
        images: `[B, H, W, C]`.
        shown: int `[N, B']`, which images each candidate is stamped on; None for all.

    Returns:
        float32 `[N, B, K]`, or `[N, B', K]`.
    """
    per, plain = len(images) if shown is None else shown.shape[1], meshes.everywhere(images)
    bytes_each = memory.of_forward(task.apply_fn, task.variables, images.shape[1:])
    size = execution.stamped_images_at_once(bytes_each)
    size = size if number * per >= size // 4 else meshes.divisible(number * per)
    # So many candidates a row of stamped images has at most: whole ones, the two it cuts, and one after a new start.
    most = size // per + 3

    def answers(row: np.ndarray) -> np.ndarray:
        task.clock.spend(len(row))
        # A row holds stamped images of a few candidates: each is made once, and repeated for its images on the device.
        own, inverse = np.unique(row // per, return_inverse=True)
        candidates = make_fn(np.resize(own, most))
        at = meshes.spread((inverse, row % per if shown is None else shown.reshape(-1)[row]))
        stamped = _Stamped(meshes.everywhere(candidates), plain, *at)
        return np.asarray(_answers(task.apply_fn, model, task.variables, stamped))

    rows, threads = rows_of(number * per, size), execution.searches_at_once(size * bytes_each)
    found = np.concatenate(list(execution.in_threads(answers, rows, threads=threads)))[: number * per]
    return found.reshape(number, per, -1)


class _Stamped(NamedTuple):
    """Stamped images by number: `R` times one of the candidates `[N, ...]` on one of the images `[B, H, W, C]`."""

    candidates: Candidates
    images: Any
    own: Any
    shown: Any


@partial(programs.jit, static_argnums=(0, 1))
def _answers(apply_fn: ApplyFn, model: TriggerModel, variables: Variables, wanted: _Stamped) -> jax.Array:
    """Logits `[R, K]`."""
    given, free = jax.tree.map(lambda leaf: leaf[wanted.own], wanted.candidates)
    stamped = model.stamp(given, free, wanted.images[wanted.shown][:, None])
    return apply_fn(variables, stamped[:, 0]).astype(jnp.float32)


def floored_log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log probabilities `[..., K]`, at least -20: one image that can never be turned must not outweigh all others."""
    with np.errstate(invalid="ignore"):
        shifted = logits - logits.max(-1, keepdims=True)
        return np.maximum(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), LEAST)


def log_probability(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean log probability of every class over the images of other classes.

    Args:
        logits: `[N, B, K]`.
        labels: `[B]`.

    Returns:
        `[N, K]`, at least -20; -inf where a logit is not finite, or no image is of another class.
    """
    found = floored_log_softmax(logits)
    others = (labels[:, None] != np.arange(logits.shape[-1])).astype(np.float32)
    mean = np.einsum("nbk,bk->nk", found, others) / np.maximum(others.sum(0), 1)
    return np.where(np.isfinite(mean) & (others.sum(0) > 0), mean, -np.inf)


class Climbed(NamedTuple):
    """Candidates after some steps; every leaf has the leading axis `N`.

    Attributes:
        free: the best iterate of each.
        score: `[N]`, mean log probability of the target over the images that are not of it.
        momentum: of the last step.
    """

    free: Any
    score: np.ndarray
    momentum: Any


def climb(
    task: Task,
    model: TriggerModel,
    candidates: Candidates,
    targets: np.ndarray,
    steps: int,
    *,
    shown: np.ndarray | None = None,
) -> Climbed:
    """Moves candidates towards their targets; each gets the same number of steps.

    Args:
        task: the network and its images.
        model: the family of the triggers.
        candidates: `N` of them.
        targets: int `[N]`; or `[N, B]` for a target of each image, which may be its own class.
        steps: of steepest ascent with momentum.
        shown: int `[N, B]`, the images of the task that each candidate is stamped on; None for all.

    Returns:
        The best of the iterates, the first included.
    """
    number = len(targets)
    if shown is None and targets.ndim == 1:
        shown = _of_others(task.labels, targets)
    per = len(task.images) if shown is None else shown.shape[1]
    wanted = np.broadcast_to(targets.reshape(number, -1), (number, per)).astype(np.int32)
    bytes_each = memory.of_gradient(task.apply_fn, task.variables, task.shape)
    at_once = meshes.divisible(max(1, execution.stamped_images_at_once(bytes_each) // per))
    step = _Climb(task.apply_fn, model)

    def climbed(row: np.ndarray) -> Climbed:
        task.clock.spend(row.size * per * steps * (1 + GRADIENT))
        given, start = meshes.spread(candidates.take(row))
        images, labels = (leaf[None] if shown is None else leaf[shown[row]] for leaf in (task.images, task.labels))
        # Images of a target for all are there already: they weigh nothing, and the batch keeps its shape.
        weights = ((labels != wanted[row]) | (targets.ndim > 1)).astype(np.float32)
        setting = meshes.spread(_Setting(given, images, weights, wanted[row], np.array(steps, np.float32)))
        blank = jax.tree.map(np.zeros_like, candidates.take(row).free)
        state = _State(start, blank, start, np.full(len(row), -np.inf, np.float32))
        state, _ = training.descend(Partial(step, task.variables, setting), meshes.spread(state), steps)
        return jax.device_get(Climbed(state.best, state.score, state.momentum))

    threads = execution.searches_at_once(at_once * per * bytes_each)
    parts = list(execution.in_threads(climbed, rows_of(number, at_once), threads=threads))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:number], *parts)


def _of_others(labels: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Images `[N, B]` that are not of each candidate's target, and as few of it as give all candidates equally many."""
    is_own = labels[None] == targets[:, None]
    return np.argsort(is_own, axis=1, kind="stable")[:, : max(1, int((~is_own).sum(1).max()))]


class _Setting(NamedTuple):
    """What stays the same from step to step.

    Images `[1 or N, B, H, W, C]`, their weights and targets `[N, B]`, the number of steps.
    """

    given: Any
    images: Any
    weights: Any
    targets: Any
    steps: Any


class _State(NamedTuple):
    free: Any
    momentum: Any
    best: Any
    score: Any


@dataclass(frozen=True)
class _Climb:
    """One step of several candidates; a value, so that equal settings share a compiled program."""

    apply_fn: ApplyFn
    model: TriggerModel

    def __call__(
        self, variables: Variables, setting: _Setting, state: _State, index: jax.Array
    ) -> tuple[_State, dict[str, jax.Array]]:
        given, images, weights, targets, steps = setting

        def lead(free: Any) -> tuple[jax.Array, jax.Array]:
            stamped = self.model.stamp(given, free, images)
            logits = self.apply_fn(variables, stamped.reshape(-1, *stamped.shape[2:])).astype(jnp.float32)
            logits = logits.reshape(*weights.shape, -1)
            reached = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
            counted = jnp.maximum(weights.sum(1), 1)
            score = (weights * jnp.maximum(reached, LEAST)).sum(1) / counted
            # The gradient comes without the floor, which would stop it; the sum over candidates keeps them apart,
            # since none depends on another.
            return ((weights * reached).sum(1) / counted).sum(), score

        gradient, score = jax.grad(lead, has_aux=True)(state.free)
        rate = (RATES[0] - RATES[1]) * (1 - index.astype(jnp.float32) / steps) + RATES[1]

        def unit(leaf: jax.Array) -> jax.Array:
            scale = jnp.abs(leaf).mean(tuple(range(1, leaf.ndim)), keepdims=True)
            return jnp.where(scale > 0, leaf / jnp.where(scale > 0, scale, 1), 0)

        # Gradients of unit mean size, as in momentum FGSM: candidates far from and near their target move alike.
        momentum = jax.tree.map(lambda old, new: MOMENTUM * old + unit(new), state.momentum, gradient)
        moved = jax.tree.map(lambda leaf, way: leaf + rate * way, state.free, self.model.steepest(momentum))
        is_better = score > state.score

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(is_better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        # The score is of the candidates before this step, so the best is chosen among those.
        best = jax.tree.map(choose, state.free, state.best)
        free = self.model.project(given, moved)
        return _State(free, momentum, best, jnp.maximum(score, state.score)), {"score": score.mean()}
