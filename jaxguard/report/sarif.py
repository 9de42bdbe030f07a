"""Fleet reports as SARIF 2.1.0, the format in which static analysis tools tell dashboards and code scanning.

One rule, `JG001`. A suspected checkpoint fails it (level `error`); one that is inconclusive leaves it *open*, which the
standard (section 3.27.10) grants no level. A checkpoint without evidence has no result, only its place among the
artifacts: a `pass` would acquit it. What could not be read makes the run a failed one (3.20.21), for then the results
are not complete; skipped files are warnings.

Reference: Static Analysis Results Interchange Format (SARIF) Version 2.1.0 Plus Errata 01, OASIS, 2023.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jaxguard
from jaxguard.report import fleet_wording, sarif_uri, wording
from jaxguard.types import FleetEntry, FleetReport, LayerSummary

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
RULE = "JG001"
UNREADABLE, SKIPPED, NOTE = "JGN01", "JGN02", "JGN03"

Key = tuple[str, str, int]
"""Path, content hash and size: artifacts of a run are unique."""

_DESCRIPTOR = {UNREADABLE: 0, SKIPPED: 1, NOTE: 2}


def to_sarif(report: FleetReport) -> str:
    """Writes a fleet report as one SARIF run.

    Args:
        report: of any size; paths become URIs, relative ones below the base `WORKDIR`, whose place is not told.

    Returns:
        ASCII JSON in one line, ending in a newline. `properties` of a result hold score, p and q value.

    >>> run = json.loads(to_sarif(FleetReport("", "jaxguard scan runs", ())))["runs"][0]
    >>> run["tool"]["driver"]["name"], run["results"], run["invocations"][0]["executionSuccessful"]
    ('jaxguard', [], True)
    """
    counts = fleet_wording.tally(report)
    artifacts = {_key(entry): _artifact(entry) for entry in report.entries}
    places = dict(zip(artifacts, range(len(artifacts)), strict=True))
    run = {
        "tool": {"driver": _driver()},
        "invocations": [
            {
                "commandLine": report.command,
                "executionSuccessful": counts.failed == 0,
                "toolExecutionNotifications": list(_notifications(report, places)),
            }
        ],
        "originalUriBaseIds": {sarif_uri.BASE: {"description": {"text": "The folder that the scan was started in."}}},
        "artifacts": list(artifacts.values()),
        "results": list(_results(report, places)),
        "properties": {
            "title": report.title,
            "verdicts": dict(zip(fleet_wording.VERDICTS, counts, strict=True)),
            "falseDiscoveryRate": report.alpha,
            "profile": report.profile,
            "seconds": report.seconds,
            "bytesRead": report.bytes_read,
            "reused": report.reused,
            "environment": dict(report.environment),
        },
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    text = json.dumps(log, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    text = text.encode("utf-8", "replace").decode(
        "utf-8"
    )  # half a surrogate pair is no Unicode: many parsers refuse it
    return re.sub("[^\0-\x7f]", lambda found: json.dumps(found[0])[1:-1], text) + "\n"


def _driver() -> dict[str, Any]:
    return {
        "name": "jaxguard",
        "version": jaxguard.__version__,
        "semanticVersion": jaxguard.__version__,
        "shortDescription": {"text": "Audits neural-network checkpoints."},
        "rules": [
            {
                "id": RULE,
                "name": "BackdoorSuspected",
                "shortDescription": {"text": "A backdoor is suspected in a checkpoint."},
                "fullDescription": {
                    "text": "The weights score so high among those of models known to be clean that few innocent "
                    "checkpoints would. The p-value says how often one would; the q-value is the smallest false "
                    "discovery rate at which the checkpoint is among the suspected. It is not proven to be backdoored."
                },
                "help": {
                    "text": "Do not deploy the checkpoint. Compare its sha256 with the one its author published; look "
                    "for a trigger with 'jaxguard repair --method neural-cleanse', or take the backdoor out with "
                    "another method of 'jaxguard repair', and scan again."
                },
                "defaultConfiguration": {"level": "error"},
                "properties": {"tags": ["security", "backdoor"]},
            }
        ],
        "notifications": [
            _notice(UNREADABLE, "UnreadableCheckpoint", "A checkpoint could not be read or scored.", "error"),
            _notice(SKIPPED, "SkippedFile", "Nobody looked into a file.", "warning"),
            _notice(NOTE, "Note", "What a reader of the report must know.", "note"),
        ],
    }


def _notice(name: str, title: str, text: str, level: str) -> dict[str, Any]:
    return {"id": name, "name": title, "shortDescription": {"text": text}, "defaultConfiguration": {"level": level}}


def _notifications(report: FleetReport, places: Mapping[Key, int]) -> Iterator[dict[str, Any]]:
    for entry in report.entries:
        if entry.verdict == "error":
            place = _place(entry.uri, places[_key(entry)])
            yield _notification(UNREADABLE, "error", f"Could not be read: {entry.reason}", place)
    for path, why in report.skipped:
        yield _notification(SKIPPED, "warning", f"Skipped: {why}", _place(path))
    for note in report.notes:
        yield _notification(NOTE, "note", note)


def _notification(name: str, level: str, text: str, place: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "descriptor": {"id": name, "index": _DESCRIPTOR[name]},
        "level": level,
        "message": {"text": _message(text)},
        **({"locations": [{"physicalLocation": {"artifactLocation": place}}]} if place is not None else {}),
    }


def _results(report: FleetReport, places: Mapping[Key, int]) -> Iterator[dict[str, Any]]:
    for entry in report.entries:
        index, verdict = places[_key(entry)], fleet_wording.shown(entry.verdict)
        if verdict == "backdoor suspected":
            rank = {"rank": round(100 * (1 - entry.q_value), 6)} if 0 <= entry.q_value <= 1 else {}
            yield _result(entry, index) | {"kind": "fail", "level": "error"} | rank
        elif verdict == "inconclusive":
            yield _result(entry, index) | {"kind": "open", "level": "none"}


def _result(entry: FleetEntry, index: int) -> dict[str, Any]:
    logical = [_logical(layer) for layer in {layer.name: layer for layer in entry.layers}.values()]
    return {
        "ruleId": RULE,
        "ruleIndex": 0,
        "message": {"text": _message(_sentence(entry))},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": _place(entry.uri, index)},
                **({"logicalLocations": logical} if logical else {}),
            }
        ],
        **({"partialFingerprints": {"checkpointSha256/v1": entry.sha256}} if entry.sha256 else {}),
        "properties": {
            **_finite(score=entry.score, pValue=entry.p_value, qValue=entry.q_value, z=entry.z),
            "verdict": entry.verdict,
            "bucket": entry.bucket,
            "architecture": entry.architecture,
            "format": entry.format,
            "triggersSearched": entry.deep,
        },
    }


def _sentence(entry: FleetEntry) -> str:
    numbers = {"score": entry.score, "p": entry.p_value, "q": entry.q_value, "highest channel z-score": entry.z}
    told = ", ".join(f"{name} {value:.3g}" for name, value in numbers.items() if math.isfinite(value))
    verdict = f"{entry.verdict[:1].upper()}{entry.verdict[1:]}"
    return f"{verdict}{f' ({told})' if told else ''}{f': {entry.reason}' if entry.reason else ''}."


def _logical(layer: LayerSummary) -> dict[str, Any]:
    numbers = _finite(z=layer.z, largest=layer.largest, mean=layer.mean, std=layer.std)
    counts = {"channels": layer.channels, "undefined": layer.undefined, "channel": layer.channel, "above": layer.above}
    return {
        "name": layer.name,
        "fullyQualifiedName": layer.name,
        "kind": "layer",
        "properties": {**numbers, **counts},
    }


def _key(entry: FleetEntry) -> Key:
    return entry.uri, entry.sha256, entry.size


def _artifact(entry: FleetEntry) -> dict[str, Any]:
    return {
        "location": _place(entry.uri),
        "length": entry.size,
        "roles": ["analysisTarget"],
        **({"hashes": {"sha-256": entry.sha256}} if entry.sha256 else {}),
    }


def _place(path: str, index: int | None = None) -> dict[str, Any]:
    place: dict[str, Any] = dict(sarif_uri.location(path))
    return place if index is None else place | {"index": index}


def _finite(**numbers: float) -> dict[str, float]:
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def _message(text: str) -> str:
    """Plain text in which nothing is a placeholder or a link: both have a syntax (3.11.5, 3.11.6) names could forge."""
    return wording.printable(text).replace("](", "] (").replace("{", "{{").replace("}", "}}")
