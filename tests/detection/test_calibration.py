"""Reference profiles: what is fitted on what, and that neither order nor copies matter."""

import numpy as np
import pytest
from references import fleet, triggers_of, weights_of, with_hash, with_triggers, with_weights

from jaxguard.detection import combination
from jaxguard.detection.calibration import FOLDS, calibrate
from jaxguard.detection.combination import FITTED, ONE_CLASS
from jaxguard.detection.profile import to_json
from jaxguard.errors import DataError


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_each_is_scored_by_a_model_that_was_not_fitted_on_it(rng):
    clean, guilty = fleet(rng, 23), fleet(rng, 12, shift=2)
    stage = calibrate(clean, guilty).cohorts["small"].first
    ordered, ordered_guilty = (sorted(one, key=lambda record: record.sha256) for one in (clean, guilty))
    assert stage.clean.sha256 == tuple(one.sha256 for one in ordered)
    assert stage.clean.folds.tolist() == [k % 5 for k in range(23)]
    assert len(stage.combinations) == FOLDS
    for k in (0, 6, 22):
        others = np.array([weights_of(one) for j, one in enumerate(ordered) if j % 5 != k % 5])
        others_guilty = np.array([weights_of(one) for j, one in enumerate(ordered_guilty) if j % 5 != k % 5])
        one = combination.fit(others, others_guilty, np.ones(4, bool))
        assert one.score(weights_of(ordered[k])[None])[0] == pytest.approx(stage.clean.scores[k])


def test_the_trigger_stage_of_a_fold_never_saw_the_fold(rng):
    clean, guilty = fleet(rng, 30, triggers=0), fleet(rng, 15, shift=1, triggers=2)
    before = calibrate(clean, guilty).cohorts["small"].triggers
    clean.sort(key=lambda record: record.sha256)
    clean[5] = with_triggers(with_weights(clean[5], weights_of(clean[5]) * 3), triggers_of(clean[5]) * 3)
    after = calibrate(clean, guilty).cohorts["small"].triggers
    same = [
        np.array_equal(one.coefficients, other.coefficients) and np.array_equal(one.scale, other.scale)
        for one, other in zip(before.combinations, after.combinations, strict=True)
    ]
    assert same == [True, False, False, False, False]
    assert before.names == ("first score", "success", "norm")


def test_order_and_copies_do_not_matter(rng):
    clean, guilty = fleet(rng, 25, triggers=0), fleet(rng, 9, shift=2, triggers=2)
    texts = set()
    for _ in range(2):
        rng.shuffle(order := [*clean, *clean[:4], with_triggers(clean[7], None)])
        rng.shuffle(order_guilty := [*guilty, guilty[0]])
        texts.add(to_json(calibrate(order, order_guilty)))
    assert texts == {to_json(calibrate(clean, guilty))}


@pytest.mark.parametrize(("count", "kind"), [(0, ONE_CLASS), (9, ONE_CLASS), (10, FITTED)])
def test_weights_are_learned_where_there_are_enough_backdoored_ones(rng, count, kind):
    stage = calibrate(fleet(rng, 20), fleet(rng, count, shift=2)).cohorts["small"].first
    assert {one.kind for one in stage.combinations} == {kind}
    assert len(stage.backdoored.scores) == count


def test_a_feature_that_one_reference_lacks_is_dropped(rng):
    clean = fleet(rng, 20)
    weights_of(clean[2])[1] = np.nan
    stage = calibrate(clean).cohorts["small"].first
    assert all(one.usable.tolist() == [True, False, True, True] for one in stage.combinations)
    assert np.isfinite(stage.clean.scores).all()


def test_a_broken_reference_does_not_take_the_features_with_it(rng):
    clean = fleet(rng, 20)
    weights_of(clean[2])[:3] = np.nan
    clean[3] = with_weights(clean[3], None)
    profile = calibrate(clean)
    stage = profile.cohorts["small"].first
    assert len(stage.clean.sha256) == 18
    assert all(one.usable.all() for one in stage.combinations)
    (note,) = profile.notes
    assert note.startswith("small: 2 of 20 clean checkpoints were left out")
    assert clean[2].sha256[:16] in note
    assert clean[3].sha256[:16] in note


def test_what_cannot_be_compared_is_told(rng):
    copies = [with_weights(one, np.ones(4)) for one in fleet(rng, 20, cohort="copies")]
    clean = [*fleet(rng, 9, cohort="few"), *copies, *fleet(rng, 10)]
    guilty = fleet(rng, 3, cohort="orphans")
    profile = calibrate(clean, guilty)
    assert {name: len(one.first.combinations) for name, one in profile.cohorts.items()} == {
        "copies": 0,
        "few": 0,
        "small": FOLDS,
    }
    assert [note.split(":")[0] for note in profile.notes] == ["copies", "few", "orphans"]
    assert "got 4 constant ones" in profile.notes[0]
    assert "9 clean checkpoints, too few" in profile.notes[1]


def test_few_searches_make_no_trigger_stage(rng):
    clean = [*fleet(rng, 9, triggers=0), *fleet(rng, 15)]
    assert calibrate(clean).cohorts["small"].triggers is None
    clean += fleet(rng, 1, triggers=0)
    found = calibrate(clean).cohorts["small"].triggers
    assert len(found.clean.sha256) == 10
    assert np.isfinite(found.clean.scores).all()


def test_bad_records_are_refused(rng):
    clean = fleet(rng, 12)
    with pytest.raises(DataError, match="got none in calibrate"):
        calibrate([], clean)
    with pytest.raises(DataError, match="got 1 as both"):
        calibrate(clean, clean[:1])
    with pytest.raises(DataError, match=r"expected 4 features, got \(3,\)"):
        calibrate([with_weights(clean[0], np.ones(3)), *clean[1:]])
    with pytest.raises(DataError, match="expected a content hash of every reference, got none for one of small"):
        calibrate([with_hash(clean[0], ""), *clean[1:]])
