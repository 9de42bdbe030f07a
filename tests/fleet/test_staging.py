"""Memory of batches: within its budget whatever is asked for, aligned, used again, never in two hands."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxguard.errors import FleetError
from jaxguard.fleet.staging import Staging

BUDGET = 4000


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 100), st.integers(0, 3)), max_size=60),
    st.randoms(use_true_random=False),
)
def test_never_more_than_the_budget_and_never_in_two_hands(asked, random):
    staging, held = Staging(BUDGET), []
    for rows, length, returned in asked:
        if rows * length * 4 > BUDGET:
            with pytest.raises(FleetError, match="raise --memory"):
                staging.take(rows, length)
            continue
        stack = staging.take(rows, length)
        if stack is None:
            assert held
        else:
            assert stack.rows.shape == (rows, length)
            assert stack.rows.dtype == np.float32
            assert stack.rows.ctypes.data % 4096 == 0
            stack.rows[...] = len(held)
            assert not any(np.shares_memory(stack.buffer, other.buffer) for other in held)
            held.append(stack)
        assert sum(one.rows.nbytes for one in held) <= staging.allocated <= BUDGET
        for _ in range(min(returned, len(held))):
            staging.give(held.pop(random.randrange(len(held))))
    for stack in held:
        staging.give(stack)
    assert staging.take(BUDGET // 4, 1) is not None


def test_memory_is_used_again():
    staging = Staging(BUDGET)
    first = staging.take(10, 40)
    staging.give(first)
    second = staging.take(9, 40)
    assert second.rows.ctypes.data == first.rows.ctypes.data
    assert staging.allocated == 1600


def test_memory_of_another_size_makes_room():
    staging = Staging(BUDGET)
    small, large = staging.take(1, 100), staging.take(1, 800)
    staging.give(small)
    staging.give(large)
    assert staging.take(1, 1000).rows.shape == (1, 1000)
    assert staging.allocated == BUDGET


def test_who_waits_gets_memory_when_another_gives_it_back():
    staging = Staging(BUDGET)
    first = staging.take(1, 600)
    assert staging.take(1, 500) is None
    staging.give(first)
    assert staging.take(1, 500) is not None
