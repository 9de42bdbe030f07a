"""Shapley values against exact enumeration, the axioms, and what truncation and greedy orders may cost."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard.kernels import shapley
from jaxguard.kernels.shapley import bandit, sampling

KEY = jax.random.key(0)
PAIRINGS = ("none", "antithetic", "rotations")


def exact(values_fn, players):
    """The definition: every coalition without a player, weighted by how many orders lead through it."""
    coalitions = np.array(list(itertools.product((0.0, 1.0), repeat=players)))
    value = dict(zip(map(tuple, coalitions), np.asarray(values_fn(jnp.asarray(coalitions))), strict=True))
    found = np.zeros(players)
    for coalition in coalitions:
        size = int(coalition.sum())
        for player in np.flatnonzero(coalition == 0):
            joined = coalition.copy()
            joined[player] = 1
            weight = math.factorial(size) * math.factorial(players - size - 1) / math.factorial(players)
            found[player] += weight * (value[tuple(joined)] - value[tuple(coalition)])
    return found


def network_game(players, seed):
    """Interacting players: a small random network's output, in [0, 1]."""
    rng = np.random.default_rng(seed)
    first, second = jnp.asarray(rng.normal(size=(players, 6))), jnp.asarray(rng.normal(size=6))
    return lambda gates: jax.nn.sigmoid(jnp.tanh(gates @ first) @ second)


def backdoor_game(gates):
    """Players 2 and 5 carry a value of 1, each alone does too; player 7 adds a little."""
    return jnp.maximum(gates[:, 2], gates[:, 5]) * 0.9 + 0.1 * gates[:, 7]


def glove_game(gates):
    """One left glove (player 0), two right gloves: known values 2/3, 1/6, 1/6."""
    return gates[:, 0] * jnp.maximum(gates[:, 1], gates[:, 2])


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("seed", range(3))
def test_estimates_lie_within_three_standard_errors_of_exact_values(pairing, seed):
    game = network_game(8, seed)
    found = shapley.permutation_sampling(game, 8, jax.random.key(seed), samples=200, pairing=pairing, chunk=3)
    errors = np.abs(np.asarray(found.values) - exact(game, 8)) / np.asarray(found.standard_errors)
    assert errors.max() < 3.5
    assert np.mean(errors < 2) > 0.7
    assert np.asarray(found.standard_errors).max() < 0.05


def test_standard_errors_are_the_spread_of_repeated_estimates():
    game = network_game(6, 1)
    keys = jax.random.split(KEY, 60)
    runs = [shapley.permutation_sampling(game, 6, key, samples=40, pairing="none") for key in keys]
    spread = np.std([run.values for run in runs], axis=0, ddof=1)
    told = np.mean([run.standard_errors for run in runs], axis=0)
    np.testing.assert_allclose(told, spread, rtol=0.35)


def test_the_average_over_all_orders_is_the_definition():
    game = network_game(6, 3)
    orders = jnp.array([*itertools.permutations(range(6))])
    found, evaluations = shapley.marginals(game, orders, full=game(jnp.ones((1, 6)))[0])
    assert evaluations == 6 * math.factorial(6)
    np.testing.assert_allclose(found.mean(axis=0), exact(game, 6), atol=1e-5)


def test_known_values_of_the_glove_game():
    found = shapley.permutation_sampling(glove_game, 3, KEY, samples=3000)
    np.testing.assert_allclose(found.values, [2 / 3, 1 / 6, 1 / 6], atol=0.02)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_additive_games_are_exact_after_one_sample(pairing):
    worth = jnp.asarray(np.random.default_rng(0).normal(size=30), jnp.float32)
    found = shapley.permutation_sampling(lambda gates: gates @ worth, 30, KEY, samples=2, pairing=pairing)
    np.testing.assert_allclose(found.values, worth, atol=2e-6)
    np.testing.assert_allclose(found.standard_errors, 0, atol=2e-6)


@pytest.mark.parametrize("chunk", [1, 4, 7, 32])
def test_every_pass_shares_out_the_whole_value(chunk):
    game = network_game(7, 2)
    full, empty = np.asarray(game(jnp.stack([jnp.ones(7), jnp.zeros(7)])))
    for seed in range(5):
        order = jax.random.permutation(jax.random.key(seed), 7)
        values, evaluations = shapley.marginals(game, order[None], full=full, chunk=chunk)
        assert float(values.sum()) == pytest.approx(full - empty, abs=1e-6)
        assert evaluations == 7


def test_marginals_by_hand_in_a_given_order():
    values, _ = shapley.marginals(glove_game, jnp.array([[1, 0, 2]]), full=1.0)
    np.testing.assert_array_equal(values, [[1, 0, 0]])  # the second right glove still sells; then the left one goes
    values, _ = shapley.marginals(glove_game, jnp.array([[1, 2, 0]]), full=1.0)
    np.testing.assert_array_equal(values, [[0, 0, 1]])


def test_null_and_symmetric_players():
    found = shapley.permutation_sampling(backdoor_game, 9, KEY, samples=400)
    values, errors = np.asarray(found.values), np.asarray(found.standard_errors)
    np.testing.assert_allclose(values[[0, 1, 3, 4, 6, 8]], 0, atol=1e-6)
    assert abs(values[2] - values[5]) <= 3 * np.hypot(errors[2], errors[5]) + 1e-6
    np.testing.assert_allclose(values[[2, 5, 7]], [0.45, 0.45, 0.1], atol=0.05)


def test_pairs_and_rotations_need_fewer_evaluations_for_the_same_error():
    game = network_game(10, 4)
    truth = exact(game, 10)

    def error(pairing, samples):
        keys = jax.random.split(KEY, 30)
        runs = [shapley.permutation_sampling(game, 10, key, samples=samples, pairing=pairing).values for key in keys]
        return np.sqrt(np.mean((np.asarray(runs) - truth) ** 2))

    plain, antithetic, rotations = error("none", 40), error("antithetic", 20), error("rotations", 10)
    assert antithetic < 0.8 * plain
    assert rotations < plain


def test_one_sample_has_no_error_bar():
    found = shapley.permutation_sampling(glove_game, 3, KEY, samples=1)
    assert np.isinf(found.standard_errors).all()
    assert not found.converged


def test_sampling_stops_at_the_tolerance():
    game = network_game(6, 0)
    loose = shapley.permutation_sampling(game, 6, KEY, samples=5000, tolerance=0.02)
    assert loose.converged
    assert np.asarray(loose.standard_errors).max() <= 0.02
    assert loose.counts[0] < 500
    assert loose.evaluations == 1 + 12 * loose.counts[0]
    assert not shapley.permutation_sampling(game, 6, KEY, samples=5, tolerance=1e-9).converged


# ---------------------------------------------------------------- truncation


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.6])
def test_truncation_is_biased_by_no_more_than_what_was_left(threshold):
    found = shapley.permutation_sampling(backdoor_game, 9, KEY, samples=500, threshold=threshold, chunk=1)
    error = np.abs(np.asarray(found.values) - exact(backdoor_game, 9))
    assert (error <= threshold + 3 * np.asarray(found.standard_errors) + 1e-6).all()


def test_truncation_saves_evaluations_and_leaves_later_players_with_nothing():
    order = jnp.array([[5, 2, 7, 0, 1, 3, 4, 6, 8]])
    values, evaluations = shapley.marginals(backdoor_game, order, full=1.0, threshold=0.15, chunk=2)
    np.testing.assert_allclose(values, [[0, 0, 0.9, 0, 0, 0, 0, 0, 0]], atol=1e-6)
    assert evaluations == 2
    assert shapley.marginals(backdoor_game, order, full=1.0, chunk=2)[1] == 9


@pytest.mark.parametrize("chunk", [1, 2, 5, 16])
def test_truncation_does_not_depend_on_the_chunk(chunk):
    game = network_game(7, 5)
    order = jax.random.permutation(KEY, 7)[None]
    expected = shapley.marginals(game, order, full=0.7, threshold=0.45, chunk=1)[0]
    np.testing.assert_allclose(
        shapley.marginals(game, order, full=0.7, threshold=0.45, chunk=chunk)[0], expected, atol=1e-6
    )


def test_several_orders_at_once_are_the_same_passes():
    game = network_game(7, 5)
    orders = jnp.stack([jax.random.permutation(key, 7) for key in jax.random.split(KEY, 5)])
    together, evaluations = shapley.marginals(game, orders, full=0.7, threshold=0.45, chunk=2)
    alone = [shapley.marginals(game, order[None], full=0.7, threshold=0.45, chunk=2) for order in orders]
    np.testing.assert_allclose(together, jnp.concatenate([values for values, _ in alone]), atol=1e-6)
    assert evaluations == sum(int(count) for _, count in alone)


def test_a_pass_that_ended_asks_for_nothing_new():
    """Its coalitions repeat a neighbour's, so a function that compares neighbours need not compute them."""
    asked = []

    def game(gates):
        changed = (gates[1:] != gates[:-1]).any(axis=1).sum() + 1
        jax.debug.callback(lambda count: asked.append(int(count)), changed)
        return backdoor_game(gates)

    late = jnp.array([0, 1, 3, 4, 6, 8, 7, 2, 5])
    shapley.marginals(game, jnp.stack([late[::-1], late, late[::-1]]), full=1.0, threshold=0.15, chunk=2)
    jax.effects_barrier()
    assert asked == [6, 2, 2, 2, 1]  # after the first chunk, the first and the last pass are over


# ---------------------------------------------------------------- greedy orders, bandit


def test_epsilon_greedy_keeps_uniform_passes_apart():
    game = network_game(8, 1)
    uniform, greedy = shapley.epsilon_greedy(game, 8, KEY, samples=600, epsilon=0.5)
    assert uniform.counts[0] + greedy.counts[0] == 600
    assert 250 < uniform.counts[0] < 360  # ten of the warm-up and half of the others
    errors = np.abs(np.asarray(uniform.values) - exact(game, 8)) / np.asarray(uniform.standard_errors)
    assert errors.max() < 3.5
    assert np.abs(np.asarray(greedy.values) - exact(game, 8)).max() > 0.01  # biased, and told apart


def test_greedy_passes_are_shorter_once_the_carriers_are_known():
    uniform, _ = shapley.epsilon_greedy(backdoor_game, 9, KEY, samples=50, epsilon=1.0, threshold=0.15, chunk=1)
    greedy, proposals = shapley.epsilon_greedy(backdoor_game, 9, KEY, samples=50, epsilon=0.0, threshold=0.15, chunk=1)
    assert int(greedy.evaluations) < 0.6 * int(uniform.evaluations)
    assert {*np.argsort(-np.asarray(proposals.values))[:2].tolist()} == {2, 5}


def test_greedy_orders_put_large_values_first_and_break_ties_at_random():
    values = jnp.array([0.0, 3.0, 0.0, 1.0, 0.0])
    orders = [shapley.greedy_order(key, values, epsilon=0.0)[0].tolist() for key in jax.random.split(KEY, 20)]
    assert all(order[:2] == [1, 3] for order in orders)
    assert len({tuple(order[2:]) for order in orders}) > 1
    uniform = [shapley.greedy_order(key, values, epsilon=1.0)[0].tolist() for key in jax.random.split(KEY, 300)]
    assert np.mean([order[0] == 1 for order in uniform]) == pytest.approx(0.2, abs=0.07)


def planted(players, best, seed=0):
    rng = np.random.default_rng(seed)
    worth = rng.uniform(0, 0.02, players)
    worth[list(best)] = 0.2
    return lambda gates: jnp.tanh(gates @ jnp.asarray(worth))


def test_the_bandit_finds_the_planted_players_with_fewer_evaluations():
    best = (3, 17, 29)
    game = planted(40, best)
    found = shapley.top_k(game, 40, KEY, k=3, samples=2000, value_range=0.2, chunk=8)
    assert found.converged
    assert {*np.argsort(-np.asarray(found.values))[:3].tolist()} == {*best}
    assert found.counts.min() < found.counts.max()
    assert found.evaluations < 2 * 40 * found.counts.max()


def test_the_bandit_says_when_it_could_not_decide():
    found = shapley.top_k(lambda gates: gates.mean(-1), 6, KEY, k=2, samples=5)
    assert not found.converged
    assert (found.counts == 5).all()


def test_bandit_values_are_unbiased_without_truncation():
    game = network_game(7, 3)
    found = shapley.top_k(game, 7, KEY, k=2, samples=300, value_range=100.0, chunk=4)
    errors = np.abs(np.asarray(found.values) - exact(game, 7)) / np.asarray(found.standard_errors)
    assert errors.max() < 3.5


def test_bandit_counts_players_behind_the_threshold_with_nothing():
    found = shapley.top_k(backdoor_game, 9, KEY, k=2, samples=300, threshold=0.15, chunk=2, value_range=10.0)
    assert found.values[7] == pytest.approx(0.2 / 3, abs=0.02)  # unless both carriers left before it


@pytest.mark.parametrize("k", [0, 6, 7])
def test_impossible_k(k):
    with pytest.raises(ValueError, match="expected k between"):
        shapley.top_k(lambda gates: gates.sum(-1), 6, KEY, k=k)


def test_unknown_pairing():
    with pytest.raises(ValueError, match="antithetic"):
        shapley.permutation_sampling(glove_game, 3, KEY, pairing="twins")  # type: ignore[arg-type]


def test_same_key_same_estimate():
    first, again = (shapley.permutation_sampling(glove_game, 3, KEY, samples=10) for _ in range(2))
    other = shapley.permutation_sampling(glove_game, 3, jax.random.key(1), samples=10)
    np.testing.assert_array_equal(first.values, again.values)
    assert not np.array_equal(first.values, other.values)


# ---------------------------------------------------------------- games as programs


def compiled(games, estimate_fn=shapley.permutation_sampling, **options):
    """How many programs several games take."""
    jitted = {shapley.permutation_sampling: sampling._sampled, shapley.top_k: bandit._top_k}[estimate_fn]
    jitted.clear_cache()
    for game in games:
        estimate_fn(game, 3, KEY, samples=4, **options)
    return jitted.cache_size()


def test_equal_functions_share_a_program_whatever_they_close_over():
    def game(seed):
        worth = jnp.asarray(np.random.default_rng(seed).normal(size=3), jnp.float32)
        return lambda gates: jax.nn.relu(jnp.where(gates > 0, worth, 0.1)).sum(-1) + jax.nn.softmax(gates @ worth)

    assert compiled([game(0), game(0), game(1)]) == 1
    assert compiled([game(0), game(1)], shapley.top_k, k=1) == 1
    values = [shapley.permutation_sampling(game(seed), 3, KEY, samples=4).values for seed in (0, 1)]
    for seed, found in enumerate(values):
        expected = shapley.permutation_sampling(jax.tree_util.Partial(game(seed)), 3, KEY, samples=4)
        np.testing.assert_allclose(found, expected.values, atol=1e-6)


def test_functions_that_differ_at_all_are_told_apart():
    games = [
        lambda gates: gates[:, 0] * 0.5,
        lambda gates: gates[:, 0] * 0.50000006,
        lambda gates: gates[:, 1] * 0.5,
        lambda gates: jax.nn.relu(gates[:, 0]) * 0.5,
        lambda gates: jax.nn.relu6(gates[:, 0]) * 0.5,
        lambda gates: jax.lax.map(lambda row: row[0] * 0.5, gates),
        lambda gates: jax.lax.map(lambda row: row[1] * 0.5, gates),
    ]
    assert compiled(games) == len(games)
    assert compiled([*games, *games]) == len(games)


def test_what_differs_in_shape_or_dtype_of_its_arrays_is_told_apart():
    def game(worth):
        return lambda gates: (gates[:, :2] * worth[None].astype(gates.dtype)).sum(-1)

    assert compiled([game(jnp.ones(2)), game(jnp.ones(1)), game(jnp.ones(2, jnp.bfloat16)), game(jnp.zeros(2))]) == 3


def test_an_outer_jit_is_the_only_program():
    @jax.jit
    def estimate(worth, key):
        return shapley.permutation_sampling(lambda gates: gates @ worth, 3, key, samples=4).values

    for seed in range(3):
        worth = jnp.asarray(np.random.default_rng(seed).normal(size=3), jnp.float32)
        np.testing.assert_allclose(estimate(worth, jax.random.key(seed)), worth, atol=1e-6)
    assert estimate._cache_size() == 1
