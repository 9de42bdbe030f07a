"""Coalitions evaluated together equal the gated model one by one, for every kind of model, and compute no more than
differs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import ZOO, case, graph

from jaxguard import execution
from jaxguard.errors import GraphError
from jaxguard.graph import Coalitions, channel_graph, coalitions


def removals(players, seed=0, passes=2, length=4):
    """Gates as players leave in random orders, as a Shapley estimate asks for them."""
    rng = np.random.default_rng(seed)
    gates = np.ones((passes, length, players), np.float32)
    for one in gates:
        for step, player in enumerate(rng.permutation(players)[:length]):
            one[step:, player] = 0
    return jnp.asarray(gates.reshape(-1, players))


def one_by_one(game, variables, images, gates):
    names, run = [producer.name for producer in game.producers], jax.jit(game.graph.run)
    return np.stack(
        [
            run(
                variables,
                images,
                dict(zip(names, game.split(jnp.asarray(row)), strict=True)),
            )
            for row in gates
        ]
    )


@functools.cache
def gated(name):
    """Graph, variables, images, gates, and the logits with them."""
    _, variables, images = case(name)
    game = Coalitions(graph(name))
    gates = removals(game.players)
    return game.graph, variables, jnp.asarray(images), gates, one_by_one(game, variables, images, gates)


@pytest.mark.parametrize(
    ("name", "fold"), [*((name, None) for name in ZOO), *((name, 3) for name in ("cnn", "vit", "scanned_layers"))]
)
def test_equals_the_gated_model_one_by_one(name, fold):
    whole, variables, images, gates, expected = gated(name)
    game = Coalitions(whole, fold=fold)
    found = jax.jit(game.logits)(variables, game.start(variables, images), gates)
    np.testing.assert_allclose(found, expected, atol=2e-5 * max(1, np.abs(expected).max()))
    assert not np.allclose(found[0], found[-1])


def mlp_case(widths=(4, 5, 6), seed=0):
    rng = np.random.default_rng(seed)
    shapes = list(zip((3, *widths), (*widths, 2), strict=True))
    variables = {f"w{k}": jnp.asarray(rng.normal(size=shape), jnp.float32) for k, shape in enumerate(shapes)}

    def apply_fn(v, x):
        for k in range(len(widths)):
            x = jax.nn.relu(x @ v[f"w{k}"])
        return x @ v[f"w{len(widths)}"]

    images = jnp.asarray(rng.normal(size=(7, 3)), jnp.float32)
    return Coalitions(channel_graph(apply_fn, variables, images)), variables, images


@pytest.mark.parametrize("fold", [1, 2, 5, (1, 4, 16)])
def test_any_stack_of_gates_in_any_order_and_fold(fold):
    game, variables, images = mlp_case()
    game = Coalitions(game.graph, fold=fold)
    gates = jnp.asarray(np.random.default_rng(3).integers(0, 2, (11, game.players)), jnp.float32)
    gates = gates.at[4].set(gates[3])
    found = game.logits(variables, game.start(variables, images), gates)
    np.testing.assert_allclose(found, one_by_one(game, variables, images, gates), atol=1e-5)
    np.testing.assert_array_equal(found[4], found[3])


def test_folds_leave_most_of_the_work_useful_and_fit_the_memory(monkeypatch):
    game, variables, images = mlp_case()
    assert game.folds(24, images) == (1, 1, 1)  # on CPU
    monkeypatch.setattr(execution, "coalitions_abreast", lambda: 1000)
    game = Coalitions(game.graph)
    # Of 24 removals of 15 players, the first layer of four expects 1 + 23 * 4 / 15 = 7.1 versions, the last one 24.
    assert game.folds(24, images) == (4, 8, 8)
    assert game.folds(1, images) == (1, 1, 1)
    gates = removals(game.players, passes=2, length=12)
    found = game.logits(variables, game.start(variables, images), gates)
    np.testing.assert_allclose(found, one_by_one(game, variables, images, gates), atol=1e-5)
    # Behind its gate each segment makes a ReLU and the next product, of 4 + 5, 5 + 6 and 6 + 2 numbers an image.
    monkeypatch.setattr(execution, "search_bytes", lambda: 3 * 11 * 7 * 4)
    assert Coalitions(game.graph).folds(24, images) == (2, 2, 4)


def test_gates_need_not_be_zero_or_one():
    game, variables, images = mlp_case()
    gates = jnp.asarray(np.random.default_rng(3).uniform(size=(4, game.players)), jnp.float32)
    found = game.logits(variables, game.start(variables, images), gates)
    np.testing.assert_allclose(found, one_by_one(game, variables, images, gates), atol=1e-5)


def test_coalitions_with_a_common_beginning_are_one_version():
    game, *_ = mlp_case()
    gates = np.ones((6, game.players), np.float32)
    gates[2:, 14] = 0  # a player of the last layer leaves
    gates[4:, 5] = 0  # then one of the second
    first, second, third = coalitions._versions(game.split(jnp.asarray(gates)))
    assert [int(versions.total) for versions in (first, second, third)] == [1, 2, 3]
    assert second.of.tolist() == [0, 0, 0, 0, 1, 1]
    assert third.of.tolist() == [0, 0, 1, 1, 2, 2]
    assert third.first.tolist() == [0, 2, 4, 5, 5, 5]


def test_some_layers_alone_can_play_and_share_a_longer_prefix():
    game, variables, images = mlp_case()
    late = Coalitions(game.graph, ["w2"])
    assert late.players == 6
    gates = removals(6)
    found = late.logits(variables, late.start(variables, images), gates)
    np.testing.assert_allclose(found, one_by_one(late, variables, images, gates), atol=1e-5)
    head = game.start(variables, images)
    assert {array.shape for array in head.live.values()} == {(7, 4)}
    assert {array.shape for array in late.start(variables, images).live.values()} == {(7, 6)}


def test_players_have_names():
    game, *_ = mlp_case()
    assert [game.name(player) for player in (0, 3, 4, 14)] == ["w0[0]", "w0[3]", "w1[0]", "w2[5]"]
    assert repr(game) == "Coalitions(15 players in 3 producers)"


def test_compiles_once_for_all_gates():
    game, variables, images = mlp_case()
    start, traces = game.start(variables, images), []

    @jax.jit
    def logits(variables, start, gates):
        traces.append(gates.shape)
        return game.logits(variables, start, gates)

    for seed in range(3):
        logits(variables, start, removals(game.players, seed))
    assert len(traces) == 1


def test_bad_input():
    game, variables, images = mlp_case()
    with pytest.raises(GraphError, match="w3, cannot"):
        Coalitions(game.graph, ["w3"])
    with pytest.raises(GraphError, match="expected the name of a producer, got 'w9'"):
        Coalitions(game.graph, ["w9"])
    with pytest.raises(GraphError, match=r"shape \[B, 15\], got \(2, 14\)"):
        game.logits(variables, game.start(variables, images), jnp.ones((2, 14)))
    with pytest.raises(GraphError, match="fold >= 1 for each of 3 producers"):
        Coalitions(game.graph, fold=(1, 2))
