"""ANP: channels whose small perturbation makes a model wrong carry a backdoor, and are pruned.

Wu and Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from annotated_types import Interval

from jaxguard import methods, training
from jaxguard.defenses.protocol import Data, DefenseReport, require_clean, require_training
from jaxguard.pruning.gate_threshold import prune
from jaxguard.pruning.holdout import hold_out
from jaxguard.pruning.learned_gates import (
    BatchStatistics,
    Form,
    GateGradient,
    Layers,
    Statistics,
    gating,
    learn,
    ungated,
)
from jaxguard.scores.channel_bounds import require_finite
from jaxguard.types import Batch, Network, Variables

Noise = tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]
"""`delta` of the weights and `xi` of the biases, `[C]` per layer."""


@dataclass(frozen=True)
class AdversarialGateGradient:
    """The gradient with respect to the gates, a part of it under the worst noise that was found.

        max over |delta|, |xi| <= eps of L(m (1 + delta) w, m (1 + xi) b)
        min over m of alpha L(m w, m b) + (1 - alpha) L(m (1 + delta) w, m (1 + xi) b)

    The noise is relative to a channel's own weight and bias, and a closed gate shuts it out. In the form `weight` of
    the paper and its code the perturbed model is `(m + delta) w, (1 + xi) b`: noise passes closed gates.

    Attributes:
        plain: the gradient without noise.
        alpha: weight of the loss without noise, in [0, 1].
        eps: bound of the noise, >= 0.
        ascent_steps: of the noise, by signs, `eps / ascent_steps` each, from a uniform draw.
        project: whether the noise stays within its bound; the reference code's draw and ascent add up to twice that.
    """

    plain: GateGradient
    alpha: float
    eps: float
    ascent_steps: int
    project: bool

    def __call__(self, gates: Any, state: Any, batch: Batch) -> tuple[dict[str, jax.Array], Any, Any]:
        """A `training.GradientFn` of the gates.

        Its state is `model`, the variables, and `draw`, uint32 `[2]`: a seed and the number of draws so far. It records
        `loss`, without noise, and `perturbed_loss`.
        """
        # The carry holds numbers only, so the key is made of a seed and a count of the steps.
        seed, count = state["draw"]
        noise = self.perturb(gates, state["model"], batch, jax.random.fold_in(jax.random.key(seed), count))

        def objective(gates: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            clean = self.plain.loss(gates, state["model"], batch)
            perturbed = self.plain.loss(gates, state["model"], batch, noise)
            mixture = self.alpha * clean + (1 - self.alpha) * perturbed
            return mixture, {"loss": clean, "perturbed_loss": perturbed}

        gradient, metrics = jax.grad(objective, has_aux=True)(gates)
        return metrics, {**state, "draw": state["draw"] + jnp.array([0, 1], jnp.uint32)}, gradient

    def perturb(self, gates: Any, model: Variables, batch: Batch, key: jax.Array) -> Noise:
        """Climbs the loss.

        Args:
            gates: `[C]` per layer.
            model: the variables.
            batch: images and labels.
            key: draws where to start.

        Returns:
            The noise.
        """
        # Noise of weights and of biases, each shaped as the gates.
        leaves, structure = jax.tree.flatten((gates, gates))
        keys = jax.random.split(key, len(leaves))
        drawn = [jax.random.uniform(k, leaf.shape, leaf.dtype, -1, 1) for k, leaf in zip(keys, leaves, strict=True)]
        noise = jax.tree.unflatten(structure, [self.eps * one for one in drawn])
        for _ in range(self.ascent_steps):
            slope = jax.grad(self.plain.loss, argnums=3)(gates, model, batch, noise)
            # A signed step, as in FGSM: all channels move as far, however small their gradients are.
            noise = jax.tree.map(lambda n, g: n + self.eps / self.ascent_steps * jnp.sign(g), noise, slope)
            if self.project:
                noise = jax.tree.map(lambda n: jnp.clip(n, -self.eps, self.eps), noise)
        return noise


@methods.checked
def anp(
    network: Network,
    data: Data,
    key: jax.Array,
    *,
    eps: methods.NonNegative = 0.4,
    ascent_steps: methods.Steps = 1,
    alpha: methods.Share = 0.2,
    steps: methods.Steps = 2000,
    batch_size: methods.Count = 256,
    learning_rate: methods.NonNegative = 0.01,
    momentum: methods.Momentum = 0.9,
    threshold: methods.Share | None = None,
    max_drop: methods.Share = 0.1,
    holdout: Annotated[float, Interval(gt=0, lt=1)] = 0.2,
    layers: Layers = "all",
    form: Form = "channel",
    statistics: Statistics = "batch",
    project: bool = True,
    augment: training.Augmentation = None,
) -> tuple[Network, DefenseReport]:
    """Learns gates that keep the model right under adversarial noise on its channels, and cuts those that close.

    The defaults are BackdoorBench's for CIFAR-10. `layers="norms", form="weight", project=False` gives its code, except
    for the threshold: it takes the one of the lowest test ASR among those that keep 90 % of the test accuracy. Here it
    is chosen on held-out clean images, by a rule of ours; see `gate_threshold.choose`.

    Args:
        network: the suspect.
        data: needs `clean`.
        key: draws held-out images, batches, noise and augmentation.
        eps: bound of the noise, relative to a channel's weight and bias.
        ascent_steps: of the noise per step.
        alpha: weight of the loss without noise.
        steps: of the gates; 0 leaves them open.
        batch_size: images per step, at most all of them.
        learning_rate: of the gates.
        momentum: of SGD.
        threshold: gates up to it are cut; chosen by default.
        max_drop: most relative loss of held-out accuracy.
        holdout: share of the clean images to choose the threshold on; none if it is given.
        layers: `all` that CLP scores, or those with BatchNorm, `norms`.
        form: `channel` gates weight and bias, `weight` leaves the bias.
        statistics: BatchNorm's while gates are learned: the `batch`'s, which cancel the common part of the noise and
            for which `eps` is made, or `running`, which needs a much smaller one.
        project: whether the noise stays within `eps`.
        augment: of the images, such as `crop` for digits and signs, `crop-flip` for photographs.

    Returns:
        The repaired network, and a report with `1 - gate` and the cut channels of every layer, the curves `loss` and
        `perturbed_loss`, `[steps]`, and where the threshold was chosen `accuracy_by_threshold`.

    Raises:
        DefenseError: clean images or a training mode are missing, or the loss is not finite.
        UnscorableError: no layer can be gated, or a parameter is not finite.
        DataError: a clean label that the model has no class for.
    """
    clean, variables = require_clean(data, "anp"), network.variables
    logits_fn = network.apply_fn if statistics == "running" else BatchStatistics(require_training(network, "anp"))
    where = gating(network.graph, layers, form)
    require_finite(variables)
    key_held, key_learn, key_noise = jax.random.split(key, 3)
    learned, held = (clean, clean) if threshold is not None else hold_out(clean, holdout, key_held, "anp")
    draw = jnp.stack([jax.random.bits(key_noise, dtype=jnp.uint32), jnp.uint32(0)])
    gates, curves = learn(
        AdversarialGateGradient(GateGradient(where, logits_fn), alpha, eps, ascent_steps, project),
        where.ones(),
        {"model": variables, "draw": draw},
        learned,
        key_learn,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        augment=augment,
        progress=data.progress,
    )
    pruned = prune(where, network, gates, threshold, held=held, max_drop=max_drop)
    return network.with_variables(pruned.variables), DefenseReport(
        pruned.layers,
        (*pruned.notes, *ungated(where.graph)),
        {**curves, **pruned.curves},
        chosen={} if threshold is not None else {"threshold": pruned.threshold},
    )
