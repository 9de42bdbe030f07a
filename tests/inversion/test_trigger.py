import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxguard import training
from jaxguard.errors import DataError, JaxguardError
from jaxguard.inversion import Inversion, invert, recovered_trigger
from jaxguard.inversion.descent import Descent, squash
from jaxguard.types import Batch

KEY = jax.random.key(7)
SETTINGS = {
    "learning_rate": 0.1,
    "betas": (0.5, 0.9),
    "cost": 1e-3,
    "multiplier": 2.0,
    "patience": 5,
    "threshold": 0.98,
    "stop_patience": 25,
    "stop_ratio": 0.99,
}


def linear(weights, images):
    return images.reshape(len(images), -1) @ weights


def descent(apply_fn=linear, **settings):
    return Descent(apply_fn, **{"batch_size": 6, "steps": 1000, "epoch_steps": 1, **SETTINGS, **settings})


# ---------------------------------------------------------------- a planted backdoor

CLASSES, SIDE, TARGET, PIXEL = 6, 8, 2, (7, 7)
BLOCKS = np.eye(CLASSES)[np.arange(60) // 10]  # ten pixels each; the last four belong to no class


def backdoored(variables, images):
    """Brightness of each class's ten pixels, and 30 for the target where one more pixel is bright."""
    evidence = images.reshape(len(images), -1)[:, :60] @ variables
    return evidence.at[:, TARGET].add(30 * images[:, *PIXEL, 0] ** 3)


def few_images(per_class):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), per_class)
    images = rng.uniform(0, 0.3, (len(labels), SIDE * SIDE))
    images[:, :60] += 0.6 * BLOCKS.T[labels]
    return images.reshape(-1, SIDE, SIDE, 1).astype(np.float32), labels


@pytest.fixture(scope="module")
def found() -> Inversion:
    return invert(backdoored, BLOCKS, *few_images(2), KEY)


def test_the_planted_pixel_is_recovered_and_its_class_stands_out(found: Inversion):
    assert found.masks.shape == (CLASSES, SIDE, SIDE, 1) and found.patterns.shape == (CLASSES, SIDE, SIDE, 1)
    assert np.unravel_index(found.masks[TARGET].argmax(), (SIDE, SIDE, 1))[:2] == PIXEL
    assert found.masks[TARGET][PIXEL] > 0.8 * found.norms[TARGET]
    assert found.norms[TARGET] < 1.5
    assert found.patterns[TARGET][PIXEL] > 0.8
    # every other class has to be painted: ten pixels at 0.15 on average against ten at 0.75
    assert np.delete(found.norms, TARGET).min() > 4
    trigger = recovered_trigger(found, source="12 images")
    assert trigger.target == TARGET and trigger.anomaly[TARGET] > 2
    assert trigger.shown[0] == TARGET
    assert found.success.tolist() == [1.0] * CLASSES and found.reached.all()


def test_every_class_stopped_by_itself(found: Inversion):
    assert found.steps.max() < 800
    assert len(set(found.steps.tolist())) > 1


def test_norms_and_success_are_those_of_the_patches_returned(found: Inversion):
    images, labels = few_images(2)
    for y in range(CLASSES):
        np.testing.assert_allclose(found.norms[y], found.masks[y].sum(), rtol=1e-6)
        stamped = (1 - found.masks[y]) * images + found.masks[y] * found.patterns[y]
        classes = np.asarray(backdoored(BLOCKS, jnp.asarray(stamped))).argmax(-1)
        assert found.success[y] == (classes == y)[labels != y].mean()


def test_the_models_own_predictions_stand_in_for_labels(found: Inversion):
    images, labels = few_images(2)
    assert np.asarray(backdoored(BLOCKS, jnp.asarray(images))).argmax(-1).tolist() == labels.tolist()
    same = invert(backdoored, BLOCKS, images, None, KEY)
    np.testing.assert_array_equal(same.masks, found.masks)


def test_in_small_batches_the_pixel_is_found_as_well():
    images, labels = few_images(5)
    found = invert(backdoored, BLOCKS, images, labels, KEY, batch_size=8, classes=[TARGET, 0])
    assert np.unravel_index(found.masks[0].argmax(), (SIDE, SIDE, 1))[:2] == PIXEL
    assert found.norms[0] < 1.5 and found.norms[1] > 4
    assert found.success.min() > 0.9


def test_classes_need_not_be_those_of_the_images():
    images, labels = few_images(2)
    rest = labels != TARGET
    found = invert(backdoored, BLOCKS, images[rest], labels[rest], KEY, classes=[TARGET])
    assert np.unravel_index(found.masks[0].argmax(), (SIDE, SIDE, 1))[:2] == PIXEL


# ---------------------------------------------------------------- the descent


def patches_by_hand(weights, data, theta, target, steps, *, cost, patience, threshold):
    """Neural Cleanse with Adam on a linear model, in float64, one class, one image at a time."""
    theta = [np.asarray(part, np.float64) for part in theta]
    images, labels = np.asarray(data.images, np.float64), np.asarray(data.labels)
    moments, squares = [0.0, 0.0], [0.0, 0.0]
    good = bad = 0
    costs = []
    for step in range(1, steps + 1):
        mask, pattern = (np.tanh(part) / (2 + 1e-7) + 0.5 for part in theta)
        slopes = [(1 - np.tanh(part) ** 2) / (2 + 1e-7) for part in theta]
        gradient = [np.full_like(mask, cost), np.zeros_like(pattern)]
        hits, others = 0, labels != target
        for image in images[others]:
            logits = ((1 - mask) * image + mask * pattern).ravel() @ weights
            p = np.exp(logits - logits.max())
            p /= p.sum()
            by_pixel = (weights @ (p - np.eye(len(p))[target])).reshape(image.shape) / others.sum()
            gradient[0] += (by_pixel * (pattern - image)).sum(-1, keepdims=True)
            gradient[1] += by_pixel * mask
            hits += logits.argmax() == target
        for part in (0, 1):
            slope = gradient[part] * slopes[part]
            moments[part] = 0.5 * moments[part] + 0.5 * slope
            squares[part] = 0.9 * squares[part] + 0.1 * slope**2
            size = np.sqrt(squares[part] / (1 - 0.9**step)) + 1e-8
            theta[part] = theta[part] - 0.1 * moments[part] / (1 - 0.5**step) / size
        works = hits / others.sum() >= threshold
        good, bad = (good + 1, 0) if works else (0, bad + 1)
        if good == patience:
            cost, good = cost * 2, 0
        elif bad == patience:
            cost, bad = cost / 2**1.5, 0
        costs.append(cost)
    return theta, costs


def test_steps_on_a_linear_model_by_hand():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3 * 3 * 2, 3))
    data = Batch(rng.uniform(size=(6, 3, 3, 2)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2], np.int32))
    step = descent(cost=0.05, patience=3, threshold=0.7)
    start = step.start(jnp.arange(3), (3, 3, 2), KEY)
    step_fn = jax.tree_util.Partial(step, jnp.asarray(weights, jnp.float32), data, KEY)
    last, _ = training.descend(step_fn, start, 25)
    for y in range(3):
        theta, costs = patches_by_hand(
            weights, data, [part[y] for part in start.theta], y, 25, cost=0.05, patience=3, threshold=0.7
        )
        for ours, theirs in zip(last.theta, theta, strict=True):
            np.testing.assert_allclose(ours[y], theirs, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(last.cost[y], costs[-1], rtol=1e-5)
    assert len({round(float(cost), 6) for cost in last.cost}) > 1  # the schedules went different ways


def judged_by_hand(rates, norms, *, threshold, patience, stop_patience, ratio):
    """The published loop, epoch by epoch: cost, best norm and the epoch it stops after, or None."""
    cost, best, mark, good, bad, stalled, raised, lowered = 1.0, np.inf, np.inf, 0, 0, 0, False, False
    history, stop = [], None
    for epoch, (rate, norm) in enumerate(zip(rates, norms, strict=True)):
        if rate >= threshold:
            best, good, bad = min(best, norm), good + 1, 0
        else:
            good, bad = 0, bad + 1
        if best < np.inf:
            stalled = stalled + 1 if best >= ratio * mark else 0
            mark = min(best, mark)
        if good == patience:
            cost, good, raised = cost * 2, 0, True
        elif bad == patience:
            cost, bad, lowered = cost / 2**1.5, 0, True
        history.append((cost, best))
        if stop is None and raised and lowered and stalled >= stop_patience:
            stop = epoch
    return history, stop


@pytest.mark.parametrize("seed", range(4))
def test_cost_best_patch_and_stop_follow_the_published_loop(seed):
    rng = np.random.default_rng(seed)
    runs = np.repeat(rng.integers(0, 2, 40), rng.integers(1, 6, 40))[:60]
    hits, norms = 8 + 2 * runs, rng.uniform(1, 30, 60) * np.linspace(2, 1, 60)
    step = descent(cost=1.0, patience=3, threshold=0.9, stop_patience=6)
    state = step.start(jnp.arange(1), (1, 1, 1), KEY)
    history, stop = judged_by_hand(hits / 10, norms, threshold=0.9, patience=3, stop_patience=6, ratio=0.99)
    assert len(set(history)) > 5
    for epoch, (cost, best) in enumerate(history):
        state = state._replace(hits=jnp.full(1, float(hits[epoch])), seen=jnp.full(1, 10.0))
        patch = (jnp.full((1, 1, 1, 1), norms[epoch]), jnp.zeros((1, 1, 1, 1)))
        state = step._judge(state, patch, jnp.full(1, norms[epoch], jnp.float32))
        np.testing.assert_allclose(state.cost[0], cost, rtol=1e-5)
        np.testing.assert_allclose(state.best_norm[0], best, rtol=1e-6)
        if np.isfinite(best):
            np.testing.assert_allclose(state.best[0].item(), best, rtol=1e-6)
        assert bool(state.stopped[0]) == (stop is not None and epoch == stop) or (stop is not None and epoch > stop)


def test_a_class_that_has_stopped_does_not_move():
    images, labels = few_images(2)
    step = descent(backdoored, batch_size=12)
    state = step.start(jnp.arange(CLASSES), (SIDE, SIDE, 1), KEY)
    state = state._replace(stopped=jnp.arange(CLASSES) == 1)
    step_fn = jax.tree_util.Partial(step, jnp.asarray(BLOCKS), Batch(images, labels), KEY)
    last, _ = training.descend(step_fn, state, 3)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(last), strict=True):
        np.testing.assert_array_equal(new[1], old[1])
    moved = [not np.array_equal(last.theta[0][y], state.theta[0][y]) for y in range(CLASSES)]
    assert moved == [y != 1 for y in range(CLASSES)]


def test_a_pass_draws_every_image_and_classes_draw_alike():
    step = descent(batch_size=4)
    passes = [np.concatenate([step._draw(KEY, 12, jnp.int32(3 * p + k)) for k in range(3)]) for p in range(3)]
    assert [sorted(drawn.tolist()) for drawn in passes] == [list(range(12))] * 3
    assert len({tuple(drawn.tolist()) for drawn in passes}) == 3
    uneven = np.concatenate([step._draw(KEY, 10, jnp.int32(k)) for k in range(3)])
    assert sorted(set(uneven.tolist())) == list(range(10))


def test_first_patches_depend_on_the_class_and_lie_in_range():
    step = descent()
    both, alone = (step.start(jnp.asarray(targets), (4, 4, 3), KEY) for targets in ([3, 5], [5]))
    for one, other in zip(both.theta, alone.theta, strict=True):
        np.testing.assert_array_equal(one[1], other[0])
        assert not np.array_equal(one[0], one[1])
        assert squash(one).min() > 0 and squash(one).max() < 1
    assert both.theta[0].shape == (2, 4, 4, 1) and both.theta[1].shape == (2, 4, 4, 3)


# ---------------------------------------------------------------- many classes


def test_one_class_at_a_time_gives_the_same_patches(found: Inversion):
    for at_once in (1, 4):
        again = invert(backdoored, BLOCKS, *few_images(2), KEY, classes_at_once=at_once)
        np.testing.assert_array_equal(again.steps, found.steps)
        np.testing.assert_allclose(again.masks, found.masks, atol=1e-4)
    alone = invert(backdoored, BLOCKS, *few_images(2), KEY, classes=[4])
    np.testing.assert_allclose(alone.masks[0], found.masks[4], atol=1e-4)


def test_a_convolutional_network_all_at_once_and_one_by_one():
    variables, data = tiny.init(jax.random.key(0)), tiny.images(9, jax.random.key(1))
    options = {"steps": 12, "batch_size": 4, "epoch_steps": 3}
    together = invert(tiny.apply_fn, variables, *data, KEY, classes_at_once=4, **options)
    for y in range(tiny.NUM_CLASSES):
        alone = invert(tiny.apply_fn, variables, *data, KEY, classes=[y], **options)
        np.testing.assert_allclose(alone.masks[0], together.masks[y], atol=1e-3)
        np.testing.assert_allclose(alone.patterns[0], together.patterns[y], atol=1e-3)


def test_two_hundred_classes_in_chunks_of_one_program():
    rng = np.random.default_rng(0)
    weights, images = rng.normal(size=(48, 200)), rng.uniform(size=(20, 4, 4, 3))
    model = tiny.Counted(linear)
    found = invert(model, weights, images, None, KEY, steps=20, classes_at_once=16)
    # the clean images, the step and the last classification, however many chunks there are
    traces = model.calls
    assert traces <= 4
    assert found.masks.shape == (200, 4, 4, 1) and np.isfinite(found.norms).all()
    few = invert(model, weights, images, None, KEY, steps=20, classes_at_once=16, classes=range(100, 140))
    assert model.calls == traces
    np.testing.assert_allclose(few.masks, found.masks[100:140], atol=1e-5)


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_workers_share_the_classes_and_find_the_same(workers):
    options = {"steps": 60, "classes_at_once": 2}
    alone, shared = (
        invert(backdoored, BLOCKS, *few_images(2), KEY, workers=number, **options) for number in (1, workers)
    )
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_caller_hears_of_progress():
    told = []
    invert(
        linear, np.eye(4), np.eye(4).reshape(4, 2, 2, 1), None, KEY, steps=40, progress=lambda *row: told.append(row)
    )
    done, total, metrics = told[-1]
    assert 0 < done <= total
    assert {"loss", "success", "norm"} == metrics.keys()


# ---------------------------------------------------------------- what cannot be inverted


def test_a_class_that_nothing_reaches_is_reported_and_never_suspected():
    def never_one(variables, images):
        logits = linear(variables, images)
        return logits.at[:, 1].set(-1e3)

    images = np.eye(4).reshape(4, 2, 2, 1)
    found = invert(never_one, np.eye(4), images, None, KEY, steps=60)
    assert found.reached.tolist() == [True, False, True, True]
    assert found.success[1] == 0 and found.steps[1] == 60
    trigger = recovered_trigger(found, source="4 images", always=True)
    assert trigger.target != 1 and trigger.shown[-1] == 1


def test_images_of_one_class_say_nothing_about_it():
    found = invert(linear, np.eye(4), np.eye(4)[:1].reshape(1, 2, 2, 1), [2], KEY, steps=20)
    assert np.isnan(found.success[2]) and not found.reached[2]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_broken_model_is_named(broken):
    with pytest.raises(JaxguardError, match="expected finite logits"):
        invert(linear, np.full((4, 3), broken), np.ones((2, 2, 2, 1)), None, KEY)


def test_a_model_that_overflows_on_stamped_images_is_named():
    def fragile(variables, images):
        return linear(variables, jnp.where(images > 0, jnp.nan, images))

    with pytest.raises(JaxguardError, match="of stamped images"):
        invert(fragile, np.eye(4), np.zeros((2, 2, 2, 1)), None, KEY, steps=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((2, 2, 2))}, r"\[N, H, W, C\]"),
        ({"images": np.zeros((0, 2, 2, 1))}, r"\[N, H, W, C\]"),
        ({"images": np.full((2, 2, 2, 1), 255)}, r"\[0, 1\], got 255 to 255"),
        ({"images": np.full((2, 2, 2, 1), np.nan)}, r"\[0, 1\], got nan"),
        ({"labels": [0, 1, 2]}, r"2 labels in \[0, 4\)"),
        ({"labels": [0, 4]}, r"2 labels in \[0, 4\)"),
        ({"classes": [4]}, r"classes in \[0, 4\), got \[4\]"),
        ({"classes": []}, r"classes in \[0, 4\)"),
    ],
)
def test_bad_data_is_refused(change, message):
    arguments = {"images": np.zeros((2, 2, 2, 1)), "labels": None, "classes": None, **change}
    images, labels = arguments.pop("images"), arguments.pop("labels")
    with pytest.raises(DataError, match=message):
        invert(linear, np.eye(4), images, labels, KEY, steps=1, **arguments)


def test_a_model_of_another_shape_is_refused():
    with pytest.raises(DataError, match=r"logits \[2, K\]"):
        invert(lambda v, x: x, {}, np.zeros((2, 2, 2, 1)), None, KEY)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"epoch_steps": 0},
        {"patience": 0},
        {"stop_patience": 0},
        {"classes_at_once": 0},
        {"workers": 0},
        {"multiplier": 1.0},
        {"threshold": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        invert(linear, np.eye(4), np.zeros((2, 2, 2, 1)), None, KEY, **change)
