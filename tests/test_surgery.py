import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxguard import surgery
from jaxguard.errors import GraphError
from jaxguard.graph import Group, LeafView, Member
from jaxguard.repairs import relative_change

FAMILIES = ["cnn", "wideresnet", "vit", "densenet", "nnx", "scanned_layers"]


def of(name):
    _, variables, _ = zoo.case(name)
    return variables, zoo.graph(name)


def view(path, shape, axes, **index):
    """Channels over `axes` of a leaf of `shape`; `index` maps `axis<k>` to a run `(start, stop)`."""
    slices = [slice(0, size) for size in shape]
    for axis, (start, stop) in index.items():
        slices[int(axis.removeprefix("axis"))] = slice(start, stop)
    return LeafView(path, tuple(slices), axes, tuple(slices[k].stop - slices[k].start for k in axes))


# ---------------------------------------------------------------- permute


@pytest.mark.parametrize("name", FAMILIES)
def test_a_permutation_and_its_inverse_are_the_identity_and_touch_their_group_only(name):
    variables, graph = of(name)
    rng = np.random.default_rng(0)
    for group in (group for group in graph.groups if group.permutable):
        order = np.roll(rng.permutation(group.size), 1)
        permuted = surgery.permute(variables, group, order)
        assert relative_change(variables, permuted).keys() <= {member.path for member in group.members}
        back = surgery.permute(permuted, group, np.argsort(order))
        jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_new_channel_c_is_old_channel_permutation_c_at_every_repeat():
    group = Group(
        "g", 3, (Member("w", 1, np.array([[0, 1, 2], [3, 4, 5]])), Member("b", 0, np.array([[2, 0, 1]]))), None
    )
    variables = {"w": jnp.arange(6.0)[None], "b": jnp.array([10.0, 11.0, 12.0])}
    permuted = surgery.permute(variables, group, [2, 0, 1])
    assert permuted["w"].tolist() == [[2, 0, 1, 5, 3, 4]]
    # channels 0, 1, 2 lie at places 2, 0, 1 of b: 12, 10, 11 become 11, 12, 10
    assert [permuted["b"].tolist()[place] for place in (2, 0, 1)] == [11.0, 12.0, 10.0]


def test_permutations_compose():
    variables, graph = of("cnn")
    group = next(group for group in graph.groups if group.permutable)
    first, second = (np.random.default_rng(seed).permutation(group.size) for seed in (1, 2))
    twice = surgery.permute(surgery.permute(variables, group, first), group, second)
    jax.tree.map(np.testing.assert_array_equal, twice, surgery.permute(variables, group, first[second]))


@pytest.mark.parametrize(
    "permutation", [[0, 1], [0, 1, 2, 2], [0, 1, 2, 4], [-1, 0, 1, 2], [[0, 1, 2, 3]], [0.5, 1, 2, 3]]
)
def test_what_is_no_permutation_is_refused(permutation):
    group = Group("hidden", 4, (Member("w", 0, np.arange(4)[None]),), None)
    with pytest.raises(GraphError, match="expected a permutation of the 4 channels of hidden"):
        surgery.permute({"w": jnp.arange(4.0)}, group, permutation)


def test_a_group_whose_order_matters_is_refused():
    group = Group("logits", 2, (Member("w", 0, np.arange(2)[None]),), "output")
    with pytest.raises(GraphError, match="logits, whose order matters: output"):
        surgery.permute({"w": jnp.arange(2.0)}, group, [1, 0])


# ---------------------------------------------------------------- edit


def test_edit_hands_on_every_other_leaf_as_it_is():
    variables, _ = of("cnn")
    edited = surgery.edit(variables, {"params/bn2/bias": lambda leaf: leaf + 1})
    assert relative_change(variables, edited).keys() == {"params/bn2/bias"}
    untouched = [a is b for a, b in zip(jax.tree.leaves(edited), jax.tree.leaves(variables), strict=True)]
    assert untouched.count(False) == 1
    assert jax.tree.structure(edited) == jax.tree.structure(variables)


def test_edit_of_an_unknown_leaf_is_refused():
    with pytest.raises(GraphError, match=r"expected leaves \['b', 'c'\] among the variables, got \['a'\]"):
        surgery.edit({"a": jnp.ones(2)}, {"c": jnp.zeros_like, "b": jnp.zeros_like, "a": jnp.zeros_like})


# ---------------------------------------------------------------- zero and read


@pytest.mark.parametrize(
    ("shape", "axes", "index"),
    [
        ((4,), (0,), {}),
        ((3, 3, 2, 4), (3,), {}),
        ((6, 2, 2), (1, 2), {}),
        ((6, 2, 2), (2, 1), {}),
        ((3, 5, 4), (2,), {"axis0": (1, 2)}),
        ((3, 2, 5, 2), (3, 1), {"axis0": (2, 3)}),
        ((3, 8), (1,), {"axis1": (4, 8)}),
    ],
    ids=["vector", "HWIO", "heads", "dims before heads", "stacked", "stacked, transposed", "part of an axis"],
)
@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
def test_zero_clears_the_masked_channels_and_nothing_else(shape, axes, index, place):
    leaf = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    where = view("w", shape, axes, **index)
    mask = np.array([True, False, False, True])
    got = surgery.zero(where, mask)(place(leaf))
    expected = leaf.copy()
    run = np.moveaxis(expected[where.index], axes, range(len(axes)))  # a view: writing to it writes to `expected`
    for channel in np.flatnonzero(mask):
        run[np.unravel_index(channel, where.shape)] = 0
    np.testing.assert_array_equal(got, expected)
    assert (got.shape, got.dtype) == (leaf.shape, leaf.dtype)
    assert leaf.min() == 1
    np.testing.assert_array_equal(surgery.zero(where, np.zeros(4, bool))(place(leaf)), leaf)


def test_zero_keeps_half_precision_and_traces():
    where = view("w", (3, 4), (1,))
    mask = np.array([False, True, False, False])
    got = jax.jit(lambda leaf, mask: surgery.zero(where, mask)(leaf))(jnp.ones((3, 4), jnp.bfloat16), mask)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got.astype(np.float32), np.where(mask, 0, np.ones((3, 4))))


@pytest.mark.parametrize(
    ("shape", "axes", "index", "expected"),
    [
        ((3,), (0,), {}, [0, 1, 2]),
        ((1, 1, 3), (2,), {}, [0, 1, 2]),
        ((2, 3), (0, 1), {}, [0, 1, 2, 3, 4, 5]),
        ((2, 3), (1, 0), {}, [0, 3, 1, 4, 2, 5]),
        ((2, 3), (1,), {"axis0": (1, 2)}, [3, 4, 5]),
        ((1, 4), (1,), {"axis1": (2, 4)}, [2, 3]),
    ],
)
def test_read_is_in_channel_order(shape, axes, index, expected):
    leaf = np.arange(np.prod(shape)).reshape(shape)
    assert view("v", shape, axes, **index).read(leaf).tolist() == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_zeroing_a_producer_silences_its_channel_alone(name):
    """The kernel the graph applies has zero rows where the mask says so, and is the same elsewhere."""
    variables, graph = of(name)
    kernels = graph.kernels(variables)
    for number, producer in enumerate(graph.producers):
        mask = np.arange(producer.channels) % 3 == 1
        cut = surgery.edit(variables, {producer.kernel.path: surgery.zero(producer.kernel, mask)})
        after = graph.kernels(cut)[number]
        np.testing.assert_array_equal(after, np.where(mask[:, None, None], 0, kernels[number]))
        assert relative_change(variables, cut).keys() == {producer.kernel.path}
