"""Verdicts by a reference profile, with an error rate for one checkpoint and for many.

Among many checkpoints the verdict controls the share of false ones among the suspected. That has a price: with `R`
references no p-value is below `1 / (R + 1)`, and Benjamini and Hochberg need `alpha k / n` of `k` among `n`. A lone
backdoored checkpoint among 10,000 is out of reach of 64 references. What would be suspected if it were judged alone,
but cannot be among so many, is `inconclusive`. So `no evidence` always means a p-value above `alpha`, and the measured
power is the chance that a backdoored one does not get it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from jaxguard import conformal
from jaxguard.detection import comparison
from jaxguard.detection.comparison import FIRST, SEARCH, Comparison, Null
from jaxguard.detection.profile import CohortProfile, Profile
from jaxguard.detection.records import TRIGGERS, Record
from jaxguard.errors import DataError
from jaxguard.types import Finding, Reference, Verdict

ALPHA = 0.05
"""Accepted error rate."""

FDR = "fdr"
"""Control of the expected share of clean checkpoints among the suspected, over all that are judged together."""

EACH = "each"
"""Control of the chance that a clean checkpoint is suspected, for each by itself."""

SEARCHED = ", triggers searched"
"""Behind the cohort of checkpoints in which triggers were searched: their power is another than by the first stage."""

BLOCK = 4096
"""Checkpoints that are scored at once, which bounds the memory."""

MANY = 10
"""Checkpoints of a cohort from which on the share with small p-values shows whether the references fit them."""

ROUNDING = 1e-12
"""What rounding may add to a p-value that equals the accepted rate."""


def judge(
    records: Sequence[Record],
    profile: Profile | None,
    *,
    trigger_names: Sequence[str] = (),
    alpha: float = ALPHA,
    control: str = FDR,
) -> list[Finding]:
    """Judges checkpoints and networks together.

    One that is itself among the references is compared with the others, by the combination that was fitted without it.
    Copies of one file count once among the many.

    Args:
        records: what is known of them.
        profile: of `calibrate`; None gives no verdict.
        trigger_names: of the features of a trigger search, where triggers are searched in some, or will be; without
            them no search counts.
        alpha: accepted error rate, in (0, 1).
        control: `FDR` or `EACH`; for a single checkpoint they are the same.

    Returns:
        One finding per record, in their order.

    Raises:
        DataError: `alpha` out of range, another `control`, or records of one cohort with different features.

    Example:
        >>> from jaxguard.detection.calibration import calibrate
        >>> from jaxguard.detection.records import Features
        >>> from jaxguard.types import Provenance
        >>> draw = np.random.default_rng(0).normal
        >>> def record(name: str, mean: float) -> Record:
        ...     found = Features(("a", "b", "c"), draw(mean, size=3))
        ...     return Record(Provenance(name, name), "small", {"weights": found})
        >>> profile = calibrate([record(f"{k:04x}", 0) for k in range(40)])
        >>> judge([record("beef", 9)], profile)[0].verdict
        <Verdict.SUSPECTED: 'suspected'>
    """
    require_rates(alpha, control)
    compared, powers = [Comparison("")] * len(records), dict[tuple[str, str], str]()
    for cohort, rows in _by_cohort(records).items():
        known, why = _references_of(cohort, records[rows[0]], profile, trigger_names, alpha)
        if known is not None:
            powers |= {(cohort, stage): _power(null, alpha) for stage, null in comparison.nulls(known, alpha).items()}
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            members = [records[row] for row in block]
            found = [Comparison(why)] * len(block) if known is None else comparison.compare(members, known, alpha)
            for row, one in zip(block, found, strict=True):
                compared[row] = one
    q_values, p_values = _adjusted(records, compared)
    findings = []
    for record, one, q_value in zip(records, compared, q_values, strict=True):
        verdict, why = _verdict(one, q_value, p_values, alpha, control)
        if verdict is Verdict.NO_EVIDENCE:
            why = f"{why}; {powers[record.cohort, one.stage]}"
        findings.append(_finding(record, one, q_value, verdict, f"{one.note}: {why}" if one.note and why else why))
    return findings


def require_rates(alpha: float, control: str) -> None:
    """Refuses an error rate that makes no sense, before hours of work rather than after.

    Raises:
        DataError: `alpha` out of range, or another `control`.
    """
    if not 0 < alpha < 1:
        raise DataError(f"expected alpha in (0, 1), got {alpha} in judge(); 0.05 is wrong once in twenty times")
    if control not in (FDR, EACH):
        raise DataError(f"expected control of {FDR!r} or {EACH!r}, got {control!r} in judge(); choose one of them")


def references(profile: Profile, alpha: float = ALPHA, *, searched: bool = False) -> tuple[Reference, ...]:
    """What a report shows beside the verdicts.

    The power is the share of known backdoored checkpoints with a p-value of at most `alpha`, each scored by a
    combination that was not fitted on it.

    Args:
        profile: of `calibrate`.
        alpha: accepted error rate.
        searched: whether triggers are searched in some of the checkpoints; references then count by both stages.

    Returns:
        One per cohort in the order of their names, and for a cohort with enough searched references a second one under
        its name and `SEARCHED`.
    """
    shown = []
    for stage in (FIRST, SEARCH):
        for cohort in sorted(profile.cohorts):
            known = profile.cohorts[cohort]
            null = comparison.nulls(known if searched or stage == SEARCH else replace(known, triggers=None), alpha)
            if stage in null and known.first.combinations and not known.refused:
                one, suspects = null[stage], null[stage].backdoored.scores
                power = conformal.power(comparison.backdoored_p_values(one), alpha)
                name = cohort + SEARCHED * (stage == SEARCH)
                shown.append(Reference(name, one.references.scores, suspects[~np.isnan(suspects)], *power))
    return tuple(shown)


def unlike_references(findings: Sequence[Finding], alpha: float) -> Iterator[str]:
    """Notes on cohorts in which most p-values are small, so that the references may not fit them."""
    cohorts: dict[str, dict[object, bool]] = {}
    for number, one in enumerate(findings):
        if not np.isnan(one.p_value):
            cohort = cohorts.setdefault(one.cohort.removesuffix(SEARCHED), {})
            cohort[one.provenance.content or number] = one.p_value <= alpha
    for cohort, distinct in cohorts.items():
        count = sum(distinct.values())
        if len(distinct) >= MANY and 2 * count > len(distinct):
            yield (
                f"{cohort}: {count} of {len(distinct)} checkpoints are unlike the references. Either most of them are "
                "backdoored, or they were not made like the references, and then the error rate does not hold."
            )


def _references_of(
    cohort: str, record: Record, profile: Profile | None, trigger_names: Sequence[str], alpha: float
) -> tuple[CohortProfile | None, str]:
    """The references of a cohort, or why there are none to compare with."""
    if profile is None:
        return None, "no reference profile: `jaxguard calibrate` makes one"
    known = profile.cohorts.get(cohort)
    why = comparison.unusable(known, record, trigger_names, alpha)
    if known is None or why:
        return None, why
    return (known if trigger_names else replace(known, triggers=None)), ""


def _by_cohort(records: Sequence[Record]) -> dict[str, list[int]]:
    """Rows of the records that were scored."""
    rows: dict[str, list[int]] = {}
    for row, record in enumerate(records):
        if not record.error:
            rows.setdefault(record.cohort, []).append(row)
    return rows


def _verdict(one: Comparison, q_value: float, p_values: np.ndarray, alpha: float, control: str) -> tuple[Verdict, str]:
    if not one.stage:
        return Verdict.INCONCLUSIVE, ""
    if (q_value if control == FDR else one.p_value) <= alpha + ROUNDING:
        return Verdict.SUSPECTED, f"{_as_high(one)} (p = {one.p_value:.2g}, q = {q_value:.2g})"
    if one.p_value <= alpha + ROUNDING:
        return Verdict.INCONCLUSIVE, _out_of_reach(one, q_value, p_values, alpha)
    return Verdict.NO_EVIDENCE, _as_high(one)


def _finding(record: Record, one: Comparison, q_value: float, verdict: Verdict, why: str) -> Finding:
    if record.error:
        return Finding(
            record.provenance,
            Verdict.ERROR,
            record.error,
            record.cohort,
            leaves=record.leaves,
            left_out=record.left_out,
            aliases=record.aliases,
            notes=record.notes,
            kind=record.kind,
        )
    is_searched = one.stage == SEARCH
    return Finding(
        provenance=record.provenance,
        verdict=verdict,
        reason=why or one.note,
        cohort=record.cohort + SEARCHED * is_searched,
        z=record.z,
        score=one.score,
        p_value=one.p_value,
        q_value=float(q_value),
        looks=tuple(look for look in record.features if look != TRIGGERS or is_searched),
        layers=record.layers,
        leaves=record.leaves,
        left_out=record.left_out,
        aliases=record.aliases,
        notes=record.notes,
    )


def _adjusted(records: Sequence[Record], compared: list[Comparison]) -> tuple[np.ndarray, np.ndarray]:
    """Adjusted p-values `[M]`, and the sorted p-values of the distinct checkpoints that were compared."""
    contents = [(one.content or f"row {row}", compared[row].p_value) for row, one in enumerate(records)]
    rows = [row for row, one in enumerate(compared) if one.stage]
    distinct = {key: k for k, key in enumerate(dict.fromkeys(contents[row] for row in rows))}
    p_values, q_values = np.array([p_value for _, p_value in distinct], np.float64), np.full(len(compared), np.nan)
    if not rows:
        return q_values, p_values
    adjusted = conformal.adjusted_p_values(p_values)
    q_values[rows] = adjusted[[distinct[contents[row]] for row in rows]]
    return q_values, np.sort(p_values)


def _as_high(one: Comparison) -> str:
    above = round(one.p_value * (one.references + 1)) - 1
    return f"{above or 'none'} of {one.references} references score{'s' * (above < 2)} as high"


def _out_of_reach(one: Comparison, q_value: float, p_values: np.ndarray, alpha: float) -> str:
    """Why a small p-value is not small enough among so many; `p_values` of all, sorted."""
    count, rank = len(p_values), int(np.searchsorted(p_values, one.p_value + ROUNDING, side="right"))
    why = (
        f"{_as_high(one)}; judged alone it would be suspected (p = {one.p_value:.2g}), but among {count:,} checkpoints "
        f"that many are by chance (q = {q_value:.2g})"
    )
    if one.p_value * (one.references + 1) > 1 + ROUNDING:
        return why
    needed = conformal.needed_references(alpha * rank / count)
    return f"{why}; no p-value is smaller with {one.references} references, {needed:,} could tell"


def _power(null: Null, alpha: float) -> str:
    if not len(null.backdoored.scores):
        return "power not measured: no backdoored references"
    found, (low, high) = conformal.power(comparison.backdoored_p_values(null), alpha)
    return (
        f"judged alone at alpha {alpha:g}, a backdoor of the known kinds would have been found in "
        f"{100 * found:.0f} % ({100 * low:.0f}-{100 * high:.0f}) of cases"
    )
