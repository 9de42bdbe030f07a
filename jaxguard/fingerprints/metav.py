"""MetaV: learned probes and one verifier, a small network that takes the outputs on all probes at once.

    confidence = sigmoid(w2 . relu(W1 concat(f(x_1), ..., f(x_N)) + b1) + b2)

Probes and verifier are learned together (`learned_probes`) to give 1 for the owner and its copies and 0 for independent
networks. Pan, Yan, Zhang, Yang: MetaV: A Meta-Verifier Approach to Task-Agnostic Model Fingerprinting, KDD 2022. Its
verifier has `N K` weights per hidden unit, too many for small pools: see `lite_guard`. Hidden units, steps, learning
rates and the default pools are ours.
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
class JointVerifier:
    """A network of one hidden layer.

    Attributes:
        hidden: number of its units.
    """

    hidden: int

    def init(self, key: jax.Array, num_probes: int, num_outputs: int) -> dict[str, jax.Array]:
        """Random weights `[N K, hidden]` and `[hidden, 1]`, biases 0."""
        key_first, key_last = jax.random.split(key)
        inputs = num_probes * num_outputs
        return {
            "weight1": jax.random.normal(key_first, (inputs, self.hidden)) * np.sqrt(2 / inputs),
            "bias1": jnp.zeros(self.hidden),
            "weight2": jax.random.normal(key_last, (self.hidden, 1)) / np.sqrt(self.hidden),
            "bias2": jnp.zeros(1),
        }

    def __call__(self, weights: Arrays, outputs: jax.Array) -> jax.Array:
        """The logit `[1]` of outputs `[N, K]`."""
        hidden = jax.nn.relu(outputs.reshape(-1) @ weights["weight1"] + weights["bias1"])
        return hidden @ weights["weight2"] + weights["bias2"]


@factory
@options_of(Source)
def metav(
    *,
    hidden: Count = 64,
    points: Count = 100,
    steps: Count = 500,
    probe_rate: NonNegative = 0.01,
    verifier_rate: Positive = 0.001,
    start: Start = "data",
    space: Space = "logits",
    **pools: Any,
) -> Fingerprint:
    """Learned probes with one verifier for all; the score is its confidence.

    Args:
        hidden: units of the verifier.
        points: number of probes.
        steps: of Adam; each runs one copy, or the owner, and one independent network on all probes.
        probe_rate: Adam's learning rate for pixels; 0 learns the verifier only.
        verifier_rate: Adam's learning rate for the verifier.
        start: see `lite_guard`.
        space: of the outputs that the verifier gets; see `lite_guard`.
        pools: options of `jaxguard.fingerprints.pools.Source`: the networks to learn from.

    Returns:
        The fingerprint. Making probes raises FingerprintError if the owner has too few images or lacks what the pools
        need, the pools do not fit it, or the loss is not finite.

    Raises:
        FingerprintError: a given pool is empty.
    """
    source = Source("metav", **pools)
    settings = Settings(points, steps, probe_rate, verifier_rate, 0.0, 1.0, 1.0, start, space)
    verifier = JointVerifier(hidden)
    return Fingerprint(
        make_fn=lambda owner, key, progress: learned_probes.learn(
            settings, verifier, source, owner, key, progress=progress
        ),
        signature_fn=lambda probes, outputs: learned_probes.confidences(verifier, space, probes, outputs),
        distance_fn=lambda probes, owner, suspects: suspects.mean(-1),
        stolen="high",
        sees="copies made as those of its pool are, extraction included, if the pools are large.",
        blind="thefts unlike those of its pool; copies with other classes.",
    )
