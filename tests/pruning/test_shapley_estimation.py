"""Samples shared out among threads and devices are those of the kernel, to the bit whatever their number."""

import os
import subprocess
import sys

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


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jaxguard.pruning.shapley_estimation import permutation_sampling
worth = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
game = jax.tree_util.Partial(lambda worth, gates: jnp.tanh(gates @ worth).sum(-1), worth)
one = permutation_sampling(game, 6, jax.random.key(0), samples=24)
for workers in (1, 3):
    many = permutation_sampling(
        game, 6, jax.random.key(0), samples=24, devices=jax.devices(), workers=workers
    )
    for ours, theirs in zip(one, many, strict=True):
        np.testing.assert_array_equal(ours, theirs)
print(len(jax.devices()))
"""


def test_samples_shared_out_among_eight_devices_are_the_same():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "8\n", done.stderr


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
