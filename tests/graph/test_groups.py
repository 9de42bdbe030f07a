"""Permuting any permutable group leaves the logits unchanged, and no group is missed."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from flax import linen as nn

from jaxguard import surgery
from jaxguard.errors import GraphError
from jaxguard.graph import channel_graph
from jaxguard.graph.program import leaf_paths


@pytest.mark.parametrize("name", zoo.ZOO)
def test_permuting_every_group_leaves_the_logits_unchanged(name):
    (apply_fn, variables, images), graph = zoo.case(name), zoo.graph(name)
    rng = np.random.default_rng(0)
    permuted = variables
    permutable = [group for group in graph.groups if group.permutable]
    assert permutable
    for group in permutable:
        permuted = surgery.permute(permuted, group, np.roll(rng.permutation(group.size), 1))
    run = jax.jit(apply_fn)
    expected, got = (np.asarray(run(v, images)) for v in (variables, permuted))
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), variables, permuted)
    assert sum(jax.tree.leaves(changed)) >= len(permutable)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_permuting_part_of_a_group_changes_the_logits(name):
    """Every member belongs: leaving one out breaks the model."""
    (apply_fn, variables, images), graph = zoo.case(name), zoo.graph(name)
    run = jax.jit(apply_fn)
    expected = np.asarray(run(variables, images))
    group = max((g for g in graph.groups if g.permutable), key=lambda g: len(g.members))
    kernels = [k for k, member in enumerate(group.members) if "kernel" in member.path or "w" in member.path]
    for left_out in kernels[:3] or [0]:
        members = tuple(member for k, member in enumerate(group.members) if k != left_out)
        broken = type(group)(group.name, group.size, members, None)
        got = run(surgery.permute(variables, broken, np.roll(np.arange(group.size), 1)), images)
        assert np.abs(np.asarray(got) - expected).max() > 1e-5 * np.abs(expected).max()


class TinyConv(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(5, (1, 1))(x)))
        x = nn.tanh(x + nn.Conv(5, (1, 1), use_bias=False)(x))
        return nn.Dense(2)(x.reshape(x.shape[0], -1))


class TinyAttention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(5, use_bias=False)(x))
        x = nn.MultiHeadDotProductAttention(3, qkv_features=12, out_features=7, use_bias=False)(x)
        return nn.Dense(2)(nn.LayerNorm()(x).mean(1))


class TinyGroupNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.GroupNorm(3, use_bias=False)(nn.Conv(12, (1, 1), use_bias=False)(x))
        return nn.Dense(2)(nn.relu(x).mean((1, 2)))


@pytest.mark.parametrize(
    ("module", "shape", "sizes"),
    [(TinyConv(), (2, 2, 3), (5,)), (TinyAttention(), (6, 8), (3, 4, 5, 7)), (TinyGroupNorm(), (2, 2, 2), (3, 4))],
)
def test_a_brute_force_search_finds_the_same_groups(module, shape, sizes):
    """All subsets of all `(leaf, axis, stride)` are tried; the minimal ones that may be permuted are the groups."""
    apply_fn, variables, images = zoo.linen(module, *shape)
    graph = channel_graph(apply_fn, variables, images)
    logits = jax.jit(apply_fn)
    expected = np.asarray(logits(variables, images))
    leaves, structure = jax.tree.flatten(variables)
    paths = leaf_paths(variables)

    def invariant(places, size):
        order = np.roll(np.arange(size), 1)
        order[:2] = order[1::-1]
        edited = list(leaves)
        for leaf, axis, positions in places:
            index = np.arange(edited[leaf].shape[axis])
            index[positions] = positions[:, order]
            edited[leaf] = jnp.take(edited[leaf], index, axis=axis)
        got = np.asarray(logits(jax.tree.unflatten(structure, edited), images))
        return np.allclose(got, expected, atol=1e-5 * np.abs(expected).max())

    for size in sizes:
        places = []
        for k, leaf in enumerate(leaves):
            for axis, length in enumerate(leaf.shape):
                for stride in range(1, length // size + 1):
                    if length % (size * stride) == 0:
                        grid = np.arange(length).reshape(-1, size, stride)
                        places.append((k, axis, np.moveaxis(grid, 1, -1).reshape(-1, size)))
        minimal: list[set[int]] = []
        for count in range(1, len(places) + 1):
            for subset in combinations(range(len(places)), count):
                if not any(known <= set(subset) for known in minimal) and invariant([places[k] for k in subset], size):
                    minimal.append(set(subset))
        searched = {
            frozenset((paths[places[k][0]], places[k][1], places[k][2].tobytes()) for k in subset) for subset in minimal
        }
        derived = {
            frozenset((m.path, m.axis, m.positions.tobytes()) for m in group.members)
            for group in graph.groups
            if group.permutable and group.size == size
        }
        assert derived == searched
        assert derived


def test_group_norm_permutes_within_and_among_its_groups_only():
    apply_fn, variables, images = zoo.linen(TinyGroupNorm(), 2, 2, 2)
    groups = [group for group in channel_graph(apply_fn, variables, images).groups if group.permutable]
    assert sorted((group.size, group.members[0].stride) for group in groups) == [(3, 4), (4, 1)]


def test_inputs_and_outputs_are_frozen_and_say_why():
    apply_fn, variables, images = zoo.case("cnn")
    frozen = {group.name: group.frozen for group in channel_graph(apply_fn, variables, images).groups if group.frozen}
    assert frozen == {"params/conv1/kernel": "input", "linear": "output"}


def test_a_flattened_channel_axis_has_a_stride():
    apply_fn, variables, images = zoo.case("nnx")
    (group,) = [g for g in channel_graph(apply_fn, variables, images).groups if g.permutable]
    (dense,) = [m for m in group.members if m.path.startswith("dense/kernel")]
    assert dense.positions.shape == (16, 8)


def test_permuting_a_frozen_group_or_with_no_permutation_is_refused():
    apply_fn, variables, images = zoo.case("mlp")
    groups = channel_graph(apply_fn, variables, images).groups
    frozen = next(group for group in groups if not group.permutable)
    free = next(group for group in groups if group.permutable)
    with pytest.raises(GraphError, match="order matters"):
        surgery.permute(variables, frozen, np.arange(frozen.size))
    with pytest.raises(GraphError, match="expected a permutation"):
        surgery.permute(variables, free, np.zeros(free.size, int))
