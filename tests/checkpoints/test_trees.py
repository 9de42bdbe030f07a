"""Names of leaves, and finiteness."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxguard import checkpoints
from jaxguard.errors import CheckpointError

names = st.text(st.characters(exclude_characters="/"), min_size=1, max_size=4)
nested = st.recursive(
    st.integers(0, 9).map(lambda value: np.full((2,), value, np.int32)),
    lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3),
    max_leaves=8,
).filter(lambda tree: isinstance(tree, dict))


def test_names_are_joined_with_slashes():
    variables = {
        "params": {"conv1": {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.zeros(2, jnp.bfloat16)}},
        "stats": [np.ones(1), None, (np.zeros(2),)],
    }
    leaves = checkpoints.flatten(variables)
    assert set(leaves) == {"params/conv1/kernel", "params/conv1/bias", "stats/0", "stats/2/0"}
    assert all(type(leaf) is np.ndarray for leaf in leaves.values())
    assert leaves["params/conv1/bias"].dtype == ml_dtypes.bfloat16


@given(nested)
def test_unflatten_undoes_flatten(tree):
    back = checkpoints.unflatten(checkpoints.flatten(tree))
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, tree))


def test_dotted_names_stay_flat():
    assert checkpoints.unflatten({"conv1.weight": 1}) == {"conv1.weight": 1}


@pytest.mark.parametrize("leaves", [{"a": 1, "a/b": 2}, {"a/b": 2, "a": 1}, {"a/b/c": 1, "a/b": 2}])
def test_a_leaf_cannot_also_be_a_group(leaves):
    with pytest.raises(CheckpointError, match="leaf or a group of leaves, got both"):
        checkpoints.unflatten(leaves)


def test_two_paths_of_one_name_are_refused():
    with pytest.raises(CheckpointError, match="'a/b': expected one leaf"):
        checkpoints.flatten({"a": {"b": np.ones(1)}, "a/b": np.ones(1)})


@pytest.mark.parametrize("leaf", ["text", object()])
def test_leaves_that_are_no_numbers_are_refused(leaf):
    with pytest.raises(CheckpointError, match="leaf 'x': expected"):
        checkpoints.flatten({"x": leaf})


def test_the_key_of_a_random_stream_is_stored_as_its_data():
    key = jax.random.key(7)
    np.testing.assert_array_equal(checkpoints.flatten({"x": key})["x"], jax.random.key_data(key))


def test_a_name_deeper_than_any_network_is_refused():
    with pytest.raises(CheckpointError, match="at most 64 levels, got 100000"):
        checkpoints.unflatten({"/".join("a" * 100_000): 1})


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, np.complex64])
def test_nan_and_infinity_are_counted_and_named(dtype):
    leaf = np.array([1, np.nan, np.inf, -np.inf, 2], np.float32).astype(dtype)
    leaves = {"fine": np.ones(3, np.float32), "params/w": leaf, "count": np.arange(3)}
    with pytest.raises(CheckpointError, match=r"demo: leaf 'params/w': .*1 NaN and 2 infinite of 5 \(1 of 3"):
        checkpoints.check_finite(leaves, "demo")


def test_finite_leaves_pass():
    finite = {code: np.ones(4).astype(dtype) for code, dtype in checkpoints.DTYPES.items()}
    checkpoints.check_finite({**finite, "empty": np.zeros((0,), np.float32)}, "demo")
