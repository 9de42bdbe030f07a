"""JSON is strict, stable, complete and comes back; lines and Parquet hold every finding."""

import dataclasses
import io
import json
import math
import pathlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from fleets import fleet, hostile, unjudged
from samples import HOSTILE

from jaxguard.errors import JaxguardError
from jaxguard.report import schema
from jaxguard.types import (
    Finding,
    FingerprintMatrix,
    LayerScores,
    LayerSummary,
    Metrics,
    OwnershipReport,
    Provenance,
    PruningPath,
    RecoveredTrigger,
    Reference,
    Repair,
    Report,
    Verdict,
    Verification,
)
from jaxguard.types.findings import LeafAccount

STATES = ("scored", "not a layer", "not understood")
GOLDEN = (pathlib.Path(__file__).parent / "report.golden.json").read_text()
"""Written by hand from the documentation of the fields."""


@pytest.fixture
def small() -> Report:
    first = LayerSummary(
        "conv -> bn", 3, 1, 0.875, math.nan, 1.5, 0, 0.5, 0, math.inf, np.array([1.5, np.nan, 0.25], np.float32)
    )
    layers = (first, LayerSummary("head", 2, 0, 1.0, 0.5, 1.5, 1, 1.0, 1, 1.25))
    finding = Finding(
        Provenance("m.npz", "ab", 12, "npz", "resnet20:width=0.5"), Verdict.INCONCLUSIVE, "no reference profile",
        "resnet20", looks=("weights",), layers=layers, metrics=Metrics(0.75, num_images=4),
        notes=("[1, 2] is a note.\nSecond line.",),
        leaves=(LeafAccount("conv/kernel", "scored", "kernel of conv -> bn", 27, 108),),
    )  # fmt: skip
    options = {"rho": np.float32(2), "sizes": (np.int64(1), 2), "dtype": float}
    tuned = Repair("m.npz", "ft_sam", options, change={"params/kernel": 0.125})
    errors = np.array([0.125, np.inf])
    estimated = LayerScores(
        "conv", np.array([0.5, -0.25]), math.inf, np.array([True, False]), np.zeros(2, bool), errors
    )
    trigger = RecoveredTrigger(
        norms=np.array([1.33333, 9, 10]),
        success=np.array([1, 0.5, np.nan]),
        anomaly=np.array([2.5, 0, -np.inf]),
        target=0,
        shown=np.array([0]),
        masks=np.full((1, 1, 2, 1), 2 / 3, np.float32),
        patterns=np.array([[[[0.25, 0.5, 1], [0, 0, 0]]]], np.float32),
        source="10 clean images",
    )
    path = PruningPath(
        channels=("conv[0]", "conv[1]"),
        values=estimated.scores,
        errors=errors,
        attack=np.array([1, 0.25, 0]),
        accuracy=np.array([0.75, 0.75, 0.5]),
        chosen=1,
        stop="enough",
    )
    pruned = Repair("m.npz", "shapley", {}, (estimated,), trigger=trigger, path=path)
    verification = Verification("s.npz", "ef", 0.125, -0.125, 0.25, None, Verdict.INCONCLUSIVE)
    judged = OwnershipReport(
        "m.npz", "ab", "cd", "zest", {"images": np.int64(128)}, 128, 0.05, np.array([-0.5, -0.25]), ("a", "b"),
        (verification,), "copies", "others",
    )  # fmt: skip
    distances = np.array([[0.125, np.nan]])
    matrix = FingerprintMatrix("sac", {}, ("m.npz",), ("s.npz", "t.npz"), distances, -distances, 0.5)
    return Report(
        "Audit", "jaxguard repair m.npz", (finding,), (tuned, pruned), (judged,), (matrix,),
        skipped=(("notes.txt", "no checkpoint"),), profile="p.json",
        references=(Reference("resnet20", np.array([0.5, 0.25]), np.zeros(0), math.nan, (0.0, 1.0)),),
        seconds=0.5, bytes_read=12, notes=("All.",), environment={"jax": "0.10.2"},
    )  # fmt: skip


def assert_equal(one, other, where="report"):
    """Compares values field by field: NaN equals NaN, images to the decimals that are written."""
    if dataclasses.is_dataclass(one):
        assert type(one) is type(other), where
        for item in dataclasses.fields(one):
            assert_equal(getattr(one, item.name), getattr(other, item.name), f"{where}.{item.name}")
    elif isinstance(one, np.ndarray):
        np.testing.assert_allclose(other, one, rtol=0, atol=0.5e-5 if one.ndim == 4 else 0, err_msg=where)
        assert (one.dtype == bool) == (other.dtype == bool), where
    elif isinstance(one, tuple):
        assert len(one) == len(other), where
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_equal(left, right, f"{where}[{index}]")
    elif isinstance(one, float) and math.isnan(one):
        assert math.isnan(other), where
    else:
        assert type(one) is type(other), where
        assert one == other, where


def strict(text: str):
    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    assert text.isascii()
    return json.loads(text, parse_constant=refuse)


def test_golden_document(small):
    assert schema.to_json(small) == GOLDEN


def test_reading_the_golden_document(small):
    report = schema.from_json(GOLDEN)
    layers = report.findings[0].layers
    assert layers[0].threshold == math.inf
    np.testing.assert_array_equal(layers[0].scores, [1.5, np.nan, 0.25])
    assert layers[1].scores is None
    assert report.findings[0].verdict is Verdict.INCONCLUSIVE
    assert report.references[0].interval == (0.0, 1.0)
    repair = report.repairs[1]
    assert repair.trigger is not None and repair.path is not None
    assert repair.trigger.shown.dtype.kind == "i"
    assert repair.layers[0].mask.dtype == bool
    assert (repair.trigger.masks.shape, repair.trigger.patterns.shape) == ((1, 1, 2, 1), (1, 1, 2, 3))
    np.testing.assert_array_equal(repair.trigger.anomaly, [2.5, 0, np.nan])
    np.testing.assert_array_equal(repair.layers[0].errors, [0.125, np.nan])  # an infinite error is one not known
    assert report.ownerships[0].verifications == small.ownerships[0].verifications
    np.testing.assert_array_equal(report.matrices[0].scores, small.matrices[0].scores)
    assert schema.to_json(report) == GOLDEN


def test_round_trip(any_report):
    text = schema.to_json(any_report)
    assert strict(text)["schema"] == schema.SCHEMA
    assert_equal(any_report, schema.from_json(text))
    assert schema.to_json(schema.from_json(text)) == text


SCANS = (fleet(60), unjudged(), hostile(HOSTILE), hostile("\udcff\u2028\n"), Report(""))


@pytest.mark.parametrize("report", SCANS)
def test_a_fleet_comes_back_and_has_a_line_per_finding(report):
    text = schema.to_json(report)
    document = strict(text)
    assert list(document) == ["schema", *(item.name for item in dataclasses.fields(Report)), "accounts"]
    assert_equal(report, schema.from_json(text))
    lines = list(schema.to_jsonl(report))
    assert not any("\n" in line for line in lines)
    found = [strict(line) for line in lines]
    for line, listed, finding in zip(found, document["findings"], report.findings, strict=False):
        counts = line.pop("leaves")
        assert line == {name: value for name, value in listed.items() if name != "leaves"}
        assert sum(counts[state]["leaves"] for state in STATES if finding.leaves) == len(finding.leaves)
        assert counts["left out"] == {"entries": len(finding.left_out)}
    assert found[len(report.findings) :] == [
        {"provenance": {"name": path}, "verdict": "skipped", "reason": why} for path, why in report.skipped
    ]


def test_lines_come_one_by_one():
    """Only what is read is made: the second finding cannot be written, the first is there before."""
    (first,) = fleet(1, suspected=0, errors=0).findings
    lines = schema.to_jsonl(Report("", "", (first, object())))  # pyright: ignore[reportArgumentType]
    assert strict(next(lines))["provenance"]["name"] == first.provenance.name


@pytest.mark.parametrize("report", [fleet(40), hostile("\udcff"), Report("")])
def test_parquet_has_a_row_per_finding_and_the_rest_beside_them(report):
    table = pq.read_table(io.BytesIO(schema.to_parquet(report)))
    rows = table.to_pylist()
    assert len(rows) == len(report.findings)
    for row, one in zip(rows, report.findings, strict=True):
        assert not {"layers", "trigger", "provenance", "metrics", "leaves"} & row.keys()
        assert sum(row[state] or 0 for state in STATES) == len(one.leaves) and row["left out"] == len(one.left_out)
        expected = dataclasses.asdict(one.provenance) | {name: getattr(one, name) for name in row if hasattr(one, name)}
        for name, value in expected.items():
            if isinstance(value, float):
                assert row[name] == (value if math.isfinite(value) else None)
            elif isinstance(value, tuple):
                assert row[name] == [text.replace("\udcff", "\\xff") for text in value]
            else:
                assert row[name] == (value.replace("\udcff", "\\xff") if isinstance(value, str) else value)
    rest = schema.from_json(table.schema.metadata[b"jaxguard.report"].decode())
    assert_equal(dataclasses.replace(report, findings=()), rest)


def test_parquet_holds_metrics(full):
    rows = pq.read_table(io.BytesIO(schema.to_parquet(full))).to_pylist()
    assert [(row["acc"], row["asr"], row["ra"]) for row in rows] == [(0.989, 0.997, 0.003), (0.978, None, None)]


def test_documents_of_older_versions_are_read(small):
    document = json.loads(GOLDEN)
    del document["ownerships"], document["matrices"], document["findings"][0]["layers"][1]["scores"]
    for repair in document["repairs"]:
        del repair["trigger"], repair["path"]
        for layer in repair["layers"]:
            del layer["errors"]
    report = schema.from_json(json.dumps(document))
    assert (report.ownerships, report.matrices) == ((), ())
    pruned = report.repairs[1]
    assert (pruned.trigger, pruned.path, pruned.layers[0].errors) == (None, None, None)
    np.testing.assert_array_equal(pruned.layers[0].scores, small.repairs[1].layers[0].scores)


def test_unknown_keys_are_ignored():
    document = json.loads(GOLDEN) | {"added_later": 1}
    document["repairs"][1]["trigger"]["added_later"] = document["findings"][0]["added_later"] = [1]
    assert schema.to_json(schema.from_json(json.dumps(document))) == GOLDEN


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "got None at key 'schema'"),
        ('{"schema": "jaxguard.report/1"}', "got 'jaxguard.report/1'"),
        ('{"schema": "jaxguard.report/2"}', "expected key 'title'"),
        ('{"schema": "jaxguard.report/2", "title": 3}', "at report.title"),
        ('{"schema": "jaxguard.report/2", "title": "", "findings": {}}', "at report.findings"),
        ('{"schema": "jaxguard.report/2", "title": "", "findings": [4]}', "at report.findings[0]"),
        ('{"schema": "jaxguard.report/2", "title": "", "environment": {"a": 1}}', "report.environment.a"),
        ('{"schema": "jaxguard.report/2", "title": "", "alpha": NaN}', "NaN is not JSON"),
        ('{"schema": "jaxguard.report/2", "title": "", "skipped": [["a"]]}', "at report.skipped[0]"),
    ],
)  # fmt: skip
def test_bad_documents_name_the_place(text, words):
    with pytest.raises(JaxguardError) as caught:
        schema.from_json(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ('"distance":0.125', '"distance":"near"', r"report\.ownerships\[0\]\.verifications\[0\]\.distance"),
        ('"null_p_value":null', '"null_p_value":[]', r"verifications\[0\]\.null_p_value"),
        ("[-0.5,-0.25]", "[[1],[2,3]]", r"report\.ownerships\[0\]\.references"),
        ('"num_probes":128', '"num_probes":1.5', r"report\.ownerships\[0\]\.num_probes"),
        ("[-0.125,null]", '["x"]', r"report\.matrices\[0\]\.scores"),
        ("[1.5,null,0.25]", "[[1],[2,3]]", r"report\.findings\[0\]\.layers\[0\]\.scores"),
        ('"verdict":"inconclusive"', '"verdict":"clean"', r"no evidence, .* at report\.findings\[0\]\.verdict"),
        *(
            ('"shown":[0]', f'"shown":{shown}', r"report\.repairs\[1\]\.trigger\.shown")
            for shown in ("[0.5]", '["0"]', "[true]", "[null]", f"[{10**30}]", "[[0]]")
        ),
    ],
)  # fmt: skip
def test_bad_values_name_the_place(old, new, where):
    assert old in GOLDEN
    with pytest.raises(JaxguardError, match=where):
        schema.from_json(GOLDEN.replace(old, new))


def test_accounts_are_written_once_for_all_findings_that_share_them(small):
    (finding,) = small.findings
    other = dataclasses.replace(finding, leaves=(*finding.leaves, LeafAccount("b", "not a layer", "bias", 3, 12)))
    equal = dataclasses.replace(finding, leaves=(finding.leaves[0],))
    report = dataclasses.replace(small, findings=(finding, other, equal, dataclasses.replace(finding, leaves=())))
    text = schema.to_json(report)
    document = json.loads(text)
    assert [one["leaves"] for one in document["findings"]] == [0, 1, 0, None] and len(document["accounts"]) == 2
    assert [one.leaves for one in schema.from_json(text).findings] == [one.leaves for one in report.findings]
    document["findings"][0]["leaves"] = 2
    with pytest.raises(JaxguardError, match="number below 2"):
        schema.from_json(json.dumps(document))
