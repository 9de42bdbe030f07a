"""Memory of many arrays: each has its own, aligned, and no more is taken than they need."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxguard.checkpoints import LeafSpec, allocation

DTYPES = [np.dtype(kind) for kind in (np.bool_, np.int8, np.float16, ml_dtypes.bfloat16, np.float32, np.complex64)]
SPECS = st.lists(st.builds(LeafSpec, st.lists(st.integers(1, 40), max_size=3).map(tuple), st.sampled_from(DTYPES)))


@settings(max_examples=100, deadline=None)
@given(specs=SPECS)
def test_arrays_do_not_share_memory(specs):
    found = allocation.allocated({str(place): spec for place, spec in enumerate(specs)})
    for place, array in enumerate(found.values()):
        array.reshape(-1).view(np.uint8)[:] = place % 251
    for place, (spec, array) in enumerate(zip(specs, found.values(), strict=True)):
        assert (array.shape, array.dtype) == (spec.shape, spec.dtype)
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.ctypes.data % 64 == 0
        assert (array.reshape(-1).view(np.uint8) == place % 251).all()


@pytest.mark.parametrize(
    ("sizes", "pieces"), [((1000,), 1), ((2**20,) * 40, 2), ((2**27, 10, 10), 2), ((2**24, 2**26, 2**24), 3), ((), 0)]
)
def test_memory_comes_in_few_pieces_of_what_is_needed(sizes, pieces):
    tracemalloc.start()
    found = allocation.allocated({str(i): LeafSpec((size,), np.dtype(np.uint8)) for i, size in enumerate(sizes)})
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert sum(sizes) <= held <= sum(sizes) + pieces * 2**21 + 2**24 * (pieces > 2) + 10_000
    starts = [array.ctypes.data for array in found.values() if array.nbytes >= 2**21]
    assert all(start % 2**21 == 0 for start in starts)
