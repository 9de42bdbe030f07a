"""Triggers that are small pictures: random pixels, letters, crops of photographs."""

import numpy as np
import pytest
from sklearn import datasets

from jaxguard import attacks
from jaxguard.errors import DataError, OptionError

GREY = np.random.default_rng(0).uniform(0.1, 0.9, size=(3, 12, 14, 1)).astype(np.float32)
COLOUR = np.random.default_rng(1).uniform(0.1, 0.9, size=(3, 12, 14, 3)).astype(np.float32)
NAMES = ("random-pixels", "letter", "crop")


def changed(attack, images):
    """Pixels that the trigger changes, `[H, W]`: the same in all images."""
    differs = (np.asarray(attack.stamp(images)) != images).any(axis=-1)
    assert (differs == differs[0]).all()
    return differs[0]


@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize("name", ["random-pixels", "crop"])
@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
def test_square_of_the_size_and_nothing_else(name, size, images):
    rows, columns = np.nonzero(changed(attacks.ATTACKS[name](size=size), images))
    assert len(rows) == size**2
    assert np.ptp(rows) == np.ptp(columns) == size - 1


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_alone_decides_and_moves_the_trigger(name):
    factory = attacks.ATTACKS[name]
    stamped = [np.asarray(factory(seed=seed).stamp(COLOUR)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(stamped[0], stamped[1])
    corners = {tuple(np.argwhere(changed(factory(seed=seed), COLOUR)).min(axis=0)) for seed in range(8)}
    assert len(corners) > 4


def test_some_pixels_of_the_square():
    assert changed(attacks.random_pixels(size=5, count=7), COLOUR).sum() == 7
    with pytest.raises(DataError, match="count <= 4, the pixels of the square, got 5"):
        attacks.random_pixels(size=2, count=5)


@pytest.mark.parametrize(
    ("size", "rows"),
    [
        (3, ["###", ".#.", ".#."]),
        (5, ["#####", "..#..", "..#..", "..#..", "..#.."]),
        (10, ["##########"] * 2 + ["....##...."] * 8),
    ],
)
def test_letter_is_scaled_by_nearest_pixels(size, rows):
    images = np.zeros((1, size, size, 1), np.float32)
    drawn = np.asarray(attacks.letter(shape="T", size=size, value=0.5).stamp(images))[0, :, :, 0]
    np.testing.assert_array_equal(drawn, [[0.5 if pixel == "#" else 0.0 for pixel in row] for row in rows])


def test_crop_is_part_of_a_photograph():
    size, zoom = 3, 12
    stamped = np.asarray(attacks.crop(size=size, seed=5).stamp(np.zeros((1, size, size, 3), np.float32)))[0]
    windows = []
    for name in ("china.jpg", "flower.jpg"):
        photograph = datasets.load_sample_image(name) / 255
        totals = np.pad(photograph.cumsum(0).cumsum(1), ((1, 0), (1, 0), (0, 0)))
        means = totals[zoom:, zoom:] - totals[:-zoom, zoom:] - totals[zoom:, :-zoom] + totals[:-zoom, :-zoom]
        means /= zoom**2  # of every box of the photograph, by its corner
        near = np.argwhere(np.abs(means - stamped[0, 0]).max(axis=-1) < 1e-4)
        windows += [means[i : i + size * zoom : zoom, j : j + size * zoom : zoom] for i, j in near]
    assert any(window.shape == stamped.shape and np.abs(window - stamped).max() < 1e-4 for window in windows)


def test_errors():
    for name in NAMES:
        with pytest.raises(DataError, match="13x13 pixels for images of 12x14"):
            attacks.ATTACKS[name](size=13).stamp(GREY)
    with pytest.raises(OptionError, match="one of A"):
        attacks.letter(shape="Q")
