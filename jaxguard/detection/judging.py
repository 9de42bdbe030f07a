"""Verdicts on checkpoints by a reference profile, with an error rate for one and for many.

Among many checkpoints the verdict controls the share of false ones among the suspected. That has a price: with `R`
references no p-value is below `1 / (R + 1)`, and Benjamini and Hochberg need `alpha k / n` of `k` among `n`. A lone
backdoored checkpoint among 10,000 is out of reach of 64 references. What would be suspected if it were judged alone,
and cannot be among so many, is `inconclusive`. So `no evidence` always means a p-value above `alpha`, and the measured
power is the chance that a backdoored one does not get it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxguard import conformal
from jaxguard.detection import comparison
from jaxguard.detection.comparison import DEEP, WEIGHTS, Comparison, Yardstick
from jaxguard.detection.profile import Profile, Record
from jaxguard.errors import DataError
from jaxguard.types import Reference, Verdict

ALPHA = 0.05
"""Accepted error rate."""

FDR = "fdr"
"""Control of the expected share of clean checkpoints among the suspected, over all that are judged together."""

EACH = "each"
"""Control of the chance that one clean checkpoint is suspected, for each by itself."""

BLOCK = 4096
"""Checkpoints that are scored at once, which bounds the memory."""

MANY = 10
"""Checkpoints of a bucket from which on their share of conspicuous ones says whether the references fit them."""

ROUNDING = 1e-12
"""What rounding may add to a p-value that equals the accepted rate."""


@dataclass(frozen=True, eq=False)
class Judgements:
    """One of each for every checkpoint, in their order.

    Attributes:
        scores: `[M]` higher is more suspicious; NaN where there is none.
        p_values: `[M]`; NaN where nothing can be said.
        q_values: `[M]` after Benjamini and Hochberg; NaN likewise.
        verdicts: `SUSPECTED`, `NO_EVIDENCE` or `INCONCLUSIVE` of `jaxguard.conformal`.
        reasons: why, in words.
        stages: what it was judged by: `weights` alone, `deep` where triggers were searched too, or nothing.
        notes: what a reader must know of all of them, in whole sentences.
    """

    scores: np.ndarray
    p_values: np.ndarray
    q_values: np.ndarray
    verdicts: tuple[str, ...]
    reasons: tuple[str, ...]
    stages: tuple[str, ...]
    notes: tuple[str, ...] = ()


def judge(
    records: Sequence[Record],
    profile: Profile | None,
    *,
    names: Mapping[str, Sequence[str]],
    deep_names: Sequence[str] = (),
    alpha: float = ALPHA,
    control: str = FDR,
) -> Judgements:
    """Judges checkpoints together.

    One that is itself among the references is compared with the others, by the combination that was fitted without it.
    Copies of one file count once among the many.

    Args:
        records: what is known of them.
        profile: of `calibrate`; None gives no verdict.
        names: of the features, by bucket.
        deep_names: of the features of a search for triggers, where some are searched, or will be; without them no
            search is looked at.
        alpha: accepted error rate, in (0, 1).
        control: `FDR` or `EACH`; for a single checkpoint they are the same.

    Returns:
        The judgements.

    Raises:
        DataError: `alpha` out of range, another `control`, or a record that does not have the named features.

    Example:
        >>> from jaxguard.detection.calibration import calibrate
        >>> draw = np.random.default_rng(0).normal
        >>> names = {"small": ("a", "b", "c")}
        >>> profile = calibrate([Record("small", f"{k:04x}", draw(size=3)) for k in range(40)], names=names)
        >>> print(*judge([Record("small", "beef", draw(9, size=3))], profile, names=names).verdicts)
        suspected
    """
    if not 0 < alpha < 1:
        raise DataError(f"expected alpha in (0, 1), came {alpha} in judge(); 0.05 is wrong once in twenty times")
    if control not in (FDR, EACH):
        raise DataError(f"expected control of {FDR!r} or {EACH!r}, came {control!r} in judge(); choose one of them")
    found, yards = [Comparison("")] * len(records), dict[str, dict[str, Yardstick]]()
    for bucket, rows in _by_bucket(records).items():
        known, why = None, "no reference profile: `jaxguard calibrate` makes one"
        if profile is not None:
            known = profile.buckets.get(bucket)
            why = comparison.unusable(known, names.get(bucket, ()), deep_names, alpha)
        if known is not None and not deep_names:
            known = replace(known, deep=None)
        if known is not None and not why:
            yards[bucket] = comparison.yardsticks(known, alpha)
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            members = [records[row] for row in block]
            unjudged = [Comparison(why)] * len(block)
            compared = unjudged if known is None or why else comparison.compare(members, known, alpha)
            for row, one in zip(block, compared, strict=True):
                found[row] = one
    return _judgements(records, found, yards, alpha, control)


def references(
    profile: Profile, alpha: float = ALPHA, *, stage: str = WEIGHTS, deep: bool = False
) -> tuple[Reference, ...]:
    """What a report shows beside the verdicts, one per bucket that has this stage.

    The power is the share of known backdoored checkpoints with a p-value of at most `alpha`, each scored by a
    combination that was not fitted on it.

    Args:
        profile: of `calibrate`.
        alpha: accepted error rate.
        stage: `WEIGHTS` or `DEEP`.
        deep: whether some of the checkpoints are searched for triggers; `DEEP` implies it.

    Returns:
        References in the order of their buckets' names.
    """
    shown = []
    for bucket in sorted(profile.buckets):
        known = profile.buckets[bucket]
        yards = comparison.yardsticks(known if deep or stage == DEEP else replace(known, deep=None), alpha)
        if stage in yards and known.weights.combinations:
            one, suspects = yards[stage], yards[stage].backdoored.scores
            power = conformal.power(comparison.backdoored_p_values(one), alpha)
            shown.append(Reference(bucket, one.references.scores, suspects[~np.isnan(suspects)], *power))
    return tuple(shown)


def _by_bucket(records: Sequence[Record]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, record in enumerate(records):
        rows.setdefault(record.bucket, []).append(row)
    return rows


def _judgements(
    records: Sequence[Record],
    found: list[Comparison],
    yards: Mapping[str, Mapping[str, Yardstick]],
    alpha: float,
    control: str,
) -> Judgements:
    q_values, p_values = _adjusted(records, found)
    powers: dict[tuple[str, str], str] = {}
    verdicts, reasons = [], []
    for record, one, q_value in zip(records, found, q_values, strict=True):
        if not one.stage:
            says, why = Verdict.INCONCLUSIVE, one.note
        elif (q_value if control == FDR else one.p_value) <= alpha + ROUNDING:
            says, why = Verdict.SUSPECTED, f"{_as_high(one)} (p = {one.p_value:.2g}, q = {q_value:.2g})"
        elif one.p_value <= alpha + ROUNDING:
            says, why = Verdict.INCONCLUSIVE, _out_of_reach(one, q_value, p_values, alpha)
        else:
            key = (record.bucket, one.stage)
            if key not in powers:
                powers[key] = _power(yards[record.bucket][one.stage], alpha)
            says, why = Verdict.NO_EVIDENCE, f"{_as_high(one)}; {powers[key]}"
        verdicts.append(says)
        reasons.append(f"{one.note}: {why}" if one.stage and one.note else why)
    return Judgements(
        scores=np.array([one.score for one in found], np.float64),
        p_values=np.array([one.p_value for one in found], np.float64),
        q_values=q_values,
        verdicts=tuple(verdicts),
        reasons=tuple(reasons),
        stages=tuple(one.stage for one in found),
        notes=tuple(_strangers(records, found, alpha)),
    )


def _strangers(records: Sequence[Record], found: list[Comparison], alpha: float) -> Iterator[str]:
    """Buckets most of whose checkpoints are conspicuous."""
    for bucket, rows in _by_bucket(records).items():
        compared = {(records[row].sha256 or row): found[row].p_value <= alpha for row in rows if found[row].stage}
        count = sum(compared.values())
        if len(compared) >= MANY and 2 * count > len(compared):
            yield (
                f"{bucket}: {count} of {len(compared)} checkpoints are unlike the references. Either most of them are "
                "backdoored, or they were not made like the references, and then the error rate does not hold."
            )


def _adjusted(records: Sequence[Record], found: list[Comparison]) -> tuple[np.ndarray, np.ndarray]:
    """Adjusted p-values `[M]`, and the sorted p-values of the distinct checkpoints that were compared."""
    contents = [(one.sha256 or f"row {row}", found[row].p_value) for row, one in enumerate(records)]
    compared = [row for row, one in enumerate(found) if one.stage]
    distinct = {key: k for k, key in enumerate(dict.fromkeys(contents[row] for row in compared))}
    p_values = np.array([p_value for _, p_value in distinct], np.float64)
    adjusted = conformal.adjusted_p_values(p_values)
    q_values = np.full(len(found), np.nan)
    q_values[compared] = adjusted[[distinct[contents[row]] for row in compared]]
    return q_values, np.sort(p_values)


def _as_high(one: Comparison) -> str:
    above = round(one.p_value * (one.references + 1)) - 1
    return f"{above or 'none'} of {one.references} references score{'s' * (above < 2)} as high"


def _out_of_reach(one: Comparison, q_value: float, p_values: np.ndarray, alpha: float) -> str:
    """Of one that is conspicuous, but not among so many; `p_values` of all, sorted."""
    count, rank = len(p_values), int(np.searchsorted(p_values, one.p_value + ROUNDING, side="right"))
    why = (
        f"{_as_high(one)}; judged alone it would be suspected (p = {one.p_value:.2g}), but among {count:,} checkpoints "
        f"that many are by chance (q = {q_value:.2g})"
    )
    if one.p_value * (one.references + 1) > 1 + ROUNDING:
        return why
    needed = conformal.needed_references(alpha * rank / count)
    return f"{why}; no p-value is smaller with {one.references} references, {needed:,} could tell"


def _power(yard: Yardstick, alpha: float) -> str:
    if not len(yard.backdoored.scores):
        return "power not measured: no backdoored references"
    found, (low, high) = conformal.power(comparison.backdoored_p_values(yard), alpha)
    return (
        f"judged alone at alpha {alpha:g}, a backdoor of the known kinds would have been found in "
        f"{100 * found:.0f} % ({100 * low:.0f}-{100 * high:.0f}) of cases"
    )
