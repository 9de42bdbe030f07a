"""i-BAU, implicit backdoor adversarial unlearning: a minimax game against one perturbation of all images.

    min_w  L_out(d*(w), w),    d*(w) = argmin_d L_in(d, w)
    L_in(d, w) = -CE(f_w(x + d), y) + c ||d||^2,    L_out(d, w) = CE(f_w(x), y), a few of the x perturbed by d

The weights descend along the whole derivative of the first line, with that of `d*` in it. Near `d*` a step of descent
`P(d) = d - r grad_d L_in` stays where it is, so that

    v = (dP/dd)^T v + grad_d L_out,    hypergradient = grad_w L_out + (dP/dw)^T v

and `v` is the limit of the first equation repeated. `L_in` has a symmetric Hessian, so no Jacobian is ever formed.

Zeng, Chen, Park, Mao, Jin and Jia, "Adversarial Unlearning of Backdoors via Implicit Hypergradient", ICLR 2022.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from jaxguard import methods, training
from jaxguard.defenses.protocol import Data, DefenseReport, one_batch, require_clean
from jaxguard.errors import DefenseError
from jaxguard.types import ApplyFn, Batch, Network, Variables

Inner = Literal["batch", "first"]


@dataclass(frozen=True)
class Game:
    """The two losses.

    Attributes:
        apply_fn: the model in evaluation mode.
        penalty: `c`.
        clip: whether perturbed images are kept in [0, 1].
        share: of a batch that is perturbed in the outer loss; at least one image unless it is 0.
    """

    apply_fn: ApplyFn
    penalty: float
    clip: bool
    share: float

    def perturbed(self, images: jax.Array, perturbation: jax.Array) -> jax.Array:
        """`x + d`, for `[B, H, W, C]` and `[H, W, C]`."""
        moved = images + perturbation[None]
        return jnp.clip(moved, 0, 1) if self.clip else moved

    def inner(self, perturbation: jax.Array, variables: Variables, batch: Batch) -> jax.Array:
        """`L_in`, small where the perturbation fools the model."""
        logits = self.apply_fn(variables, self.perturbed(jnp.asarray(batch.images), perturbation))
        entropy = training.cross_entropy(logits, jnp.asarray(batch.labels))
        return self.penalty * jnp.sum(jnp.square(perturbation)) - entropy

    def outer(self, perturbation: jax.Array, variables: Variables, batch: Batch) -> jax.Array:
        """`L_out`, on a batch in random order: its first images are perturbed."""
        images = jnp.asarray(batch.images)
        count = max(1, int(self.share * len(images))) if self.share else 0
        mixed = jnp.concatenate([self.perturbed(images[:count], perturbation), images[count:]])
        return training.cross_entropy(self.apply_fn(variables, mixed), jnp.asarray(batch.labels))


@dataclass(frozen=True)
class Search:
    """The gradient of the inner loss, against the labels that the model itself gives the images.

    Attributes:
        game: the losses.
    """

    game: Game

    def __call__(
        self, variables: Variables, perturbation: jax.Array, state: Any, batch: Batch
    ) -> tuple[dict[str, jax.Array], Any, jax.Array]:
        """Differentiates by the perturbation; `loss` is the inner one."""
        # The perturbation is to change what the model says now, right or wrong: no labels are needed to find it.
        given = jnp.argmax(self.game.apply_fn(variables, jnp.asarray(batch.images)), axis=-1)
        loss, gradient = jax.value_and_grad(self.game.inner)(perturbation, variables, Batch(batch.images, given))
        return {"loss": loss}, state, gradient


class Found(NamedTuple):
    """What the outer descent is given.

    Attributes:
        perturbation: `d*`, `[H, W, C]`.
        first: the batch that `inner="first"` looks at.
    """

    perturbation: jax.Array
    first: Batch


@dataclass(frozen=True)
class Hypergradient:
    """The derivative of the outer loss by the weights, that of the perturbation included; see the module.

    Attributes:
        game: the losses.
        rate: `r`, length of the inner step.
        iterations: `K` of the fixed point; 0 leaves the derivative of the perturbation out.
        inner: whether `P` is of the current `batch`, or always of the `first` one.
    """

    game: Game
    rate: float
    iterations: int
    inner: Inner

    def __call__(self, found: Found, params: Any, state: Any, batch: Batch) -> tuple[dict[str, jax.Array], Any, Any]:
        """A `training.GradientFn` with a perturbation; records the outer `loss`, and leaves the state as it was."""
        at = found.perturbation
        seen = found.first if self.inner == "first" else batch

        def outer(perturbation: jax.Array, params: Any) -> jax.Array:
            return self.game.outer(perturbation, training.combine(params, state), batch)

        def inner(perturbation: jax.Array, params: Any) -> jax.Array:
            return self.game.inner(perturbation, training.combine(params, state), seen)

        loss, (pull, direct) = jax.value_and_grad(outer, argnums=(0, 1))(at, params)
        if not self.iterations:
            return {"loss": loss}, state, direct
        # Linearised once: each turn below is then one product with the Hessian, without running the model forward
        # again.
        _, hessian = jax.linearize(lambda perturbation: jax.grad(inner)(perturbation, params), at)
        v = pull
        for _ in range(self.iterations - 1):  # unrolled: no convolution's gradient belongs in a loop on CPU
            v = v - self.rate * hessian(v) + pull
        # The mixed second derivative times v: the derivative along v first, then its gradient with respect to the
        # weights.
        implicit = jax.grad(lambda params: jax.jvp(lambda moved: inner(moved, params), (at,), (v,))[1])(params)
        return {"loss": loss}, state, jax.tree.map(lambda d, i: (d - self.rate * i).astype(d.dtype), direct, implicit)


@functools.lru_cache(maxsize=64)
def _amsgrad(learning_rate: float, betas: tuple[methods.Momentum, methods.Momentum]) -> optax.GradientTransformation:
    return optax.amsgrad(learning_rate, *betas)


@methods.checked
def i_bau(
    network: Network,
    data: Data,
    key: jax.Array,
    *,
    rounds: methods.Steps = 5,
    search_epochs: methods.Count = 1,
    search_rate: methods.NonNegative = 10.0,
    penalty: methods.NonNegative = 1e-3,
    clip: bool = True,
    share: methods.Share = 0.01,
    iterations: methods.Steps = 5,
    inner_rate: methods.NonNegative = 0.1,
    inner: Inner = "batch",
    batch_size: methods.Count = 256,
    learning_rate: methods.NonNegative = 1e-4,
    betas: tuple[methods.Momentum, methods.Momentum] = (0.9, 0.999),
    augment: training.Augmentation = None,
) -> tuple[Network, DefenseReport]:
    """Alternates between a perturbation that fools the model and weights that it does not fool.

    Each round searches for a perturbation, from zero, in a pass over the clean images, and unlearns it in another. The
    model stays in evaluation mode throughout. The defaults are BackdoorBench's for CIFAR-10 except for the
    augmentation, there `CropFlip()`, and for two traits of the reference code: it lets images leave [0, 1],
    `clip=False`, and takes the inner loss of the first batch throughout, `inner="first"`. It perturbs no image of a
    batch of less than a hundred; here it is one at least. Perturbations are in units of pixels in [0, 1], as the
    authors' are; BackdoorBench's are in those of normalised images. AMSGrad takes the largest bias-corrected second
    moment here, torch's the largest one before the correction.

    Args:
        network: the suspect.
        data: needs `clean`.
        key: draws batches and augmentation.
        rounds: of the game; 0 changes nothing.
        search_epochs: passes over the images that search for a perturbation.
        search_rate: of its SGD.
        penalty: on its squared norm.
        clip: whether perturbed images are kept in [0, 1].
        share: of a batch that bears the perturbation while it is unlearned.
        iterations: of the fixed point; 0 takes the perturbation as given.
        inner_rate: length of the inner step that the fixed point is of.
        inner: see `Hypergradient`.
        batch_size: images per step, at most all clean images.
        learning_rate: of Adam with AMSGrad, for the weights.
        betas: of Adam.
        augment: of the images, such as `crop` for digits and signs, `crop-flip` for photographs.

    Returns:
        The repaired network, and a report with the curves `search_loss` and `loss`, inner and outer loss, `[steps]`,
        and `norm`, that of the perturbation, `[rounds]`.

    Raises:
        DefenseError: there are no clean images, or a loss became NaN or infinite.
    """
    clean = require_clean(data, "i-bau")
    batch_size = min(batch_size, len(clean.images))
    epoch_steps = training.steps_per_epoch(len(clean.images), batch_size)
    game = Game(network.apply_fn, penalty, clip, share)
    search = training.GuidedStep(
        Search(game), training.sgd(search_rate, momentum=0.0, weight_decay=0.0), batch_size, augment
    )
    gradient_fn = Hypergradient(game, inner_rate, iterations, inner)
    unlearn = training.GuidedStep(gradient_fn, _amsgrad(learning_rate, betas), batch_size, augment)
    variables, progress = network.variables, data.progress
    images = jax.device_put(Batch(jnp.asarray(clean.images, jnp.float32), jnp.asarray(clean.labels)))
    first = Batch(images.images[:batch_size], images.labels[:batch_size])
    still: Any = jnp.zeros(images.images.shape[1:])
    # One key for all rounds of unlearning: `start` counts their steps on, so that batches go on where they ended.
    key_search, key_unlearn = jax.random.split(key)
    state = unlearn.guided(None).init(variables, images)
    searching, unlearning, norms = [np.zeros(0, np.float32)], [np.zeros(0, np.float32)], []
    for turn in range(rounds):
        count = f"round {turn + 1} of {rounds}"
        suspect = state.variables(like=variables)
        hunt, metrics = training.descend(
            Partial(search, suspect, images, jax.random.fold_in(key_search, turn)),
            search.guided(suspect).init(still, images),
            search_epochs * epoch_steps,
            progress=training.staged(progress, f"searching a perturbation, {count}"),
            trains=True,
        )
        searching.append(metrics["loss"])
        norms.append(float(jnp.linalg.norm(hunt.params.reshape(-1))))
        state, metrics = training.descend(
            Partial(unlearn, Found(hunt.params, first), images, key_unlearn),
            state,
            epoch_steps,
            start=turn * epoch_steps,
            progress=training.staged(progress, f"unlearning it, {count}"),
            trains=True,
        )
        unlearning.append(metrics["loss"])
    curves = {"search_loss": np.concatenate(searching), "loss": np.concatenate(unlearning), "norm": np.array(norms)}
    for name, curve in curves.items():
        training.require_finite_loss(curve, f"{name} of i-bau", "lower search_rate or learning_rate", DefenseError)
    notes = one_batch(clean, batch_size, rounds, "BackdoorBench takes 50")
    return network.with_variables(state.variables(like=variables)), DefenseReport(notes=notes, curves=curves)
