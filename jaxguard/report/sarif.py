"""Reports as SARIF 2.1.0, the format in which static analysis tools talk to dashboards and code scanning.

Three rules: `JG001` of findings, `JG002` of suspects judged by a certificate, `JG003` of code that a loader would run,
first of all results. Who is suspected fails the rule (level
`error`); one that is inconclusive leaves it *open*, which the standard (section 3.27.10) grants no level. A checkpoint
without evidence has no result, only its place among the artifacts: a `pass` would acquit it. What could not be scored
makes the run a failed one (3.20.21), for then the results are not complete; skipped files are warnings. The format has
no place for repairs and matrices: notes say what became of them.

Reference: Static Analysis Results Interchange Format (SARIF) Version 2.1.0 Plus Errata 01, OASIS, 2023.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import jaxguard
from jaxguard.report import headlines, sarif_uri, wording
from jaxguard.types import Finding, LayerSummary, OwnershipReport, Report, Verdict, Verification
from jaxguard.types.findings import UNCLEAR

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
BACKDOOR, COPY, CODE = "JG001", "JG002", "JG003"
UNREADABLE, SKIPPED, NOTE = "JGN01", "JGN02", "JGN03"

Key = tuple[str, str, int]
"""Path, content hash and size: artifacts of a run are unique."""

_INDEX = {
    name: index for names in ((BACKDOOR, COPY, CODE), (UNREADABLE, SKIPPED, NOTE)) for index, name in enumerate(names)
}


def to_sarif(report: Report) -> str:
    """Writes a report as one SARIF run.

    Args:
        report: of any size; paths become URIs, relative ones below the base `WORKDIR`, whose place is not named.

    Returns:
        ASCII JSON in one line, ending in a newline. `properties` of a result hold score, p and q value.

    >>> run = json.loads(to_sarif(Report("", "jaxguard scan runs")))["runs"][0]
    >>> run["tool"]["driver"]["name"], run["results"], run["invocations"][0]["executionSuccessful"]
    ('jaxguard', [], True)
    """
    keys = [_key(finding) for finding in report.findings]
    keys += [(found.suspect, found.sha256, -1) for one in report.ownerships for found in one.verifications]
    places = {key: index for index, key in enumerate(dict.fromkeys(keys))}
    counts = headlines.tally(report)
    run = {
        "tool": {"driver": _driver()},
        "invocations": [
            {
                "commandLine": report.command,
                "executionSuccessful": counts[Verdict.ERROR] == 0,
                "toolExecutionNotifications": list(_notifications(report, places)),
            }
        ],
        "originalUriBaseIds": {sarif_uri.BASE: {"description": {"text": "The folder that the scan was started in."}}},
        "artifacts": [_artifact(*key) for key in places],
        "results": list(_results(report, places)),
        "properties": {
            "title": report.title,
            "verdicts": counts,
            "errorRate": report.alpha,
            "errorControl": report.control,
            "profile": report.profile,
            "seconds": report.seconds,
            "bytesRead": report.bytes_read,
            "reused": report.reused,
            "environment": dict(report.environment),
        },
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    text = json.dumps(log, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    # Half a surrogate pair is not Unicode: many parsers refuse it.
    text = text.encode("utf-8", "replace").decode("utf-8")
    return re.sub("[^\0-\x7f]", lambda found: json.dumps(found[0])[1:-1], text) + "\n"


def _driver() -> dict[str, Any]:
    return {
        "name": "jaxguard",
        "version": jaxguard.__version__,
        "semanticVersion": jaxguard.__version__,
        "shortDescription": {"text": "Audits neural-network checkpoints."},
        "rules": [
            _rule(
                BACKDOOR,
                "BackdoorSuspected",
                "A backdoor is suspected in a checkpoint.",
                "It scores so high among networks known to be clean that few clean checkpoints would, or one universal "
                "trigger is far more effective than those of its other classes. The p-value says how often a clean one "
                "would score as high; the q-value is the smallest false discovery rate at which the checkpoint is "
                "among the suspected. It is not proven to be backdoored.",
                "Do not deploy the checkpoint. Compare its sha256 with the one its author published; look for a "
                "trigger with 'jaxguard repair --method neural-cleanse', or take the backdoor out with another method "
                "of 'jaxguard repair', and scan again.",
            ),
            _rule(
                COPY,
                "CopySuspected",
                "A model is suspected to be a copy of the owner's.",
                "Its answers are so much like the owner's that few independent models' would be. The p-value says how "
                "often one would score as high. It is not proven to be a copy.",
                "Ask for its origin. Compare it with more independent models, and by another method of 'jaxguard "
                "fingerprint'.",
            ),
            _rule(
                CODE,
                "CodeExecution",
                "Loading a file runs code from it.",
                "The file calls a function that no model needs to be rebuilt, or carries code of its own. jaxguard ran "
                "nothing of it; whatever loads the file without such care would.",
                "Do not load the file. Get the weights as safetensors, or save them again from a source you trust.",
            ),
        ],
        "notifications": [
            _notice(UNREADABLE, "UnscoredCheckpoint", "A checkpoint could not be read or scored.", "error"),
            _notice(SKIPPED, "SkippedFile", "A file was not opened.", "warning"),
            _notice(NOTE, "Note", "What a reader of the report must know.", "note"),
        ],
    }


def _rule(name: str, title: str, short: str, full: str, help: str) -> dict[str, Any]:
    return {
        "id": name,
        "name": title,
        "shortDescription": {"text": short},
        "fullDescription": {"text": full},
        "help": {"text": help},
        "defaultConfiguration": {"level": "error"},
        "properties": {"tags": ["security"]},
    }


def _notice(name: str, title: str, text: str, level: str) -> dict[str, Any]:
    return {"id": name, "name": title, "shortDescription": {"text": text}, "defaultConfiguration": {"level": level}}


def _notifications(report: Report, places: dict[Key, int]) -> Iterator[dict[str, Any]]:
    is_searched = any(one.search is not None for one in report.findings)
    for one in report.findings:
        if is_searched and one.unsearched:
            told = f"No triggers were searched: {one.unsearched}"
            yield _notification(NOTE, "note", told, _place(one.provenance.name, places[_key(one)]))
        if one.verdict is Verdict.ERROR:
            place = _place(one.provenance.name, places[_key(one)])
            found = _notification(UNREADABLE, "error", f"Could not be scored: {one.reason}", place)
            yield found | ({"properties": {"kind": one.kind}} if one.kind else {})
        for note in one.notes:
            if note.startswith(UNCLEAR):
                yield _notification(NOTE, "warning", note, _place(one.provenance.name, places[_key(one)]))
    for path, why in report.skipped:
        yield _notification(SKIPPED, "warning", f"Skipped: {why}", _place(path))
    for note in report.notes:
        yield _notification(NOTE, "note", note)
    for repair in report.repairs:
        yield _notification(NOTE, "note", str(headlines.repair_headline(repair)), _place(repair.checkpoint))
    for matrix in report.matrices:
        size = f"{len(matrix.owners)} owners and {len(matrix.suspects)} suspects"
        yield _notification(NOTE, "note", f"Scores of {size} by {matrix.method} are in the other formats only.")


def _notification(name: str, level: str, text: str, place: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "descriptor": {"id": name, "index": _INDEX[name]},
        "level": level,
        "message": {"text": _message(text)},
        **({"locations": [{"physicalLocation": {"artifactLocation": place}}]} if place is not None else {}),
    }


def _results(report: Report, places: dict[Key, int]) -> Iterator[dict[str, Any]]:
    for one in sorted(report.findings, key=lambda one: one.verdict is not Verdict.CODE_EXECUTION):
        if one.verdict in (*headlines.ACCUSED, Verdict.INCONCLUSIVE):
            yield _finding(one, places[_key(one)])
    for owner in report.ownerships:
        for found in owner.verifications:
            if found.verdict in (Verdict.SUSPECTED, Verdict.INCONCLUSIVE):
                yield _verification(owner, found, places[found.suspect, found.sha256, -1])


def _finding(one: Finding, index: int) -> dict[str, Any]:
    numbers = {"score": one.score, "p": one.p_value, "q": one.q_value}
    facts = ", ".join(f"{name} {value:.3g}" for name, value in numbers.items() if math.isfinite(value))
    leads = {
        Verdict.CODE_EXECUTION: "Code execution",
        Verdict.CONFIRMED: "Backdoor confirmed",
        Verdict.SUSPECTED: "Backdoor suspected",
    }
    verdict = leads.get(one.verdict, "Inconclusive")
    rule = CODE if one.verdict is Verdict.CODE_EXECUTION else BACKDOOR
    message = wording.sentence(f"{verdict}{f' ({facts})' if facts else ''}{f': {one.reason}' if one.reason else ''}")
    result = _result(rule, one.verdict, message, _place(one.provenance.name, index), one.provenance.content)
    if logical := [_logical(layer) for layer in {layer.name: layer for layer in one.layers}.values()]:
        result["locations"][0]["logicalLocations"] = logical
    if one.verdict is Verdict.SUSPECTED and 0 <= one.q_value <= 1:
        result["rank"] = round(100 * (1 - one.q_value), 6)
    result["properties"] = {
        **_finite(score=one.score, pValue=one.p_value, qValue=one.q_value, z=one.z),
        "verdict": one.verdict,
        "cohort": one.cohort,
        "architecture": one.provenance.architecture,
        "format": one.provenance.format,
        "looks": list(one.looks),
        **({"unsearched": one.unsearched} if one.unsearched else {}),
        **({"code": [dataclasses.asdict(call) for call in one.code]} if one.code else {}),
    }
    return result


def _verification(owner: OwnershipReport, found: Verification, index: int) -> dict[str, Any]:
    message = f"{headlines.verification_headline(owner, found)}."
    result = _result(COPY, found.verdict, message, _place(found.suspect, index), found.sha256)
    null = {} if found.null_p_value is None else {"nullPValue": found.null_p_value}
    numbers = {"score": found.score, "distance": found.distance, "pValue": found.p_value, **null}
    names = {"verdict": found.verdict, "owner": owner.owner, "method": owner.method, "certificate": owner.certificate}
    return result | {"properties": _finite(**numbers) | names}


def _result(rule: str, verdict: Verdict, message: str, place: dict[str, Any], content: str) -> dict[str, Any]:
    is_suspected = verdict in headlines.ACCUSED
    return {
        "ruleId": rule,
        "ruleIndex": _INDEX[rule],
        "kind": "fail" if is_suspected else "open",
        "level": "error" if is_suspected else "none",
        "message": {"text": _message(message)},
        "locations": [{"physicalLocation": {"artifactLocation": place}}],
        **({"partialFingerprints": _fingerprint(content)} if content else {}),
    }


def _logical(layer: LayerSummary) -> dict[str, Any]:
    numbers = _finite(z=layer.z, largest=layer.largest, mean=layer.mean, std=layer.std)
    counts = {"channels": layer.channels, "undefined": layer.undefined, "channel": layer.channel, "above": layer.above}
    return {"name": layer.name, "fullyQualifiedName": layer.name, "kind": "layer", "properties": numbers | counts}


def _key(finding: Finding) -> Key:
    where = finding.provenance
    return where.name, where.content, where.size


def _hash(content: str) -> tuple[str, str]:
    """Name of a hash function, as SARIF has it, and the hash."""
    algorithm, _, digest = content.rpartition(":")
    return algorithm or "sha-256", digest


def _fingerprint(content: str) -> dict[str, str]:
    algorithm, digest = _hash(content)
    return {f"checkpoint{algorithm.replace('-', '').capitalize()}/v1": digest}


def _artifact(path: str, content: str, size: int) -> dict[str, Any]:
    return {
        "location": _place(path),
        **({"length": size} if size >= 0 else {}),
        "roles": ["analysisTarget"],
        **({"hashes": dict([_hash(content)])} if content else {}),
    }


def _place(path: str, index: int | None = None) -> dict[str, Any]:
    place: dict[str, Any] = dict(sarif_uri.location(path))
    return place if index is None else place | {"index": index}


def _finite(**numbers: float) -> dict[str, Any]:
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def _message(text: str) -> str:
    """Plain text in which nothing is a placeholder or a link: both have a syntax (3.11.5, 3.11.6) names could forge."""
    return wording.printable(text).replace("](", "] (").replace("{", "{{").replace("}", "}}")
