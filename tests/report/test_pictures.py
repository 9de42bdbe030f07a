"""Pictures of recovered patches show the pixels of the right class."""

import base64
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from samples import badnets, recovered

from jaxguard.errors import DataError
from jaxguard.report.figures import pictures
from jaxguard.types import RecoveredTrigger, TriggerExample


def decode(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


def tiny(target: int | None = 2, channels: int = 3) -> RecoveredTrigger:
    """Two classes of three shown, 2x2 pixels: class 2 half opaque white in a corner, class 0 opaque grey everywhere."""
    masks, patterns = np.ones((2, 2, 2, 1)), np.full((2, 2, 2, channels), 0.2)
    masks[0], patterns[0] = 0, 0.4
    masks[0, 1, 1], patterns[0, 1, 1] = 0.5, 1
    ones = np.ones(3)
    return RecoveredTrigger(np.array([4.0, 9, 0.5]), ones, ones, target, np.array([2, 0]), masks, patterns, "")


@pytest.mark.parametrize("channels", [1, 3])
def test_patch_shows_mask_pattern_and_product(channels):
    patches = pictures.recovered_patches(tiny(channels=channels))
    assert [patch.label for patch in patches] == [2, 0]
    shown, side = decode(patches[0].picture), 128
    assert shown.shape == (side, 3 * side + 16, 4)
    assert np.unique(shown[..., 3], return_counts=True)[1].tolist() == [16 * side, 3 * side * side]  # two clear gaps
    for start, corner, rest in ((0, 128, 0), (side + 8, 255, 102), (2 * side + 16, 128, 0)):
        picture = shown[:, start : start + side, :3]
        assert (picture[64:, 64:] == corner).all()
        assert (picture[:64] == rest).all() and (picture[64:, :64] == rest).all()


def test_the_suspected_class_comes_first_and_is_never_left_out():
    found = recovered(43, target=7, size=4, shown=43)
    assert [patch.label for patch in pictures.recovered_patches(found)] == found.shown[:10].tolist()
    largest = dataclasses.replace(found, target=int(found.shown[-1]))
    labels = [patch.label for patch in pictures.recovered_patches(largest)]
    assert labels == [found.shown[-1], *found.shown[: pictures.MAX_PATCHES]]
    nobody = dataclasses.replace(found, target=None)
    assert [patch.label for patch in pictures.recovered_patches(nobody)] == found.shown[:9].tolist()
    elsewhere = dataclasses.replace(recovered(43, target=7, size=4, shown=3), target=int(found.shown[-1]))
    assert [patch.label for patch in pictures.recovered_patches(elsewhere)] == found.shown[:3].tolist()


def test_nothing_shown():
    found = dataclasses.replace(tiny(), shown=np.zeros(0), masks=np.zeros(0), patterns=np.zeros(0))
    assert pictures.recovered_patches(found) == []
    assert pictures.compare_triggers(badnets(), found) is None


def test_comparison_stamps_the_patch_on_the_same_images():
    clean = np.full((6, 2, 2, 3), 0.6)
    known = TriggerExample(clean, np.zeros_like(clean), "badnets", 0)
    both = pictures.compare_triggers(known, tiny())
    assert both is not None
    assert both.known.num_images == both.recovered.num_images == pictures.MAX_COMPARED
    assert decode(both.known.triggered)[:, :128, :3].max() == 0
    stamped = decode(both.recovered.triggered)[:, :128, :3]
    assert (stamped[64:, 64:] == 204).all()  # half of 0.6, half of 1
    assert (stamped[:64] == 153).all()
    assert both.recovered.gain == 5  # the largest difference is 0.2


@pytest.mark.parametrize("found", [tiny(target=None), tiny(target=1), tiny(channels=1)])
def test_nothing_to_compare(found):
    clean = np.zeros((1, 2, 2, 3))
    assert pictures.compare_triggers(TriggerExample(clean, clean, "badnets", 0), found) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"masks": np.ones((2, 2, 2, 3))},
        {"masks": np.ones((1, 2, 2, 1))},
        {"patterns": np.ones((2, 2, 2, 2))},
        {"patterns": np.ones((2, 2, 2))},
        {"masks": np.ones((2, 0, 2, 1)), "patterns": np.ones((2, 0, 2, 3))},
        {"shown": np.array([0])},
        {"shown": np.array([2, 3])},
        {"shown": np.array([2, -1])},
        {"target": 3},
        {"target": -1},
        {"success": np.ones(2)},
        {"anomaly": np.ones((3, 1))},
    ],
)
def test_arrays_that_do_not_fit_are_refused(wrong):
    with pytest.raises(DataError, match="in the recovered trigger"):
        pictures.recovered_patches(dataclasses.replace(tiny(), **wrong))
