"""From rows and judgements to a report: each row its own verdict, errors among them, layers for those asked about."""

import math

import numpy as np
import pytest
import stores

from jaxguard.fleet import telling
from jaxguard.fleet.scan import scan as scan_fleet
from jaxguard.types import Reference, Verdict


@pytest.fixture
def found(tmp_path):
    """Good ones with a bad one between them, and a copy."""
    paths = stores.store(tmp_path, 4)
    (tmp_path / "0001-bad.pt").touch()
    stores.write(tmp_path / "copy.safetensors", stores.leaves(0))
    (tmp_path / "notes.md").write_text("notes")
    assert len(paths) == 4
    with scan_fleet([str(tmp_path)]) as result:
        yield result


def told(found, judgements, **more):
    return telling.report(found, judgements, title="t", command="c", alpha=0.1, control="fdr", **more)


def test_each_row_has_the_judgement_of_its_own(found):
    judgements = telling.judged(found, None)
    count = len(judgements.verdicts)
    assert count == 5
    judgements.scores[:] = np.arange(count)
    judgements.p_values[:] = np.arange(count) / 10
    report = told(found, judgements)
    names = [one.provenance.name.rpartition("/")[2] for one in report.findings]
    assert names == [row.uri.rpartition("/")[2] for row in found.rows]
    bad = names.index("0001-bad.pt")
    assert [one.score for k, one in enumerate(report.findings) if k != bad] == list(range(count))
    assert [one.p_value for k, one in enumerate(report.findings) if k != bad] == [k / 10 for k in range(count)]
    error = report.findings[bad]
    assert error.verdict == Verdict.ERROR
    assert "empty file" in error.reason
    assert math.isnan(error.z)
    assert [path.rpartition("/")[2] for path, _ in report.skipped] == ["notes.md"]
    assert (report.alpha, report.bytes_read, report.reused) == (0.1, found.bytes_read, 0)
    assert report.notes == judgements.notes


def test_layers_are_kept_for_the_suspected_and_the_highest(found, monkeypatch):
    monkeypatch.setattr(telling, "SHOWN", 1)
    judgements = telling.judged(found, None)
    judgements.scores[:] = [5, 1, 2, 3, 4]
    verdicts = (*judgements.verdicts[:3], Verdict.SUSPECTED, judgements.verdicts[4])
    report = told(found, telling.replace(judgements, verdicts=verdicts))
    scored = [one for one in report.findings if one.verdict is not Verdict.ERROR]
    assert [bool(one.layers) for one in scored] == [True, False, False, True, False]
    (layer,) = scored[0].layers
    assert layer.name == "fc1"
    assert layer.channels == 8
    assert layer.z == pytest.approx(scored[0].z)


def test_records_are_the_rows_that_were_scored(found):
    records = telling.records_of(found)
    rows = [row for row in found.rows if not row.error]
    assert [(one.bucket, one.sha256) for one in records] == [(row.bucket, row.sha256) for row in rows]
    for record, row in zip(records, rows, strict=True):
        np.testing.assert_array_equal(record.features, row.features)
        assert len(record.features) == len(telling.names_of(found)[record.bucket])


def test_references_of_other_architectures_are_left_out(found):
    known = [Reference(bucket, np.zeros(3), np.zeros(0), math.nan, (0.0, 1.0)) for bucket in ("vgg", "here")]
    here = found.rows[0].bucket
    references = (known[0], telling.replace(known[1], group=here))
    report = told(found, telling.judged(found, None), references=references)
    assert [one.group for one in report.references] == [here]
