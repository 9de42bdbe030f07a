import jax
import numpy as np
import pytest

from jaxguard.errors import DefenseError, OptionError, UnscorableError
from jaxguard.repairs import relative_change, repair, repair_all
from jaxguard.types import Network


def test_relative_change_of_a_leaf_that_was_zero_and_of_other_trees():
    assert relative_change({"a": np.zeros(2)}, {"a": np.ones(2)}) == {"a": np.inf}
    assert relative_change({"a": np.zeros(2)}, {"a": np.zeros(2)}) == {}
    with pytest.raises(DefenseError, match="models of one structure"):
        relative_change({"a": np.zeros(2)}, {"b": np.zeros(2)})
    with pytest.raises(DefenseError, match=r"got \(3,\) for leaf 'a'"):
        relative_change({"a": np.zeros(2)}, {"a": np.zeros(3)})


def mlp(variables, images):
    return jax.nn.relu(images @ variables["w1"]) @ variables["w2"]


def network(seed, **changes):
    rng = np.random.default_rng(seed)
    weights = {"w1": rng.normal(size=(4, 8)), "w2": rng.normal(size=(8, 3))}
    return Network({name: leaf.astype(np.float32) for name, leaf in (weights | changes).items()}, mlp, (4,))


def test_several_suspects_are_each_repaired_as_alone_and_an_error_is_its_own():
    done, key, options = [], jax.random.key(0), {"u": "1"}
    suspects = [network(0), network(1, w1=np.full((4, 8), np.nan)), network(2)]
    found = repair_all(suspects, "clp", key, options=options, progress=lambda *told: done.append(told))
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert isinstance(found[1], UnscorableError)
    for k in (0, 2):
        alone, report = repair(suspects[k], "clp", key, options=options)
        assert found[k][1].change == report.change != {}
        for ours, theirs in zip(*map(jax.tree.leaves, (found[k][0].network, alone.network)), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_what_is_wrong_for_all_suspects_is_an_error():
    with pytest.raises(OptionError, match="nonsense"):
        repair_all([network(0)], "clp", jax.random.key(0), options={"nonsense": 1})
    assert repair_all([], "clp", jax.random.key(0)) == []
