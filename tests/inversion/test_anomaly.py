import numpy as np
import pytest
from scipy import stats

from jaxguard.errors import DataError
from jaxguard.inversion import Inversion, anomaly_index, recovered_trigger


def inversion(norms, reached=None, side=4):
    norms = np.asarray(norms, float)
    masks = np.ones((len(norms), side, side, 1)) * (norms / side**2)[:, None, None, None]
    reached = np.ones(len(norms), bool) if reached is None else np.asarray(reached)
    return Inversion(masks, np.repeat(masks, 3, -1), norms, reached.astype(float), reached, np.ones(len(norms), int))


def test_index_by_hand():
    # median 10; deviations 9 1 0 1 2, their median 1
    expected = np.array([9, 1, 0, -1, -2]) / 1.4826
    np.testing.assert_allclose(anomaly_index(np.array([1.0, 9, 10, 11, 12])), expected)


@pytest.mark.parametrize("number", [2, 3, 10, 43, 200])
def test_index_is_scipys(number):
    norms = np.random.default_rng(number).lognormal(2, 0.5, number)
    mad = stats.median_abs_deviation(norms, scale="normal")
    np.testing.assert_allclose(anomaly_index(norms), (np.median(norms) - norms) / mad, rtol=1e-5)


def test_index_does_not_depend_on_unit_or_origin():
    norms = np.random.default_rng(0).uniform(5, 60, 10)
    np.testing.assert_allclose(anomaly_index(3 * norms + 7), anomaly_index(norms), atol=1e-9)


def test_index_of_equal_norms():
    assert anomaly_index(np.full(10, 3.0)).tolist() == [0] * 10
    assert anomaly_index(np.array([5.0])).tolist() == [0]
    # one of ten differs: the mean absolute deviation is a tenth of the difference
    index = anomaly_index(np.array([2.0, *[10.0] * 9]))
    np.testing.assert_allclose(index, [10 / 1.2533, *[0.0] * 9], atol=1e-12)


@pytest.mark.parametrize("norms", [[], [1.0, np.nan], [1.0, np.inf], [[1.0]]])
def test_what_is_no_list_of_norms_is_refused(norms):
    with pytest.raises(DataError, match=r"finite norms \[K\]"):
        anomaly_index(np.array(norms))


def test_the_smallest_flagged_class_is_the_target():
    trigger = recovered_trigger(inversion([9, 10, 2, 11, 1, 12, 10]), source="10 clean images")
    assert (trigger.anomaly > 2).sum() == 2  # 2 and 4
    assert trigger.target == 4
    assert trigger.shown.tolist() == [4, 2, 0, 1, 6, 3, 5]
    np.testing.assert_array_equal(trigger.masks[0].sum(), 1)
    assert trigger.masks.shape == (7, 4, 4, 1) and trigger.patterns.shape == (7, 4, 4, 3)
    assert trigger.source == "10 clean images"


def test_a_large_norm_is_no_suspect():
    assert recovered_trigger(inversion([9, 10, 10, 11, 15]), source="").target is None


def test_without_an_outlier_the_smallest_is_named_on_request():
    even = inversion([9, 10, 11, 12, 13])
    assert recovered_trigger(even, source="").target is None
    assert recovered_trigger(even, source="", always=True).target == 0


def test_a_class_that_was_not_reached_counts_with_the_whole_image():
    # its last mask was small, but it did not work
    trigger = recovered_trigger(inversion([9, 10, 0.5, 11, 12], [True, True, False, True, True]), source="")
    assert trigger.target is None
    assert trigger.shown[-1] == 2 and trigger.anomaly[2] < 0
    assert trigger.norms[2] == 0.5 and trigger.success[2] == 0


def test_where_nothing_was_reached_nobody_is_named():
    assert recovered_trigger(inversion([1, 2, 3], [False] * 3), source="", always=True).target is None


def test_at_most_so_many_pictures_are_kept():
    trigger = recovered_trigger(inversion(np.arange(1, 16)), source="")
    assert trigger.shown.tolist() == list(range(10)) and len(trigger.norms) == 15
    assert len(recovered_trigger(inversion(np.arange(1, 16)), source="", shown=3).masks) == 3
