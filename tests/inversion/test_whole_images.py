"""Kinds of triggers that change whole images: what they may be, and planted ones that each kind finds."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard import execution, inversion
from jaxguard.inversion import start_pictures, warping
from jaxguard.inversion.ascent import Candidates, Clock, Task, climb
from jaxguard.inversion.judges import Judges
from jaxguard.inversion.kinds import KINDS
from jaxguard.inversion.trigger_models import Additive, Patch, Warp
from jaxguard.types import Network

SIDE, CLASSES, TARGET = 8, 6, 4
NAMES = ("additive", "additive-l2", "blended", "warp")
DRAW = np.random.default_rng(5)
PATTERN = DRAW.integers(0, 2, (SIDE, SIDE, 1)).astype(np.float32)
IMAGES = DRAW.uniform(size=(3, SIDE, SIDE, 1)).astype(np.float32)

FREE = {
    "additive": (Additive(np.inf), np.float32(0.1) * np.ones(2, np.float32), (2, SIDE, SIDE, 1)),
    "additive-l2": (Additive(2), np.float32(0.1) * np.ones(2, np.float32), (2, SIDE, SIDE, 1)),
    "blended": (Patch(), np.full((2, SIDE, SIDE, 1), 0.1, np.float32), (2, SIDE, SIDE, 1)),
    "warp": (Warp(), np.full(2, 1.5, np.float32), (2, 4, 4, 2)),
}


def network(all_over=0.0, shift=0.0):
    """One function for all tests, so that it is compiled once."""
    return Network({"all over": np.float32(all_over), "shift": np.float32(shift)}, apply_fn, (SIDE, SIDE, 1))


def apply_fn(variables, images):
    """Brightness of six columns; and the target where an image looks a little like `PATTERN` all over, or its last
    column is not quite white."""
    alike = ((images - 0.5) * (PATTERN - 0.5)[None]).mean((1, 2, 3))
    gain = variables["all over"] * jnp.maximum(alike - 0.01, 0)
    gain += variables["shift"] * jnp.maximum(0.9 - images[:, :, -1, 0].mean(1), 0)
    return 9 * images[:, :, :CLASSES, 0].mean(1) + gain[:, None] * jnp.float32(jnp.arange(CLASSES) == TARGET)[None]


@pytest.fixture(scope="module")
def found():
    return inversion.search(network(all_over=400), kinds=NAMES)


# ---------------------------------------------------------------- what a trigger may be


@pytest.mark.parametrize("name", NAMES)
def test_projected_triggers_are_in_the_ball_and_stamped_images_in_range(name):
    model, given, shape = FREE[name]
    free = jnp.asarray(DRAW.normal(scale=4, size=shape), jnp.float32)
    kept = model.project(given, free)
    np.testing.assert_allclose(model.project(given, kept), kept, rtol=1e-6)  # a projection changes nothing twice
    stamped = np.asarray(model.stamp(given, kept, IMAGES[None]))
    assert stamped.shape == (2, 3, SIDE, SIDE, 1) and stamped.min() >= 0 and stamped.max() <= 1
    alone = model.stamp(given, kept, np.stack([IMAGES, IMAGES]))
    np.testing.assert_array_equal(stamped, alone)  # one stack for all candidates, or one of each
    most = {"blended": np.sqrt(0.1) * SIDE, "warp": 1.5}.get(name, 0.1)
    assert (np.asarray(model.size(given, kept)) <= most * (1 + 1e-6)).all()


def test_sizes_by_hand():
    u = jnp.zeros((1, 2, 2, 1)).at[0, 0, 0, 0].set(-0.5).at[0, 1, 1, 0].set(0.5)
    assert float(Additive(np.inf).size(jnp.array([0.1]), u)[0]) == pytest.approx(0.05)
    assert float(Additive(2).size(jnp.array([0.1]), u)[0]) == pytest.approx(0.1 * np.sqrt(0.5 / 4))
    assert float(Warp().size(jnp.array([2.0]), jnp.full((1, 4, 4, 2), -0.75))[0]) == 1.5


def test_the_steepest_step_gains_most_among_steps_of_its_length():
    gradient = jnp.asarray(DRAW.normal(size=(1, 3, 3, 2)), jnp.float32)
    longest = {Additive(np.inf): jnp.abs(gradient).sum(), Additive(2): 18**0.5 * jnp.linalg.norm(gradient)}
    for model, gain in longest.items():
        way = model.steepest(gradient)
        assert float(model.size(jnp.ones(1), way)[0]) == pytest.approx(1, abs=1e-5)
        assert float((way * gradient).sum()) == pytest.approx(float(gain), rel=1e-5)  # Hoelder's inequality, attained
    assert not np.asarray(Additive(2).steepest(jnp.zeros((1, 3, 3, 1)))).any()


def test_a_constant_shift_moves_the_image_by_whole_pixels_and_none_leaves_it():
    shift = np.zeros((2, 4, 4, 2), np.float32)
    shift[1, ..., 1] = 1
    none, right = np.asarray(Warp().stamp(np.array([2.0, 2.0], np.float32), shift, IMAGES[None]))
    np.testing.assert_array_equal(none, IMAGES)
    np.testing.assert_allclose(right[:, :, :-2], IMAGES[:, :, 2:], atol=1e-5)
    np.testing.assert_allclose(right[:, :, -2:], np.repeat(IMAGES[:, :, -1:], 2, axis=2), atol=1e-5)


# ---------------------------------------------------------------- the search


@pytest.mark.parametrize("kind", ["additive", "additive-l2", "blended"])
def test_a_weakness_all_over_the_image_leads_to_its_class(kind, found):
    rows = [row for row in found.rows if row.kind == kind]
    assert [row.size for row in rows] == list(KINDS[kind].sizes_fn((SIDE, SIDE, 1)))
    best = max(rows, key=lambda row: row.gap)
    assert best.classes[best.order[0]] == TARGET and best.gap == found.gaps[kind] > 0.3
    # What is kept is the leading trigger, and its margin is that of the images it makes.
    trigger = best.trigger(0, SIDE, SIDE)
    change = np.asarray(trigger.stamp(IMAGES)) - IMAGES
    assert (change * (PATTERN - 0.5)).mean() > 0.01
    if kind == "additive":
        assert np.abs(trigger.delta).max() <= 16 / 255 + 1e-6
    if kind == "blended":
        assert np.unique(trigger.mask).tolist() == [np.float32(best.size)]


def test_a_class_that_a_shift_leads_to_is_found():
    images = np.random.default_rng(7).uniform(0, 0.4, (60, SIDE, SIDE, 1)).astype(np.float32)
    images[:, :, -1] = 1  # only a shift makes the last column darker
    images[np.arange(60), :, np.arange(60) % CLASSES] = 0.9
    found = inversion.search(network(shift=60), images=images, kinds=("warp",))
    assert found.target == TARGET and found.success > 0.9 and found.gap > 1
    flow = found.trigger.flow
    assert flow.shape == (SIDE, SIDE, 2) and flow[:, -1, 1].mean() < -0.05
    assert np.abs(flow).max() <= warping.SHARES[-1] * SIDE * (1 + 1e-6)


def test_without_a_weakness_no_class_leads_by_much():
    plain = inversion.search(network(), kinds=NAMES)
    assert max(plain.gaps.values()) < 0.3 and plain.problem == ""


def test_each_kind_is_searched_as_if_alone_whatever_the_size_of_the_chunks(found, monkeypatch):
    monkeypatch.setattr(execution, "stamped_images_at_once", lambda *_: 64)
    alone = inversion.search(network(all_over=400), kinds=("blended",))
    rows = [row for row in found.rows if row.kind == "blended"]
    for one, two in zip(rows, alone.rows, strict=True):
        np.testing.assert_allclose(one.margin, two.margin, rtol=1e-3, atol=1e-3)
    assert [one.kind for one in found.results] == list(NAMES)


@pytest.mark.parametrize("number", [40, 120])
def test_of_many_classes_thirty_are_searched(number):
    weights = DRAW.normal(size=(SIDE * SIDE, number)).astype(np.float32)
    task = Task(linear, weights, IMAGES, np.arange(3), Clock(0))
    judges = Judges(IMAGES, IMAGES.reshape(3, -1) @ weights, np.arange(3), 1.0)
    row = next(KINDS["additive"].search_fn(task, judges, np.arange(number), 0))
    assert len(row.classes) == 30 and row.parameters["delta"].shape == (1, SIDE, SIDE, 1)


def linear(variables, images):
    return images.reshape(len(images), -1) @ variables


def test_candidates_one_by_one_are_those_of_a_batch():
    task = Task(linear, DRAW.normal(size=(SIDE * SIDE, 10)).astype(np.float32), IMAGES, np.arange(3), Clock(0))
    model, given, shape = FREE["additive-l2"]
    both = climb(task, model, Candidates(given, np.zeros(shape, np.float32)), np.array([3, 9]), 4)
    one = climb(task, model, Candidates(given[1:], np.zeros(shape, np.float32)[1:]), np.array([9]), 4)
    np.testing.assert_allclose(both.free[1:], one.free, atol=1e-5)


def test_start_patterns_are_all_different_and_the_same_for_all_networks():
    known = start_pictures.pictures((6, 5, 3), 1)
    assert known.shape[1:] == (6, 5, 3) and known.min() >= 0 and known.max() <= 1
    assert len(np.unique(known.reshape(len(known), -1), axis=0)) == len(known)
    np.testing.assert_array_equal(known, start_pictures.pictures((6, 5, 3), 1))


def test_costs_are_those_that_were_counted(found):
    for one in found.results:
        expected = KINDS[one.kind].cost_fn((SIDE, SIDE, 1), CLASSES, 16, 96)
        assert expected == pytest.approx(one.forwards, rel=0.3)


def test_neural_cleanse_ranks_classes_by_the_size_of_their_masks():
    images = np.random.default_rng(8).uniform(0, 0.4, (60, SIDE, SIDE, 1)).astype(np.float32)
    images[:, :, -1] = 1  # one dark pixel of this column leads to the target
    images[np.arange(60), :, np.arange(60) % CLASSES] = 0.9
    found = inversion.search(network(shift=200), images=images, kinds=("neural-cleanse",))
    (row,) = found.rows
    first = row.order[0]
    assert row.classes[first] == found.target == TARGET and found.gap == row.anomaly.max() > 2
    mask, pattern = found.trigger.arrays.values()
    assert mask.shape == pattern.shape == (SIDE, SIDE, 1) and row.size == pytest.approx(mask.sum(), rel=1e-5)
    np.testing.assert_allclose(row.anomaly, np.sort(row.anomaly)[::-1][np.argsort(row.order)])
    assert found.label == "masks of any size" and row.label == f"a mask of {row.size:.1f} pixels in all"


def test_neural_cleanse_stops_when_the_time_is_over():
    found = inversion.search(network(), kinds=("neural-cleanse",), budget=1e-9)
    assert found.rows == () and "No time was left for masks of any size." in found.left_out
