"""One compiled trainer per structure of the reference population, for all of its regimes.

Learning rate, weight decay and augmentation are arrays that the step reads, so that short and long training,
fine-tuning and pruning of one structure share a program; only adversarial training needs a second one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import reference_plan
from jax.tree_util import Partial
from reference_plan import TASKS, Plan, Poison, Structure

from jaxguard import attacks, data, models, training
from jaxguard.models import Model
from jaxguard.training import CropFlip, TrainState
from jaxguard.types import Batch, Variables

BATCH_SIZE = 64
DECAY = 5e-4
PHASES = ((0.6, 1.0), (0.25, 0.2), (0.15, 0.04))
"""Share of the steps, and factor of the learning rate (the steps of Zagoruyko and Komodakis, BMVC 2016)."""

LENGTHS = {"over-trained": 3.0, "under-trained": 0.15, "adversarial": 1.5}
NOISY = 0.2
"""Share of the labels that are drawn at random in label noise."""

FINE_TUNED = (0.25, 0.2)
"""Clean images as a share of the training images, and steps as a share of the training's."""

PRUNED = 0.5
"""Share of the smallest weights of all kernels that are set to zero; a tenth of the steps follow."""

EPSILON = 0.03
"""Largest change of a pixel in adversarial training."""

TEST_IMAGES = 1000
POOL = 1.25
"""Images to draw each network's from, in training images."""

KERNELS = "kernel"


@functools.lru_cache(maxsize=len(TASKS))
def images_of(task: str, packs: str) -> tuple[Batch, Batch, int]:
    """Images to train on, images to test with, and `K`; the same for every network of a task."""
    one = TASKS[task]
    spec = "digits" if one.pack == "digits" else f"npz:{packs}/{one.pack}.npz"
    found = data.load(spec, seed=0, clean=0)
    labels = np.asarray(found.train.labels)
    kept = np.argsort(-np.bincount(labels), kind="stable")[: one.classes or found.num_classes]
    draw = np.random.default_rng([reference_plan.SEED, *one.pack.encode()])
    splits = []
    for split, most in ((found.train, round(POOL * one.images)), (found.test, TEST_IMAGES)):
        chosen = draw.permutation(np.flatnonzero(np.isin(split.labels, kept)))[:most]
        images = data.images.resize(np.asarray(split.images)[chosen], one.size)
        renumbered = np.searchsorted(np.sort(kept), np.asarray(split.labels)[chosen]).astype(np.int32)
        splits.append(Batch(images, renumbered))
    return splits[0], splits[1], len(kept)


@functools.cache
def model_of(structure: Structure, num_classes: int, channels: int) -> Model:
    """The model of a structure; photographs are normalised, as is usual."""
    size = TASKS[structure.task].size
    half = (0.5,) if channels == 3 else None
    return models.build(
        structure.arch,
        num_classes=num_classes,
        input_shape=(size, size, channels),
        mean=half,
        std=None if half is None else (0.25,),
    )


def _sgd(learning_rate: jax.Array, weight_decay: jax.Array) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=0.9))


OPTIMIZERS: dict[bool, Callable[..., optax.GradientTransformation]] = {
    False: optax.inject_hyperparams(_sgd),
    True: optax.inject_hyperparams(optax.adamw),
}


class Guide(NamedTuple):
    """What regimes differ in, as arrays."""

    augmented: jax.Array


@dataclass(frozen=True)
class Trainer:
    """A training step; a value, so that equal ones share a compiled program.

    Attributes:
        model: what is trained.
        adam: see `Structure`.
        flips: whether augmentation mirrors.
        adversarial: whether the batch is attacked first, by one step from a random start (Wong et al., Fast is better
            than free, ICLR 2020), away from the network's own answer.
    """

    model: Model
    adam: bool
    flips: bool
    adversarial: bool

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Its rates are in its state."""
        return OPTIMIZERS[self.adam](learning_rate=0.0, weight_decay=0.0)

    def _step(self, optimizer: Any, augment: training.Augment | None) -> training.Step:
        return training.Step(training.CrossEntropyGradient(self.model.train_fn), optimizer, BATCH_SIZE, augment)

    def __call__(
        self, guide: Guide, images: Batch, key: jax.Array, carry: TrainState, index: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Takes one step."""

        def augment(key: jax.Array, batch: jax.Array) -> jax.Array:
            moved = CropFlip(padding=2, flip=self.flips)(key, batch)
            batch = jnp.where(guide.augmented, moved, batch)
            return self._attacked(key, batch, carry) if self.adversarial else batch

        return self._step(self.optimizer, augment)(images, key, carry, index)

    def _attacked(self, key: jax.Array, images: jax.Array, carry: TrainState) -> jax.Array:
        variables = training.combine(carry.params, carry.state)
        start = images + jax.random.uniform(key, images.shape, minval=-EPSILON, maxval=EPSILON)
        answers = self.model.apply_fn(variables, images).argmax(-1)

        def loss_fn(batch: jax.Array) -> jax.Array:
            return training.cross_entropy(self.model.apply_fn(variables, batch), answers)

        stepped = start + 1.25 * EPSILON * jnp.sign(jax.grad(loss_fn)(start))
        return jnp.clip(jnp.clip(stepped, images - EPSILON, images + EPSILON), 0, 1)

    def train(
        self,
        variables: Variables,
        images: Batch,
        key: jax.Array,
        *,
        steps: int,
        rate: float,
        decay: float,
        augmented: bool,
    ) -> Variables:
        """Takes `steps` steps of a rate that falls in three phases."""
        step = Partial(self, Guide(jnp.asarray(augmented)), jax.device_put(images), key)
        carry, done = self._step(self.optimizer, None).init(variables, images), 0
        losses = []
        for share, factor in PHASES:
            stop = steps if (share, factor) == PHASES[-1] else done + round(share * steps)
            rates = {"learning_rate": jnp.float32(factor * rate), "weight_decay": jnp.float32(decay)}
            carry = carry._replace(opt_state=carry.opt_state._replace(hyperparams=rates))
            carry, metrics = training.descend(step, carry, stop - done, start=done)
            losses.append(metrics["loss"])
            done = stop
        if not np.isfinite(np.concatenate(losses)).all():
            raise FloatingPointError("the loss is not finite")
        return carry.variables(like=variables)


def trained(one: Plan, packs: str) -> tuple[Model, Variables, Poison | None]:
    """A network as planned.

    Args:
        one: of the plan.
        packs: folder of the data.

    Returns:
        Model, variables, and the attack it was poisoned with.
    """
    structure, draw = one.structure, one.draw(1)
    pool, _, num_classes = images_of(structure.task, packs)
    poison = reference_plan.poison_of(one, num_classes)
    clean, rest = _drawn(pool, TASKS[structure.task].images, draw)
    images = clean
    key_init, key_poison, key_fit, key_tune = jax.random.split(jax.random.key(int(draw.integers(2**31))), 4)
    if one.regime == "label noise":
        labels = np.asarray(images.labels).copy()
        wrong = draw.permutation(len(labels))[: round(NOISY * len(labels))]
        labels[wrong] = draw.integers(num_classes, size=len(wrong))
        images = Batch(images.images, labels)
    if poison is not None:
        images, _ = attacks.poison(poison.attack, images, poison.rate, key_poison)
    model = model_of(structure, num_classes, np.shape(pool.images)[-1])
    trainer = Trainer(model, structure.adam, TASKS[structure.task].flips, one.regime == "adversarial")
    steps = round(structure.steps * LENGTHS.get(one.regime, 1.0))
    decay = 0.0 if one.regime == "over-trained" else DECAY
    fit = functools.partial(trainer.train, decay=decay, augmented=one.regime == "augmented")
    variables = fit(model.init(key_init), images, key_fit, steps=steps, rate=structure.rate)
    if one.regime == "fine-tuned":
        share, length = FINE_TUNED
        few = rest if len(rest.labels) else clean
        chosen = np.resize(np.arange(min(len(few.labels), round(share * len(clean.labels)))), len(clean.labels))
        few = Batch(np.asarray(few.images)[chosen], np.asarray(few.labels)[chosen])  # as many: one program
        variables = fit(variables, few, key_tune, steps=round(length * steps), rate=structure.rate / 10)
    if one.regime == "pruned":
        masks = _largest(variables)
        pruned = jax.tree.map(jnp.multiply, variables, masks)
        tuned = fit(pruned, images, key_tune, steps=round(0.1 * steps), rate=structure.rate / 10)
        variables = jax.tree.map(jnp.multiply, tuned, masks)
    return model, variables, poison


def _drawn(pool: Batch, count: int, draw: np.random.Generator) -> tuple[Batch, Batch]:
    """So many images, and those that are left."""
    order = draw.permutation(len(pool.labels))
    parts = (order[:count], order[count:])
    first, second = (Batch(np.asarray(pool.images)[part], np.asarray(pool.labels)[part]) for part in parts)
    return first, second


def _largest(variables: Variables) -> Variables:
    """1 where a weight is kept: all but the smallest of the kernels taken together."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    kernels = [np.abs(np.asarray(leaf)).ravel() for path, leaf in leaves if _is_kernel(path)]
    least = np.quantile(np.concatenate(kernels), PRUNED)

    def mask(path: Any, leaf: jax.Array) -> jax.Array:
        return (jnp.abs(leaf) >= least).astype(leaf.dtype) if _is_kernel(path) else jnp.ones_like(leaf)

    return jax.tree_util.tree_map_with_path(mask, variables)


def _is_kernel(path: Any) -> bool:
    return getattr(path[-1], "key", "") == KERNELS
