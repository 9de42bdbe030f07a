"""Running moments of independent samples, and the estimate they make."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Estimate(NamedTuple):
    """Shapley values.

    Attributes:
        values: `[N]`.
        standard_errors: `[N]`, from the spread of independent samples; infinite where there are fewer than two.
        counts: `[N]` independent samples behind each value.
        evaluations: coalitions whose value was computed.
        converged: whether the stop rule was met, rather than the budget spent.
    """

    values: jax.Array
    standard_errors: jax.Array
    counts: jax.Array
    evaluations: jax.Array
    converged: jax.Array


class Moments(NamedTuple):
    """Number of samples, mean and sum of squared deviations, each `[N]` (Welford)."""

    samples: jax.Array
    mean: jax.Array
    deviation: jax.Array

    @classmethod
    def none(cls, players: int) -> Moments:
        """No samples of `N` players."""
        return cls(jnp.zeros(players, jnp.int32), jnp.zeros(players), jnp.zeros(players))

    def add(self, sample: jax.Array, active: jax.Array) -> Moments:
        """One more sample `[N]` of the active players, `[N]` or `[]` bool."""
        # Welford's update: subtracting the old mean from one factor and the new one from the other keeps float32 exact
        # enough where a sum of squares would cancel.
        samples = self.samples + jnp.asarray(active, jnp.int32)
        shift = jnp.where(active, sample - self.mean, 0)
        mean = self.mean + shift / _at_least_one(samples)
        return Moments(samples, mean, self.deviation + jnp.where(active, shift * (sample - mean), 0))

    def variance(self) -> jax.Array:
        """`[N]` of one sample; infinite where there are fewer than two."""
        return jnp.where(self.samples > 1, self.deviation / _at_least_one(self.samples - 1), jnp.inf)

    def standard_errors(self) -> jax.Array:
        """`[N]` of the means."""
        return jnp.sqrt(self.variance() / _at_least_one(self.samples))

    def estimate(self, evaluations: jax.Array, converged: jax.Array) -> Estimate:
        """What is known so far."""
        return Estimate(self.mean, self.standard_errors(), self.samples, evaluations, converged)


def _at_least_one(samples: jax.Array) -> jax.Array:
    """A divisor, float32."""
    return jnp.maximum(samples, 1).astype(jnp.float32)
