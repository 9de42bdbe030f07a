"""LiteGuard: learned probes, each with its own verifier, a linear unit with a sigmoid.

    confidence_n = sigmoid(<w_n, f(x_n)> + b_n),        the score is the mean over all N

Probes and verifiers are learned together (`learned_probes`) with

    0.5 BCE(owner, 1) + 1.0 BCE(a copy, 1) + 1.5 BCE(an independent network, 0)

and one member of either pool per step. LiteGuard, ICLR 2026. Having few parameters, it works with pools of one real
network, which the authors enlarge by checkpoints from 35 % to 85 % of its training: pass those in the pools. Steps,
learning rates and the default pools are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard.fingerprints import learned_probes
from jaxguard.fingerprints.learned_probes import Arrays, Settings, Start
from jaxguard.fingerprints.pools import Source
from jaxguard.fingerprints.protocol import Fingerprint, Space, factory
from jaxguard.methods import Count, NonNegative, Positive, options_of


@dataclass(frozen=True)
class LinearVerifiers:
    """One linear unit per probe."""

    def init(self, key: jax.Array, num_probes: int, num_outputs: int) -> dict[str, jax.Array]:
        """Random weights `[N, K]`, biases 0."""
        weight = jax.random.normal(key, (num_probes, num_outputs)) / np.sqrt(num_outputs)
        return {"weight": weight, "bias": jnp.zeros(num_probes)}

    def __call__(self, weights: Arrays, outputs: jax.Array) -> jax.Array:
        """Logits `[N]` of outputs `[N, K]`."""
        return (weights["weight"] * outputs).sum(-1) + weights["bias"]


@factory
@options_of(Source)
def lite_guard(
    *,
    points: Count = 100,
    steps: Count = 500,
    probe_rate: NonNegative = 0.01,
    verifier_rate: Positive = 0.01,
    owner_weight: NonNegative = 0.5,
    positive_weight: Positive = 1.0,
    negative_weight: Positive = 1.5,
    start: Start = "data",
    space: Space = "logits",
    **pools: Any,
) -> Fingerprint:
    """Learned probes with one linear verifier each; the score is their mean confidence.

    Args:
        points: number of probes.
        steps: of Adam; each runs three networks on all probes.
        probe_rate: Adam's learning rate for pixels; 0 learns the verifiers only.
        verifier_rate: Adam's learning rate for the verifiers.
        owner_weight: of the owner's term in the loss; 0 adds the owner to the pool of copies.
        positive_weight: of the copies' term.
        negative_weight: of the independents' term.
        start: whether probes begin as images of the owner (`data`), drawn at random, or as uniform `noise`.
        space: of the outputs that verifiers get; a suspect that returns probabilities needs `probs` or `clr`.
        pools: options of `jaxguard.fingerprints.pools.Source`: the networks to learn from.

    Returns:
        The fingerprint. Making probes raises FingerprintError if the owner has too few images or lacks what the pools
        need, the pools do not fit it, or the loss is not finite.

    Raises:
        FingerprintError: a given pool is empty.
    """
    source = Source("lite_guard", **pools)
    settings = Settings(
        points, steps, probe_rate, verifier_rate, owner_weight, positive_weight, negative_weight, start, space
    )  # fmt: skip
    verifier = LinearVerifiers()
    return Fingerprint(
        make_fn=lambda owner, key, progress: learned_probes.learn(
            settings, verifier, source, owner, key, progress=progress
        ),
        signature_fn=lambda probes, outputs: learned_probes.confidences(verifier, space, probes, outputs),
        distance_fn=lambda probes, owner, suspects: suspects.mean(-1),
        stolen="high",
        sees="copies made as those of its pool are, extraction included; others as far as they resemble those.",
        blind="thefts unlike those of its pool; copies with other classes.",
    )
