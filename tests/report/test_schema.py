"""The JSON form is strict, stable and complete."""

import dataclasses
import json
import math

import numpy as np
import pytest

from jaxguard.errors import JaxguardError
from jaxguard.report import schema
from jaxguard.types import (
    AuditReport,
    FingerprintMatrix,
    LayerScores,
    Metrics,
    OwnershipReport,
    PruningPath,
    RecoveredTrigger,
    RepairReport,
    ScanReport,
    Verification,
)

GOLDEN = """{
  "schema": "jaxguard.audit/1",
  "title": "Audit",
  "command": "jaxguard repair m.npz",
  "scans": [
    {
      "checkpoint": "m.npz",
      "sha256": "ab",
      "architecture": "resnet20:width=0.5",
      "method": "clp",
      "verdict": "inconclusive",
      "score": null,
      "layers": [
        {
          "name": "conv -> bn",
          "scores": [1.5, null, 0.25],
          "threshold": null,
          "mask": [true, false, false],
          "undefined": [false, true, false],
          "errors": null
        }
      ],
      "notes": [
        "[1, 2] is a note.\\nSecond line."
      ],
      "seconds": 0.5,
      "metrics": {
        "acc": 0.75,
        "asr": null,
        "ra": null,
        "num_images": 4,
        "num_triggered": 0
      }
    }
  ],
  "repairs": [
    {
      "checkpoint": "m.npz",
      "method": "ft_sam",
      "options": {
        "rho": 2.0,
        "sizes": [1, 2],
        "dtype": "<class 'float'>"
      },
      "layers": [],
      "change": {
        "params/kernel": 0.125
      },
      "before": null,
      "after": null,
      "der": null,
      "notes": [],
      "seconds": 0.0,
      "trigger": null,
      "path": null
    },
    {
      "checkpoint": "m.npz",
      "method": "shapley",
      "options": {},
      "layers": [
        {
          "name": "conv",
          "scores": [0.5, -0.25],
          "threshold": null,
          "mask": [true, false],
          "undefined": [false, false],
          "errors": [0.125, null]
        }
      ],
      "change": {},
      "before": null,
      "after": null,
      "der": null,
      "notes": [],
      "seconds": 0.0,
      "trigger": {
        "norms": [1.33333, 9.0, 10.0],
        "success": [1.0, 0.5, null],
        "anomaly": [2.5, 0.0, null],
        "target": 0,
        "shown": [0],
        "masks": [
          [
            [
              [0.66667],
              [0.66667]
            ]
          ]
        ],
        "patterns": [
          [
            [
              [0.25, 0.5, 1.0],
              [0.0, 0.0, 0.0]
            ]
          ]
        ],
        "source": "10 clean images"
      },
      "path": {
        "channels": [
          "conv[0]",
          "conv[1]"
        ],
        "values": [0.5, -0.25],
        "errors": [0.125, null],
        "attack": [1.0, 0.25, 0.0],
        "accuracy": [0.75, 0.75, 0.5],
        "chosen": 1,
        "stop": "enough"
      }
    }
  ],
  "trigger": null,
  "ownerships": [],
  "matrices": [],
  "environment": {
    "jax": "0.10.2"
  }
}
"""


@pytest.fixture
def small() -> AuditReport:
    layer = LayerScores(
        "conv -> bn",
        np.array([1.5, np.nan, 0.25], np.float32),
        math.inf,
        np.array([True, False, False]),
        np.array([False, True, False]),
    )
    notes = ("[1, 2] is a note.\nSecond line.",)
    scan = ScanReport(
        "m.npz", "ab", "resnet20:width=0.5", "clp", "inconclusive", math.nan, (layer,),
        notes, 0.5, Metrics(0.75, num_images=4),
    )  # fmt: skip
    options = {"rho": np.float32(2), "sizes": (np.int64(1), 2), "dtype": float}
    tuned = RepairReport("m.npz", "ft_sam", options, change={"params/kernel": 0.125})
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
    pruned = RepairReport("m.npz", "shapley", {}, (estimated,), trigger=trigger, path=path)
    return AuditReport("Audit", "jaxguard repair m.npz", (scan,), (tuned, pruned), environment={"jax": "0.10.2"})


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
        assert one == other, where


def test_golden_document(small):
    assert schema.to_json(small) == GOLDEN


def test_reading_the_golden_document(small):
    report = schema.from_json(GOLDEN)
    layer = report.scans[0].layers[0]
    assert layer.threshold == math.inf
    assert layer.mask.dtype == bool
    np.testing.assert_array_equal(layer.scores, [1.5, np.nan, 0.25])
    assert layer.errors is None
    assert math.isnan(report.scans[0].score)
    assert schema.to_json(report) == GOLDEN


def test_what_an_inversion_found_is_read_as_it_was_written():
    repair = schema.from_json(GOLDEN).repairs[1]
    assert repair.trigger is not None and repair.path is not None
    assert repair.trigger.target == 0
    assert repair.trigger.shown.dtype.kind == "i"
    assert (repair.trigger.masks.shape, repair.trigger.patterns.shape) == ((1, 1, 2, 1), (1, 1, 2, 3))
    np.testing.assert_array_equal(repair.trigger.anomaly, [2.5, 0, np.nan])
    assert repair.path.channels == ("conv[0]", "conv[1]")
    np.testing.assert_array_equal(repair.layers[0].errors, [0.125, np.nan])  # an infinite error is one not known


def test_documents_of_older_versions_are_read(small):
    document = json.loads(GOLDEN)
    del document["ownerships"], document["matrices"]
    for repair in document["repairs"]:
        del repair["trigger"], repair["path"]
        for layer in repair["layers"]:
            del layer["errors"]
    report = schema.from_json(json.dumps(document))
    assert (report.ownerships, report.matrices) == ((), ())
    pruned = report.repairs[1]
    assert (pruned.trigger, pruned.path, pruned.layers[0].errors) == (None, None, None)
    np.testing.assert_array_equal(pruned.layers[0].scores, small.repairs[1].layers[0].scores)


JUDGED = """{
  "schema": "jaxguard.audit/1",
  "title": "",
  "command": "",
  "scans": [],
  "repairs": [],
  "trigger": null,
  "ownerships": [
    {
      "owner": "m.npz",
      "owner_sha256": "ab",
      "certificate": "cd",
      "method": "zest",
      "options": {
        "images": 128
      },
      "num_probes": 128,
      "alpha": 0.05,
      "references": [-0.5, -0.25],
      "reference_names": [
        "a",
        "b"
      ],
      "verifications": [
        {
          "suspect": "s.npz",
          "sha256": "ef",
          "distance": 0.125,
          "score": -0.125,
          "p_value": 0.25,
          "null_p_value": null,
          "verdict": "inconclusive"
        }
      ],
      "sees": "copies",
      "blind": "others",
      "notes": [],
      "seconds": 0.0
    }
  ],
  "matrices": [
    {
      "method": "sac",
      "options": {},
      "owners": [
        "m.npz"
      ],
      "suspects": [
        "s.npz",
        "t.npz"
      ],
      "distances": [
        [0.125, null]
      ],
      "scores": [
        [-0.125, null]
      ],
      "seconds": 0.5
    }
  ],
  "environment": {}
}
"""


def test_ownership_is_written_and_read():
    verification = Verification("s.npz", "ef", 0.125, -0.125, 0.25, None, "inconclusive")
    judged = OwnershipReport(
        "m.npz", "ab", "cd", "zest", {"images": np.int64(128)}, 128, 0.05, np.array([-0.5, -0.25]), ("a", "b"),
        (verification,), "copies", "others",
    )  # fmt: skip
    distances = np.array([[0.125, np.nan]])
    matrix = FingerprintMatrix("sac", {}, ("m.npz",), ("s.npz", "t.npz"), distances, -distances, 0.5)
    assert schema.to_json(AuditReport("", "", ownerships=(judged,), matrices=(matrix,))) == JUDGED
    read = schema.from_json(JUDGED)
    assert read.ownerships[0].verifications == (verification,)
    np.testing.assert_array_equal(read.ownerships[0].references, [-0.5, -0.25])
    np.testing.assert_array_equal(read.matrices[0].scores, -distances)


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ('"distance": 0.125', '"distance": "near"', r"report\.ownerships\[0\]\.verifications\[0\]\.distance"),
        ('"null_p_value": null', '"null_p_value": []', r"verifications\[0\]\.null_p_value"),
        ("[-0.5, -0.25]", "[[1], [2, 3]]", r"report\.ownerships\[0\]\.references"),
        ('"num_probes": 128', '"num_probes": 1.5', r"report\.ownerships\[0\]\.num_probes"),
        ("[-0.125, null]", '["x"]', r"report\.matrices\[0\]\.scores"),
    ],
)
def test_bad_ownership_names_the_place(old, new, where):
    assert old in JUDGED
    with pytest.raises(JaxguardError, match=where):
        schema.from_json(JUDGED.replace(old, new))


def test_round_trip(any_report):
    text = schema.to_json(any_report)
    assert_equal(any_report, schema.from_json(text))
    assert schema.to_json(schema.from_json(text)) == text


def test_strict_and_ascii(any_report):
    def reject(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    text = schema.to_json(any_report)
    assert text.isascii()
    assert json.loads(text, parse_constant=reject)["schema"] == "jaxguard.audit/1"


def test_unknown_keys_are_ignored(small):
    document = json.loads(schema.to_json(small)) | {"added_later": 1}
    document["repairs"][1]["trigger"]["added_later"] = document["repairs"][1]["path"]["added_later"] = [1]
    assert schema.to_json(schema.from_json(json.dumps(document))) == GOLDEN


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "got None at key 'schema'"),
        ('{"schema": "jaxguard.audit/2"}', "'jaxguard.audit/2'"),
        ('{"schema": "jaxguard.audit/1", "title": "x"}', "expected key 'command'"),
        ('{"schema": "jaxguard.audit/1", "title": 3, "command": ""}', "at report.title"),
        ('{"schema": "jaxguard.audit/1", "title": "", "command": "", "scans": {}}', "at report.scans"),
        ('{"schema": "jaxguard.audit/1", "title": "", "command": "", "scans": [4]}', "at report.scans[0]"),
        ('{"schema": "jaxguard.audit/1", "title": "", "command": "", "environment": {"a": 1}}', "report.environment.a"),
    ],
)  # fmt: skip
def test_bad_documents_name_the_place(text, words):
    with pytest.raises(JaxguardError) as caught:
        schema.from_json(text)
    assert words in str(caught.value)


def test_ragged_arrays_are_refused():
    with pytest.raises(JaxguardError, match=r"report\.scans\[0\]\.layers\[0\]\.scores"):
        schema.from_json(GOLDEN.replace("[1.5, null, 0.25]", "[[1], [2, 3]]"))


@pytest.mark.parametrize("shown", ["[0.5]", '["0"]', "[true]", "[null]", f"[{10**30}]", "[[0]]"])
def test_class_numbers_are_whole(shown):
    with pytest.raises(JaxguardError, match=r"report\.repairs\[1\]\.trigger\.shown"):
        schema.from_json(GOLDEN.replace('"shown": [0]', f'"shown": {shown}'))
