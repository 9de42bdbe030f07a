import jax
import numpy as np
import pytest

from jaxguard.errors import DefenseError
from jaxguard.pruning.holdout import hold_out
from jaxguard.types import Batch

KEY = jax.random.key(0)


def test_held_out_images_are_never_learned_from():
    clean = Batch(np.arange(10.0).reshape(10, 1), np.arange(10))
    learned, held = hold_out(clean, 0.3, KEY, "anp")
    assert len(held.labels) == 3 and sorted([*learned.labels, *held.labels]) == list(range(10))
    np.testing.assert_array_equal(held.images[:, 0], held.labels)
    assert [len(part.labels) for part in hold_out(Batch(*(a[:2] for a in clean)), 0.01, KEY, "anp")] == [1, 1]
    assert [len(part.labels) for part in hold_out(clean, 0.999, KEY, "anp")] == [1, 9]
    with pytest.raises(DefenseError, match=r"expected at least 2 clean images.* got 1 in anp"):
        hold_out(Batch(*(a[:1] for a in clean)), 0.2, KEY, "anp")
