import numpy as np
import pytest

from jaxguard.graph import axes
from jaxguard.graph.axes import Axis


def sizes(node):
    return [atom.size for atom, _ in axes.atoms(node)]


def test_products_meet_in_their_common_refinement():
    a, b = axes.product([Axis(6), Axis(4)]), axes.product([Axis(3), Axis(8)])
    axes.tie(a, b)
    assert sizes(a) == sizes(b) == [3, 2, 4]
    for (x, _), (y, _) in zip(axes.atoms(a), axes.atoms(b), strict=True):
        assert x is y


def test_sums_meet_in_their_common_boundaries():
    a, b = axes.total([Axis(5), Axis(3)]), axes.total([Axis(2), Axis(6)])
    axes.tie(a, b)
    assert sizes(a) == sizes(b) == [2, 3, 3]


def test_a_concatenation_split_into_groups_shares_the_inner_factor():
    left, right = Axis(8), Axis(12)
    _, inner = axes.split(axes.total([left, right]), (5, 4))
    assert sizes(left) == [2, 4]
    assert sizes(right) == [3, 4]
    assert axes.find(axes.atoms(left)[1][0]) is axes.find(axes.atoms(right)[1][0]) is axes.find(inner)


def test_positions_are_row_major():
    height, channels = Axis(2), Axis(3)
    flat = axes.product([height, channels])
    found = {atom.size: positions for atom, positions in axes.atoms(flat)}
    np.testing.assert_array_equal(found[3], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(found[2], [[0, 3], [1, 4], [2, 5]])


def test_the_same_channels_twice_have_both_positions():
    channels = Axis(2)
    found = axes.atoms(axes.total([channels, channels]))
    assert found[0][0] is found[1][0]
    np.testing.assert_array_equal(np.concatenate([positions for _, positions in found]), [[0, 1], [2, 3]])


def test_structures_that_do_not_line_up_are_frozen():
    a, b = axes.product([Axis(3), Axis(4)]), axes.total([Axis(5), Axis(7)])
    axes.tie(a, b)
    assert all(atom.frozen for node in (a, b) for atom, _ in axes.atoms(node))


def test_freezing_reaches_parts_made_later():
    node = Axis(12)
    axes.freeze(node, "input")
    axes.split(node, (3, 4))
    assert [atom.frozen for atom, _ in axes.atoms(node)] == ["input", "input"]


def test_freezing_travels_along_ties():
    a, b, c = Axis(4), Axis(4), Axis(4)
    axes.tie(a, b)
    axes.freeze(c, "output")
    axes.tie(b, c)
    assert axes.find(a).frozen == "output"


def test_different_sizes_cannot_be_tied():
    with pytest.raises(ValueError, match="4 and 5"):
        axes.tie(Axis(4), Axis(5))
