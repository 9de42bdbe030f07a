"""Samples shared out among threads and devices are those of the kernel, to the bit whatever their number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard.kernels import shapley
from jaxguard.pruning.shapley_estimation import permutation_sampling

KEY = jax.random.key(0)
PLAYERS = 6
WORTH = jnp.asarray(np.random.default_rng(0).normal(size=(PLAYERS, 6)), jnp.float32)


def GAME(gates):
    return jax.nn.sigmoid(jnp.tanh(gates @ WORTH).sum(-1))


@pytest.mark.parametrize("options", [{}, {"pairing": "rotations", "threshold": 0.5}, {"tolerance": 0.05}])
def test_the_estimate_is_the_kernels(options):
    ours = permutation_sampling(GAME, PLAYERS, KEY, samples=200, workers=2, **options)
    theirs = shapley.permutation_sampling(GAME, PLAYERS, KEY, samples=200, **options)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_workers_draw_the_same_samples_and_stop_at_the_same_one():
    game = GAME
    for options in ({"samples": 7}, {"samples": 500, "tolerance": 0.05}):
        alone, together = (permutation_sampling(game, PLAYERS, KEY, workers=workers, **options) for workers in (1, 5))
        assert alone.converged == together.converged == ("tolerance" in options)
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_failing_game_ends_the_call():
    def game(gates):
        def fail(gates):
            if not gates.all():
                raise RuntimeError("no value")

        jax.debug.callback(fail, gates)
        return gates.sum(-1)

    with pytest.raises(Exception, match="no value"):
        permutation_sampling(game, PLAYERS, KEY, samples=50, workers=2)
        jax.effects_barrier()


def test_no_worker_is_an_error():
    with pytest.raises(ValueError, match="expected workers >= 1, got 0"):
        permutation_sampling(GAME, PLAYERS, KEY, workers=0)


def test_progress_is_told_sample_by_sample_and_changes_nothing():
    game, told = GAME, []
    silent = permutation_sampling(game, PLAYERS, KEY, samples=5)
    heard = permutation_sampling(game, PLAYERS, KEY, samples=5, progress=lambda *at: told.append(at))
    assert told == [(k, 5) for k in range(1, 6)]
    for one, other in zip(silent, heard, strict=True):
        np.testing.assert_array_equal(one, other)
