import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard import execution, inversion
from jaxguard.errors import DataError
from jaxguard.inversion import known_images, patch_search
from jaxguard.inversion.ascent import Candidates, Clock, Task, climb, log_probability, stamped_logits
from jaxguard.inversion.patches import Patches
from jaxguard.inversion.trigger_models import Patch
from jaxguard.types import Network

SIDE, CLASSES, TARGET = 8, 6, 4
PLANTED = np.array([[1, 0], [1, 1]], np.float32)
CORNER = (5, 3)

PATCH = ("patch",)


def columns(_, images):
    """Brightness of six columns."""
    return 9 * images[:, :, :CLASSES, 0].mean(1)


def planted(_, images):
    """The same, and 40 for the target where a square looks like `PLANTED`: no pixel alone does anything."""
    square = images[:, CORNER[0] : CORNER[0] + 2, CORNER[1] : CORNER[1] + 2, 0]
    alike = 1 - jnp.abs(square - PLANTED[None]).max((1, 2))
    return columns(None, images).at[:, TARGET].add(40 * jnp.maximum(alike - 0.4, 0))


def network(apply_fn, shape=(SIDE, SIDE, 1)):
    return Network({}, apply_fn, shape)


@pytest.fixture(scope="module")
def found():
    return inversion.search(network(planted), kinds=PATCH)


def test_a_planted_square_is_found_with_its_place_and_pixels(found):
    row = found.leading
    assert (found.target, found.problem, row.size) == (TARGET, "", 2)
    assert tuple(row.parameters["corners"][0]) == CORNER and row.label == "a 2x2 patch at (5, 3)"
    np.testing.assert_allclose(row.parameters["pixels"][0, :, :, 0], PLANTED, atol=0.05)
    assert found.success == 1 and found.interval[0] > 0.9
    assert found.gap > 3 and found.p_class < 0.05
    mask, pattern = found.trigger.arrays.values()
    assert mask.sum() == 4 and pattern[mask[..., 0] == 0].max() == 0


def test_every_number_is_that_of_the_patches_returned(found):
    row = found.rows[0]
    images = np.random.default_rng(0).uniform(size=(5, SIDE, SIDE, 1)).astype(np.float32)
    mask, pattern = row.trigger(2, SIDE, SIDE).arrays.values()
    by_hand = planted(None, jnp.asarray(images * (1 - mask) + mask * pattern))
    task = Task(planted, {}, images, np.zeros(5, int), Clock(0))
    patches = Patches(*(part[2:3] for part in row.parameters.values()))
    np.testing.assert_allclose(patch_search.answers(task, patches, images)[0], by_hand, rtol=1e-5)
    assert (row.hits <= row.judged).all() and row.judged.max() <= 128
    assert found.forwards > 0 and found.reached >= 0.8 and "procedural" in found.source


def test_without_a_trigger_no_class_leads_by_much():
    plain = inversion.search(network(columns), kinds=PATCH)
    assert plain.gap < 1 and plain.p_class > 0.05 and plain.problem == ""


def test_equal_seeds_give_equal_triggers_whatever_the_size_of_the_chunks(found, monkeypatch):
    again = inversion.search(network(planted), kinds=PATCH)
    assert again.gap == found.gap
    monkeypatch.setattr(execution, "stamped_images_at_once", lambda *_: 64)
    other = inversion.search(network(planted), kinds=PATCH)
    for one, two in zip(found.rows, other.rows, strict=True):
        assert (one.parameters["corners"] == two.parameters["corners"]).all()
        np.testing.assert_allclose(one.margin, two.margin, rtol=1e-4, atol=1e-4)


def test_clean_images_take_the_place_of_procedural_ones():
    rng = np.random.default_rng(1)
    images = rng.uniform(size=(60, SIDE, SIDE, 1)).astype(np.float32)
    labels = np.arange(60) % CLASSES
    images[np.arange(60), :, labels] = 1
    given = inversion.search(network(planted), images=images, labels=labels, kinds=PATCH)
    assert (given.target, given.source) == (TARGET, "60 clean images, 12 to search on and 48 to judge by")
    assert np.isnan(given.reached)
    # neither of the class nor taken for it: 48 judging images, eight of each class, one of them taken for the target
    assert given.rows[0].judged.tolist() == [40, 40, 40, 40, 39, 40]


def normalised(variables, images):
    """`planted`, and a BatchNorm over pixels that was trained on bright images."""
    pixels = images.reshape(len(images), -1) @ variables["pixels"]
    mean, scale = variables["mean"][None], (variables["scale"] / jnp.sqrt(variables["var"] + 1e-5))[None]
    return planted(None, images) + ((pixels - mean) * scale) @ variables["head"]


def test_synthesised_images_match_the_statistics_of_a_network():
    ones, head = np.ones(SIDE * SIDE, np.float32), np.full((SIDE * SIDE, CLASSES), 1e-3, np.float32)
    variables = {"pixels": np.diag(ones), "mean": 0.7 * ones, "var": 0.02 * ones, "scale": ones, "head": head}
    bright = Network(variables, normalised, (SIDE, SIDE, 1))
    known = known_images.made(bright, 10, synthesised=True)
    assert known.labels.tolist() == np.repeat(np.arange(CLASSES), 10).tolist()
    assert "1 BatchNorms matched" in known.source
    assert abs(known.images.mean() - 0.7) < 0.15 < abs(known_images.made(bright, 10).images.mean() - 0.7)
    found = inversion.search(bright, kinds=PATCH, synthesised=True)
    assert found.target == TARGET and found.source.startswith("102 synthesised images (1 BatchNorm")


def test_the_descent_reaches_the_best_pattern_of_a_linear_network():
    # Of a linear network the best pattern of a class is 1 where its weight is higher than the others', else 0.
    weights = np.random.default_rng(2).normal(size=(16, 2)).astype(np.float32)
    images = np.random.default_rng(3).uniform(size=(4, 4, 4, 1)).astype(np.float32)

    def linear(variables, images):
        return images.reshape(len(images), -1) @ variables

    mask = np.zeros((2, 4, 4, 1), np.float32)
    mask[:, 1:3, 1:3] = 1
    start = Candidates(mask, np.full((2, 4, 4, 1), 0.5, np.float32))
    task = Task(linear, weights, images, np.array([0, 1, 0, 1]), Clock(0))
    reached = climb(task, Patch(), start, np.array([0, 1]), 20)
    higher = (weights[:, 0] > weights[:, 1]).reshape(4, 4, 1)[1:3, 1:3]
    np.testing.assert_array_equal(reached.free[0, 1:3, 1:3], higher)
    np.testing.assert_array_equal(reached.free[1, 1:3, 1:3], ~higher)
    stamped = stamped_logits(task, Patch(), Candidates(mask, reached.free).take, 2, images)
    np.testing.assert_allclose(reached.score, np.diag(log_probability(stamped, task.labels)), rtol=1e-5)


def test_the_gradient_promises_what_every_square_would_gain_in_a_linear_network():
    rng = np.random.default_rng(4)
    weights, images = rng.normal(size=(16, 5)).astype(np.float32), rng.uniform(size=(3, 4, 4, 1)).astype(np.float32)
    task = Task(
        lambda variables, images: images.reshape(len(images), -1) @ variables,
        weights,
        images,
        np.zeros(3, int),
        Clock(0),
    )
    promised = patch_search.promised(task, 2, np.array([1, 3]))
    logits = images.reshape(3, -1) @ weights
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    mean = images.mean(0)[..., 0]
    for number, y in enumerate([1, 3]):
        gradient = (weights[:, y] - (shares @ weights.T).mean(0)).reshape(4, 4)
        gain = np.where(gradient > 0, gradient * (1 - mean), -gradient * mean)
        squares = {(a, b): gain[a : a + 2, b : b + 2].sum() for a in range(3) for b in range(3)}
        top, left = max(squares, key=lambda square: squares[square])
        assert promised.corners[number].tolist() == [top, left]
        wanted = gradient[top : top + 2, left : left + 2] > 0
        np.testing.assert_array_equal(promised.pixels[number, :, :, 0], wanted)


def test_of_many_classes_the_best_and_random_ones_go_on():
    scores = np.zeros((3, 50))
    scores[1, 30:] = np.arange(1, 21)
    chosen = patch_search.leading_classes(scores, 0)
    assert len(chosen) == 30 and set(range(30, 50)) <= set(chosen.tolist())
    assert (chosen == patch_search.leading_classes(scores, 0)).all()
    assert patch_search.leading_classes(np.zeros((3, 30)), 0).tolist() == list(range(30))


# ---------------------------------------------------------------- networks of which nothing can be said


def constant(_, images):
    return jnp.ones((len(images), CLASSES)) + 0 * images.sum()


def not_finite(_, images):
    return columns(None, images) / 0 * 0


def oversensitive(_, images):
    """The brightest square of 2x2 pixels decides, wherever it lies."""
    squares = jax.lax.reduce_window(images[..., 0], 0.0, jax.lax.add, (1, 2, 2), (1, 1, 1), "VALID")
    return 30 * squares.reshape(len(images), -1)[:, : 7 * CLASSES : 7] + 0.01 * columns(None, images)


def deaf(_, images):
    """Brightness that no image in [0, 1] has: as with a wrong normalisation."""
    return columns(None, images).at[:, 1:].add(-20)


@pytest.mark.parametrize(
    ("apply_fn", "shape", "problem"),
    [
        (constant, (8, 8, 1), "answers all images alike"),
        (not_finite, (8, 8, 1), "not finite"),
        (lambda _, x: columns(None, x)[:, :1], (8, 8, 1), "one class"),
        (lambda _, x: x[:, :6], (8,), "no images"),
        (lambda _, x: x, (8, 8, 1), "no classes"),
        (columns, (2, 8, 1), "no room"),
        (deaf, (8, 8, 1), "is the normalisation (--mean, --std) right?"),
        (oversensitive, (8, 8, 1), "into several classes"),
    ],
)
def test_a_network_of_which_nothing_can_be_said_is_told_with_its_reason(apply_fn, shape, problem):
    found = inversion.search(network(apply_fn, shape), kinds=PATCH)
    assert problem in found.problem


def test_time_that_is_over_leaves_out_sizes_and_says_so():
    found = inversion.search(network(planted), budget=0, kinds=PATCH)
    assert "no size was searched" in found.problem and found.rows == ()
    assert found.left_out == ("No time was left for patches of 2, 3 pixels of edge.",)
    assert np.isnan(found.gap) and found.target is None and found.interval == (0, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": np.zeros((5, 8, 8, 1))}, "20 or more images"),
        ({"images": np.zeros((20, 7, 8, 1))}, "20 or more images"),
        ({"images": np.full((20, 8, 8, 1), 255.0)}, "divide bytes by 255"),
        ({"images": np.full((20, 8, 8, 1), np.nan)}, r"in \[0, 1\]"),
        ({"images": np.zeros((20, 8, 8, 1)), "labels": np.full(20, 6)}, r"labels in \[0, 6\)"),
        ({"kinds": ("smell",)}, "expected kinds among patch"),
        ({"kinds": ()}, "expected kinds among patch"),
        ({"kinds": ("patch", "patch")}, "name each once"),
    ],
)
def test_wrong_arguments_are_refused(given, message):
    with pytest.raises(DataError, match=message):
        inversion.search(network(columns), **given)
