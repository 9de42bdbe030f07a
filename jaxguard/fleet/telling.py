"""From rows of results and a reference profile to a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from jaxguard.detection import judging
from jaxguard.detection.judging import Judgements
from jaxguard.detection.profile import Profile, Record
from jaxguard.fleet.scan import FleetScan
from jaxguard.fleet.store import Row
from jaxguard.scores import responses
from jaxguard.types import Finding, Provenance, Reference, Report, Verdict

SHOWN = 50
"""Checkpoints whose layers a report holds beside those that are suspected, the highest scores first."""


SEARCHED = ", triggers searched"
"""Behind the bucket of checkpoints that were searched: the chance to be found is another than by weights alone."""


@dataclass(frozen=True, eq=False)
class Looks:
    """What is known of checkpoints beyond their weights, by content hash.

    Attributes:
        asked: buckets in which answers to noise count like features of the weights.
        answers: those answers, named by `jaxguard.scores.responses.NAMES`.
        triggers: what a search for triggers found.
        trigger_names: names of its features; empty where none are searched.
    """

    asked: frozenset[str] = frozenset()
    answers: Mapping[str, np.ndarray] = field(default_factory=dict)
    triggers: Mapping[str, np.ndarray] = field(default_factory=dict)
    trigger_names: tuple[str, ...] = ()


NO_LOOKS = Looks()


def records_of(scan: FleetScan, looks: Looks = NO_LOOKS) -> list[Record]:
    """What there is to calibrate with or to judge: one record per row that was scored.

    Args:
        scan: its rows.
        looks: what else is known of them.

    Returns:
        The records, in the order of the rows.
    """
    unanswered = np.full(len(responses.NAMES), np.nan, np.float32)

    def features(row: Row) -> np.ndarray | None:
        if row.features is None or row.bucket not in looks.asked:
            return row.features
        return np.concatenate([row.features, looks.answers.get(row.sha256, unanswered)])

    scored = [row for row in scan.rows if not row.error]
    return [Record(row.bucket, row.sha256, features(row), looks.triggers.get(row.sha256)) for row in scored]


def names_of(scan: FleetScan, looks: Looks = NO_LOOKS) -> dict[str, tuple[str, ...]]:
    """Names of the features in `records_of`, by bucket."""
    return {
        bucket: (*names, *responses.NAMES) if bucket in looks.asked else names
        for bucket, names in scan.feature_names.items()
    }


def judged(
    scan: FleetScan,
    profile: Profile | None,
    looks: Looks = NO_LOOKS,
    *,
    alpha: float = judging.ALPHA,
    control: str = judging.FDR,
) -> Judgements:
    """Judgements of the rows that were scored, see `jaxguard.detection.judging.judge`."""
    return judging.judge(
        records_of(scan, looks),
        profile,
        names=names_of(scan, looks),
        deep_names=looks.trigger_names,
        alpha=alpha,
        control=control,
    )


def references(profile: Profile, alpha: float, *, deep: bool = False) -> tuple[Reference, ...]:
    """What a profile holds for both looks, the second under a bucket name of its own.

    Args:
        profile: of `calibrate`.
        alpha: accepted error rate.
        deep: whether some of the checkpoints are searched for triggers; else the first look is told as it is alone.

    Returns:
        References by bucket.
    """
    second = judging.references(profile, alpha, stage=judging.DEEP)
    return (
        *judging.references(profile, alpha, deep=deep),
        *(replace(one, group=one.group + SEARCHED) for one in second),
    )


def report(
    scan: FleetScan,
    judgements: Judgements,
    *,
    title: str,
    command: str,
    alpha: float,
    control: str,
    profile: str = "",
    references: tuple[Reference, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> Report:
    """Put together what a fleet scan has to tell.

    Args:
        scan: its rows.
        judgements: of those that were scored, in their order.
        title: headline.
        command: command line that made it.
        alpha: accepted error rate.
        control: what of, see `Report`.
        profile: name and digest of the profile that was judged by.
        references: what it holds.
        environment: versions, backend.

    Returns:
        The report.
    """
    number, findings = 0, []
    for row in scan.rows:
        if row.error:
            findings.append(_unjudged(row))
        else:
            findings.append(_judged(row, judgements, number))
            number += 1
    asked = _asked_about(findings)
    layers = scan.store.layers([findings[k].provenance.sha256 for k in asked]) if asked else {}
    for k in asked:
        findings[k] = replace(findings[k], layers=layers.get(findings[k].provenance.sha256, ()))
    groups = {finding.group for finding in findings}
    notes = {note: None for row in scan.rows for note in row.notes}
    return Report(
        title=title,
        command=command,
        findings=tuple(findings),
        skipped=scan.skipped,
        alpha=alpha,
        control=control,
        profile=profile,
        references=tuple(one for one in references if one.group in groups),
        seconds=scan.seconds,
        bytes_read=scan.bytes_read,
        reused=scan.reused,
        notes=(*judgements.notes, *notes),
        environment=environment or {},
    )


def _judged(row: Row, found: Judgements, number: int) -> Finding:
    is_searched = found.stages[number] == judging.DEEP
    return replace(
        _unjudged(row),
        group=row.bucket + SEARCHED * is_searched,
        z=row.z,
        score=float(found.scores[number]),
        p_value=float(found.p_values[number]),
        q_value=float(found.q_values[number]),
        verdict=found.verdicts[number],
        reason=found.reasons[number],
        looks=("weights", "triggers") if is_searched else ("weights",),
    )


def _unjudged(row: Row) -> Finding:
    """A finding that says why there is no verdict."""
    provenance = Provenance(row.uri, row.sha256, row.stamp.size, row.format, row.architecture)
    return Finding(provenance, Verdict.ERROR, row.error, row.bucket)


def _asked_about(findings: Sequence[Finding]) -> list[int]:
    """Numbers of those that were scored and are suspected, or are among the highest scores."""

    def height(k: int) -> tuple[float, float]:
        score, z = (-np.inf if np.isnan(value) else value for value in (findings[k].score, findings[k].z))
        return score, z

    scored = [k for k, one in enumerate(findings) if one.verdict is not Verdict.ERROR]
    highest = sorted(scored, key=height, reverse=True)[:SHOWN]
    return sorted({*highest, *(k for k in scored if findings[k].verdict is Verdict.SUSPECTED)})
