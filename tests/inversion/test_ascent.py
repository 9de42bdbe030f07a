import numpy as np
import pytest

from jaxguard.inversion.ascent import Candidates, Clock, Task, climb, log_probability, stamped_logits
from jaxguard.inversion.trigger_models import Patch

RNG = np.random.default_rng(5)
WEIGHTS = RNG.normal(size=(16, 3)).astype(np.float32)
IMAGES = RNG.uniform(size=(4, 4, 4, 1)).astype(np.float32)
LABELS = np.array([0, 1, 2, 1])


def linear(variables, images):
    return images.reshape(len(images), -1) @ variables


@pytest.fixture
def candidates():
    masks = np.zeros((2, 4, 4, 1), np.float32)
    masks[0, :2, :2] = masks[1, 1:3, 2:] = 1
    return Candidates(masks, np.full((2, 4, 4, 1), 0.5, np.float32))


def task_of(rows):
    return Task(linear, WEIGHTS, IMAGES[rows], LABELS[rows], Clock(0))


def test_candidates_shown_some_images_climb_as_if_there_were_no_others(candidates):
    shown, targets = np.array([[0, 1], [3, 2]]), np.array([2, 0])
    found = climb(task_of(slice(None)), Patch(), candidates, targets, 4, shown=shown)
    plain = stamped_logits(task_of(slice(None)), Patch(), candidates.take, 2, IMAGES, shown=shown)
    for k, rows in enumerate(shown):
        one = candidates.take(np.array([k]))
        alone = climb(task_of(rows), Patch(), one, targets[k : k + 1], 4)
        np.testing.assert_allclose(found.free[k], alone.free[0], rtol=1e-6)
        np.testing.assert_allclose(found.score[k], alone.score[0], rtol=1e-5)
        by_hand = linear(WEIGHTS, IMAGES[rows] * (1 - one.given) + one.free * one.given)
        np.testing.assert_allclose(plain[k], by_hand, rtol=1e-5)


def test_every_image_climbs_to_a_target_of_its_own(candidates):
    targets = np.array([[1, 2, 0, 2], [2, 1, 0, 0]])  # the second image of the second candidate is to stay
    before = climb(task_of(slice(None)), Patch(), candidates, targets, 1).score
    after = climb(task_of(slice(None)), Patch(), candidates, targets, 12)
    assert (after.score > before).all()
    for k in range(2):
        mask, pattern = candidates.given[k], after.free[k]
        logits = linear(WEIGHTS, IMAGES * (1 - mask) + mask * pattern)
        shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        by_hand = np.mean([np.log(shares[b, targets[k, b]]) for b in range(4)])
        np.testing.assert_allclose(after.score[k], by_hand, rtol=1e-5)


def test_one_target_for_all_images_is_that_target_for_each(candidates):
    one = climb(task_of(slice(None)), Patch(), candidates, np.array([1, 0]), 3)
    shown = np.array([[0, 2], [1, 3]])  # images of other classes; with one of the class they would stay where it is
    every = climb(task_of(slice(None)), Patch(), candidates, np.array([1, 0]), 3, shown=shown)
    each = climb(task_of(slice(None)), Patch(), candidates, np.array([[1, 1], [0, 0]]), 3, shown=shown)
    np.testing.assert_array_equal(every.free, each.free)
    logits = stamped_logits(task_of(slice(None)), Patch(), Candidates(candidates.given, one.free).take, 2, IMAGES)
    np.testing.assert_allclose(one.score, log_probability(logits, LABELS)[[0, 1], [1, 0]], rtol=1e-5)
