"""Triggers are searched in checkpoints that are left undecided, once each, and count beside what weights say."""

import numpy as np
import pytest

from jaxguard.detection import deep, judging
from jaxguard.detection.calibration import calibrate
from jaxguard.detection.profile import from_json, to_json
from jaxguard.fleet import looks, scan, telling
from jaxguard.types import Verdict
from tests.fleet import stores

REFERENCES = 24
SETTINGS = scan.Settings(arch=stores.MLP, input_shape=stores.SHAPES[stores.MLP])
SEARCH = looks.triggers()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    for seed in range(REFERENCES + 4):
        stores.write(folder / f"{seed:02d}.safetensors", stores.leaves(seed))
    stores.write(folder / "stranger.safetensors", stores.stranger())
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


def paths(store, numbers):
    return [str(store / f"{number:02d}.safetensors") for number in numbers]


@pytest.fixture(scope="module")
def profile(store, results):
    with scan.scan(paths(store, range(REFERENCES)), out=results, settings=SETTINGS) as found:
        features = looks.take(SEARCH, found.rows, found, SETTINGS)
        asked = frozenset(found.feature_names)
        answers = looks.take(looks.answers(), found.rows, found, SETTINGS)
        known = telling.Looks(asked, answers, features, SEARCH.names)
        return calibrate(
            telling.records_of(found, known), names=telling.names_of(found, known), deep_names=SEARCH.names
        )


def test_the_undecided_come_first_and_those_that_a_search_cannot_change_never(store, results, profile):
    stores.write(store / "copy.safetensors", stores.leaves(1))
    with scan.scan([str(store)], out=results) as found:
        scored = [row for row in found.rows if not row.error]
        names = [row.uri.rpartition("/")[2] for row in scored]
        judged = telling.judged(found, None)
        judged.scores[:] = 0
        judged.p_values[:] = np.linspace(0.9, 0.1, len(scored))
        said = dict(zip(names, judged.verdicts, strict=True))
        said |= {"20.safetensors": Verdict.SUSPECTED, "19.safetensors": Verdict.NO_EVIDENCE}
        judged.p_values[names.index("18.safetensors")] = np.nan
        judged.scores[names.index("16.safetensors")] = 5
        judged.p_values[names.index("16.safetensors")] = judged.p_values[names.index("17.safetensors")]
        judged = telling.replace(judged, verdicts=tuple(said.values()))
        chosen = looks.undecided(found, judged, profile, judging.ALPHA)
        expected = [f"{k:02d}.safetensors" for k in (27, 26, 25, 24, 23, 22, 21, 19, 16, 17, *range(15, 1, -1))]
        # The copy has the smallest p-value of all, "stranger" is of another architecture.
        assert names[-2:] == ["copy.safetensors", "stranger.safetensors"]
        assert [row.uri.rpartition("/")[2] for row in chosen] == ["copy.safetensors", *expected, "00.safetensors"]
        # With 24 references nobody is accused at 1 %, whatever a search finds.
        assert looks.undecided(found, judged, profile, 0.01) == []
    (store / "copy.safetensors").unlink()


def test_a_content_is_searched_once(store, results, monkeypatch):
    searched = []
    monkeypatch.setattr(deep, "deep_features", lambda *a, **k: searched.append(1) or np.ones(len(deep.NAMES)))
    with scan.scan(paths(store, [25]), out=results, settings=SETTINGS) as found:
        first = looks.take(SEARCH, found.rows, found, SETTINGS)
        again = looks.take(SEARCH, found.rows, found, SETTINGS)
        assert len(searched) == 1 and first.keys() >= {found.rows[0].sha256}
        np.testing.assert_array_equal(again[found.rows[0].sha256], np.ones(len(deep.NAMES)))
        images = looks.triggers(np.zeros((2, 4, 4, 1), np.float32))
        looks.take(images, found.rows, found, SETTINGS)  # other images, other features
        assert len(searched) == 2
        assert not set(images.names) & set(SEARCH.names)


def test_a_checkpoint_that_cannot_be_searched_is_told_and_passed_over(store, tmp_path):
    with scan.scan([str(store / "stranger.safetensors"), *paths(store, [1])], out=tmp_path) as found:
        told = []
        features = looks.take(SEARCH, found.rows, found, scan.Settings(), say=told.append)
    assert len(features) == 1
    assert len(told) == 1 and "stranger" in told[0] and "--arch" in told[0]


def test_what_was_searched_is_judged_by_the_search_under_a_bucket_of_its_own(store, results, profile):
    assert from_json(to_json(profile), "profile").digest == profile.digest
    with scan.scan(paths(store, range(REFERENCES, REFERENCES + 4)), out=results, settings=SETTINGS) as found:
        assert set(telling.judged(found, profile).verdicts) == {Verdict.INCONCLUSIVE}  # nobody asked for answers
        asked = looks.asked(profile)
        assert asked == frozenset(found.feature_names)
        answers = looks.take(looks.answers(), found.rows, found, SETTINGS)
        first = telling.judged(found, profile, telling.Looks(asked, answers, trigger_names=SEARCH.names))
        rows = looks.undecided(found, first, profile, judging.ALPHA)[:2]
        features = looks.take(SEARCH, rows, found, SETTINGS)
        chosen = {row.sha256: features[row.sha256] for row in rows}
        judged = telling.judged(found, profile, telling.Looks(asked, answers, chosen, SEARCH.names))
        report = telling.report(
            found,
            judged,
            title="",
            command="",
            alpha=judging.ALPHA,
            control=judging.FDR,
            references=telling.references(profile, judging.ALPHA, deep=True),
        )
    searched = {one.provenance.sha256: one for one in report.findings if "triggers" in one.looks}
    assert searched.keys() == chosen.keys()
    bucket = found.rows[0].bucket
    assert {one.group for one in searched.values()} == {bucket + telling.SEARCHED}
    assert {one.group: len(one.scores) for one in report.references} == {
        bucket: REFERENCES,
        bucket + telling.SEARCHED: REFERENCES,
    }
    assert all(0 < one.p_value <= 1 for one in report.findings)
    by_weights = {row.sha256: p for row, p in zip(found.rows, first.p_values, strict=True)}
    for one in report.findings:
        before, is_searched = by_weights[one.provenance.sha256], "triggers" in one.looks
        assert one.p_value <= before if is_searched else one.p_value == before
