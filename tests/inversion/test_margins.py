import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from jaxguard.inversion import margins
from jaxguard.types.searches import KindResult, TriggerRow, TriggerSearch


def row(margin, size=3.0, hits=None, judged=None):
    number = len(margin)
    counts = np.full(number, 10) if judged is None else np.array(judged)
    return TriggerRow(
        "patch",
        size,
        np.arange(number),
        np.array(margin, float),
        np.zeros(number, int) if hits is None else np.array(hits),
        counts,
        {},
    )


def test_margins_count_images_that_are_neither_of_the_class_nor_taken_for_it():
    clean = np.array([[3.0, 0, 0], [0, 3, 0], [0, 0, 3], [3, 0, 0]])
    labels = np.array([0, 1, 2, 1])
    stamped = np.zeros((1, 4, 3))
    stamped[0, :, 0] = [9, 4, -2, 9]  # the first is of class 0, the last is taken for it
    found = margins.judged(stamped, clean, np.array([0]), labels, spread=2.0)
    assert found.margin.tolist() == [(4 - 2) / 2 / 2] and found.hits.tolist() == [1] and found.judged.tolist() == [2]


def test_a_class_that_no_image_can_judge_has_no_margin():
    found = margins.judged(np.zeros((1, 2, 3)), np.array([[1.0, 0, 0]] * 2), np.array([0]), np.array([1, 2]), 1.0)
    assert found.margin.tolist() == [-math.inf] and found.judged.tolist() == [0]


def test_the_p_value_is_that_of_a_two_sample_t_test_with_one_value_on_one_side():
    rest = np.array([0.1, -0.4, 0.3, 0.0, -0.2])
    expected = 6 * stats.ttest_ind([2.0], rest, alternative="greater").pvalue
    assert margins.class_p_value([row([2.0, *rest])]) == pytest.approx(expected, rel=1e-9)
    # the best of two sizes counts twice
    two = [row([2.0, *rest]), row([0.4, *rest])]
    assert margins.class_p_value(two) == pytest.approx(2 * expected, rel=1e-9)


def test_equal_classes_have_small_p_values_as_seldom_as_they_should():
    draw = np.random.default_rng(0)
    found = [margins.class_p_value([row(draw.normal(size=10)) for _ in range(3)]) for _ in range(400)]
    assert np.mean(np.array(found) <= 0.05) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)


def test_edges_of_the_p_value():
    assert math.isnan(margins.class_p_value([row([1.0, 2.0])]))
    assert math.isnan(margins.class_p_value([row([1.0, 2.0, -math.inf, 0])]))
    assert margins.class_p_value([row([1.0, 0, 0, 0])]) == 0
    assert margins.class_p_value([row([0.0, 0, 0, 0])]) == 1


def test_a_search_leads_with_the_row_of_the_largest_gap():
    rows = (row([0.0, 5, 4], 2.0, hits=[0, 10, 5]), row([6.0, 1, 2], 3.0, hits=[10, 1, 0]))
    found = TriggerSearch(rows, (KindResult("patch", gap=4.0),))
    assert [one.gap for one in rows] == [1 * 0.5, 4 * 1.0]  # of margin, times of success
    assert (found.target, found.success, found.leading.size) == (0, 1.0, 3.0)
    # Clopper-Pearson of 10 in 10: (0.025)^(1/10)
    assert found.interval == (pytest.approx(0.025**0.1), 1.0)


def test_a_gap_needs_a_lead_in_margin_and_in_success():
    assert row([6.0, 1], hits=[5, 6]).gap == 0  # the second class is reached as often
    assert row([6.0, 1], hits=[5, 0], judged=[10, 0]).gap == 0  # nothing judged the second
    assert math.isnan(row([6.0]).gap)


def test_the_kind_of_the_smallest_p_value_leads_unless_another_is_named_or_says_nothing():
    rows = (row([6.0, 1, 2]), dataclasses.replace(row([0.0, 5, 4]), kind="other"))
    results = (KindResult("patch", gap=4.0, p_class=0.03), KindResult("other", gap=1.0, p_class=0.02))
    found = TriggerSearch(rows, results)
    assert found.gaps == {"patch": 4.0, "other": 1.0}
    assert (found.gap, found.target, found.p_class) == (1.0, 1, 0.04)
    assert dataclasses.replace(found, lead="patch").target == 0
    silent = dataclasses.replace(results[1], problem="every class flips")
    found = TriggerSearch(rows, (results[0], silent))
    assert (found.gap, found.target, found.p_class) == (4.0, 0, 0.03)
