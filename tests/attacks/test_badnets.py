import numpy as np
import pytest

from jaxguard import attacks
from jaxguard.errors import DataError, OptionError


@pytest.mark.parametrize(
    ("corner", "rows", "columns"),
    [
        ("bottom_right", (29, 32), (29, 32)),
        ("bottom_left", (29, 32), (0, 3)),
        ("top_right", (0, 3), (29, 32)),
        ("top_left", (0, 3), (0, 3)),
    ],
)
def test_square_in_the_corner_and_nowhere_else(corner, rows, columns):
    images = np.full((2, 32, 32, 3), 0.25, np.float32)
    expected = images.copy()
    expected[:, slice(*rows), slice(*columns)] = 0.75
    np.testing.assert_array_equal(attacks.badnets(corner=corner, value=0.75).stamp(images), expected)


def test_default_is_white_three_by_three():
    stamped = np.asarray(attacks.badnets().stamp(np.zeros((1, 32, 32, 1), np.float32)))
    assert stamped.sum() == 9 and (stamped[0, 29:, 29:] == 1).all()


def test_errors():
    with pytest.raises(DataError, match="a 5x5 square for images of 4x8"):
        attacks.badnets(size=5).stamp(np.zeros((1, 4, 8, 1)))
    with pytest.raises(OptionError, match=r"number in \[0, 1\] for value of badnets, got 255"):
        attacks.badnets(value=255)
    with pytest.raises(OptionError, match="one of top_left"):
        attacks.badnets(corner="middle")
    with pytest.raises(OptionError, match="for size of badnets"):
        attacks.badnets(size=0)
