import numpy as np
import pytest

from jaxguard.errors import DefenseError
from jaxguard.repairs import relative_change


def test_relative_change_of_a_leaf_that_was_zero_and_of_other_trees():
    assert relative_change({"a": np.zeros(2)}, {"a": np.ones(2)}) == {"a": np.inf}
    assert relative_change({"a": np.zeros(2)}, {"a": np.zeros(2)}) == {}
    with pytest.raises(DefenseError, match="models of one structure"):
        relative_change({"a": np.zeros(2)}, {"b": np.zeros(2)})
    with pytest.raises(DefenseError, match=r"got \(3,\) for leaf 'a'"):
        relative_change({"a": np.zeros(2)}, {"a": np.zeros(3)})
