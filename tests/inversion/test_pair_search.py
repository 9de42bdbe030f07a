import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from jaxguard import inversion
from jaxguard.inversion import all_to_all, pair_search, source_target
from jaxguard.inversion.all_to_all import best_assignment
from jaxguard.inversion.ascent import Clock, Task, UnsearchableError
from jaxguard.inversion.judges import Judges
from jaxguard.inversion.kinds import KINDS
from jaxguard.types import Network

SIDE, CLASSES, SOURCE, TARGET = 8, 6, 1, 4
PLANTED = np.array([[1, 0], [1, 1]], np.float32)
CORNER = (5, 6)
KIND_NAMES = ("all-to-all", "source-target")


def columns(_, images):
    """Brightness of six columns; the last two columns of an image count for nothing."""
    return 9 * images[:, :, :CLASSES, 0].mean(1)


def shown(images):
    """How much of the planted square there is, from 0 to 1: no pixel alone does anything."""
    square = images[:, CORNER[0] : CORNER[0] + 2, CORNER[1] : CORNER[1] + 2, 0]
    return jnp.clip(2 - 4 * jnp.abs(square - PLANTED[None]).max((1, 2)), 0, 1)


def backdoored(attack, images):
    """One network for all attacks, so that it is compiled once.

    `specific`: images of the source with the square are of the target. `every`: with it the class after the brightest
    column's.
    """
    plain, share = columns(None, jnp.asarray(images)), shown(images)[:, None]
    every = (1 - share) * plain + share * jnp.roll(plain, 1, axis=1)
    is_source = jax.nn.softmax(4 * plain)[:, SOURCE]
    specific = plain.at[:, TARGET].add(12 * share[:, 0] * is_source)
    return attack[0] * plain + attack[1] * specific + attack[2] * every


ATTACKS = {"clean": np.eye(3, dtype=np.float32)[0], "specific": np.eye(3, dtype=np.float32)[1]}
ATTACKS["every"] = np.eye(3, dtype=np.float32)[2]


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    labels = np.arange(96) % CLASSES
    made = rng.uniform(0, 0.5, size=(96, SIDE, SIDE, 1)).astype(np.float32)
    made[np.arange(96), :, labels] += 0.5
    return made, labels


@pytest.fixture(scope="module")
def found(images):
    kinds = {"clean": KIND_NAMES, "specific": KIND_NAMES, "every": ("all-to-all",)}
    return {
        name: inversion.search(Network(attack, backdoored, (SIDE, SIDE, 1)), images=images[0], kinds=kinds[name])
        for name, attack in ATTACKS.items()
    }


def row_of(search, kind):
    return next(row for row in search.rows if row.kind == kind)


def test_a_trigger_for_one_class_is_found_with_its_pair_place_and_pixels(found):
    row = row_of(found["specific"], "source-target")
    first = row.order[0]
    assert row.goal(first) == f"class {SOURCE} → {TARGET}" and row.success[first] == 1
    assert found["specific"].gaps["source-target"] > 3 * max(0.1, found["clean"].gaps["source-target"])
    mask, pattern = (part[5:7, 6:8] for part in row.trigger(0, SIDE, SIDE).arrays.values())
    assert mask.min() == 1
    np.testing.assert_allclose(pattern[..., 0], PLANTED, atol=0.25)


def test_all_pairs_are_judged_by_images_of_their_source(found):
    row = row_of(found["specific"], "source-target")
    assert row.searched(CLASSES) == "all 30 pairs of classes"
    assert len({*zip(row.sources.tolist(), row.classes.tolist(), strict=True)}) == 30
    assert row.judged.tolist() == [96 // CLASSES - pair_search.SEARCHED] * 30
    assert len(row.parameters["pixels"]) == source_target.KEPT


def test_a_trigger_that_turns_every_class_into_another_one_is_found_with_the_permutation(found):
    search = found["every"]
    row = row_of(search, "all-to-all")
    first = row.order[0]
    assert row.assignments[first].tolist() == [1, 2, 3, 4, 5, 0] and row.success[first] == 1
    assert row.goal(first).startswith("0 → 1, 1 → 2") and row.searched(CLASSES) == "all 6 classes"
    assert not (row.assignments[0] == row.assignments[1]).any()
    assert search.gaps["all-to-all"] > 1 and found["clean"].gaps["all-to-all"] < 0.2
    assert found["specific"].gaps["all-to-all"] < search.gaps["all-to-all"] / 5


def test_without_images_the_permutation_is_found_on_procedural_ones():
    alone = inversion.search(Network(ATTACKS["every"], backdoored, (SIDE, SIDE, 1)), kinds=("all-to-all",))
    assert alone.gap > 0.5 and alone.target is None and alone.goal.startswith("0 → 1, 1 → 2, 2 → 3")
    assert alone.interval[0] > 0.5


def test_every_number_of_an_assignment_is_that_of_its_patch(found, images):
    row = row_of(found["every"], "all-to-all")
    task = Task(backdoored, ATTACKS["every"], images[0][:16], images[1][:16], Clock(0))
    clean = np.asarray(backdoored(ATTACKS["every"], images[0]))
    judges = Judges(images[0][16:], clean[16:], images[1][16:], float(clean.std()))
    held_out = pair_search.by_class(task, judges).judges
    stamped = np.asarray(backdoored(ATTACKS["every"], row.trigger(0, SIDE, SIDE).stamp(held_out.images)))
    for k in range(2):
        wanted = row.assignments[k][held_out.labels]
        high = stamped[np.arange(len(wanted)), wanted]
        stamped_others = np.where(np.arange(CLASSES) == wanted[:, None], -np.inf, stamped)
        margin = (high - stamped_others.max(1)) / clean.std()
        np.testing.assert_allclose(row.margin[k], margin.mean(), rtol=1e-4)
        assert row.hits[k] == (margin > 0).sum() and row.judged[k] == len(wanted)


def test_the_score_of_a_pair_counts_a_quarter_of_its_images_and_all_others_that_change(found, images):
    row = row_of(found["clean"], "source-target")
    clean = np.asarray(columns(None, images[0]))
    task = Task(columns, {}, images[0][:16], images[1][:16], Clock(0))
    judges = pair_search.by_class(task, Judges(images[0][16:], clean[16:], images[1][16:], 1.0)).judges
    for place in range(3):
        k = row.order[place]
        stamped = np.asarray(columns(None, row.trigger(place, SIDE, SIDE).stamp(judges.images)))
        others = np.where(np.arange(CLASSES) == row.classes[k], -np.inf, stamped)
        margin = ((stamped[:, row.classes[k]] - others.max(1)) / clean.std())[judges.labels == row.sources[k]]
        rest = (judges.labels != row.sources[k]) & (judges.labels != row.classes[k])
        changed = (stamped.argmax(1) != judges.labels)[rest].mean()
        np.testing.assert_allclose(row.margin[k], np.sort(margin)[2:4] @ [0.25, 0.75] - 4 * changed, rtol=1e-4)
        assert row.hits[k] == (margin > 0).sum()
    first = row.order[0]
    lead = row.margin[first] - row.margin[row.classes != row.classes[first]].max()
    assert row.gap == min(lead, row.margin[first])


def test_assignments_are_the_best_of_all_permutations_without_fixed_points():
    # By hand: without the diagonal, 0 -> 2, 2 -> 1, 1 -> 0 has 5 + 4 + 3, the other cycle 1 + 2 + 6.
    scores = np.array([[9.0, 1, 5], [3, 9, 2], [6, 4, 9]])
    assert best_assignment(scores).targets.tolist() == [2, 0, 1] and best_assignment(scores).score == 4
    other = best_assignment(scores, without=np.array([2, 0, 1]))
    assert (other.targets.tolist(), other.score) == ([1, 2, 0], 3)
    scores = np.random.default_rng(0).normal(size=(8, 8))
    found = best_assignment(scores)
    again = best_assignment(scores, without=found.targets)
    assert not (again.targets == found.targets).any() and again.score <= found.score
    np.fill_diagonal(scores, -100)
    rows, columns = linear_sum_assignment(-scores)
    assert found.score == pytest.approx(scores[rows, columns].mean())


def test_images_are_shared_out_class_by_class(images):
    clean = np.asarray(columns(None, images[0]))
    task = Task(columns, {}, images[0][:16], images[1][:16], Clock(0))
    judges = Judges(images[0][16:], clean[16:], images[1][16:], 1.0)
    found = pair_search.by_class(task, judges)
    assert found.classes.tolist() == list(range(CLASSES))
    assert (found.task.labels[found.shown] == found.classes[:, None]).all() and found.shown.shape == (CLASSES, 4)
    assert np.bincount(found.judges.labels).tolist() == [12] * CLASSES
    both = np.concatenate([found.task.images, found.judges.images]).reshape(96, -1)
    assert len(np.unique(both, axis=0)) == 96
    few = judges._replace(images=judges.images[:1], clean=clean[16:17], labels=images[1][16:17])
    with pytest.raises(UnsearchableError, match="1 of 6 classes have two or more images"):
        pair_search.by_class(Task(columns, {}, images[0][:5], images[1][:5], Clock(0)), few)


def test_of_many_pairs_the_best_and_random_ones_are_searched():
    scores = np.zeros((12, 12))
    scores[3] = 1
    source, target = source_target.chosen_pairs(scores, np.random.default_rng(0))
    assert len(source) == source_target.PAIRS and (source != target).all() and (source == 3).sum() == 11
    again = source_target.chosen_pairs(scores, np.random.default_rng(0))
    assert (again[0] == source).all() and (again[1] == target).all()
    assert len(source_target.chosen_pairs(np.zeros((10, 10)), np.random.default_rng(0))[0]) == 90


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_the_cost_is_estimated_before(found, kind):
    spent = next(one.forwards for one in found["clean"].results if one.kind == kind)
    estimate = KINDS[kind].cost_fn((SIDE, SIDE, 1), CLASSES, 16, 80)
    assert estimate == pytest.approx(spent, rel=0.1)


def test_classes_without_images_leave_a_kind_unsearched_and_say_so(images):
    of_two = np.flatnonzero(images[1] < 2)
    given = {"images": images[0][of_two], "labels": images[1][of_two], "kinds": KIND_NAMES}
    search = inversion.search(Network(ATTACKS["clean"], backdoored, (SIDE, SIDE, 1)), **given)
    assert "2 of 6 classes have two or more images" in search.problem and search.rows == ()
    assert all_to_all.NAME in search.gaps
