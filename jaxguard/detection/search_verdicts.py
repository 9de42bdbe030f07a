"""Verdicts from one file: does one class lead by its universal trigger, and does the trigger work?

A backdoor is *suspected* where the p-value of the gaps is at most the accepted rate and the trigger of the kind that
stands out most turns more than half of the held-out images into its class, by the lower bound of the exact 95 %
interval. The p-value is conformal against reference networks, over all kinds of triggers that were searched together
(`jaxguard.conformal.joined`); where there are none, that of the classes among themselves decides. Where it is at most
`DOUBTFUL` and the trigger turns most images, the finding is inconclusive. Otherwise no trigger of the kinds searched
was found, which says nothing of others. Networks of fewer than five classes are judged by the expected transferability
of a class's triggers, which needs no reference (`jaxguard.inversion.transferability`).

Where a profile has a p-value as well, the two are joined: see `jaxguard.detection.joining`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from jaxguard import conformal
from jaxguard.detection import joining
from jaxguard.detection.judging import ROUNDING
from jaxguard.detection.trigger_reference import TriggerReference
from jaxguard.types import Finding, Metrics, Provenance, TriggerSearch, Verdict
from jaxguard.types.searches import TRANSFERABILITY

LOOK = "universal triggers"
"""Name of the look."""

WORKS = 0.5
"""A trigger works where the lower bound of its success is higher."""

DOUBTFUL, DOUBTFUL_SUCCESS = 0.2, 0.8
"""Up to this p-value, a trigger of so much success leaves the finding inconclusive."""

CONFIRMED, ACCURATE = 0.9, 0.5
"""Lower bound of a known trigger's success, and accuracy on clean images, from which on a backdoor is confirmed."""


def judge(
    findings: Sequence[Finding],
    searches: Mapping[int, TriggerSearch],
    reference: TriggerReference | None,
    *,
    alpha: float,
    is_each: bool = False,
) -> list[Finding]:
    """Judges networks in which universal triggers were searched.

    Args:
        findings: all of a scan.
        searches: number of a finding -> what was found in it.
        reference: clean networks to compare with; None where there are none.
        alpha: accepted error rate.
        is_each: whether it holds for each by itself, rather than for all that are suspected together.

    Returns:
        All findings; those that were searched have the verdict of the search, or of the search and the profile.
    """
    searches = {k: _led(found, reference, findings[k].provenance) for k, found in searches.items()}
    judged = list(findings)
    bases = {k: _p_value(found, reference, findings[k].provenance) for k, found in searches.items()}
    p_values = [one.p_value for one in findings]
    for k, found in searches.items():
        p_values[k] = _joined(findings[k].p_value, bases[k][0], found)
    q_values = _adjusted(findings, p_values)
    for k, (one, q_value) in enumerate(zip(findings, q_values, strict=True)):
        rate = p_values[k] if is_each else q_value
        if k not in searches:
            judged[k] = _again(one, q_value, rate, alpha)
            continue
        found, (p_value, basis) = searches[k], bases[k]
        if math.isnan(one.p_value):
            verdict, reason = _verdict(found, p_value, rate, alpha, basis)
        else:
            verdict, reason = _both(one, found, (p_value, p_values[k], rate), alpha, basis)
        if found.interrupted:  # what stands out already does so as by a search of these sizes alone
            told = f"the search was interrupted {found.interrupted}"
            is_empty = not found.rows and math.isnan(one.p_value)
            reason = f"{told}, before a first size was done" if is_empty else f"{told}; {reason}"
            verdict = Verdict.INCONCLUSIVE if verdict is Verdict.NO_TRIGGER else verdict
        judged[k] = replace(
            one,
            verdict=verdict,
            reason=reason,
            score=one.score if math.isfinite(one.score) else found.gap if not found.problem else math.nan,
            p_value=p_values[k],
            q_value=q_value,
            looks=(*one.looks, LOOK),
            notes=(*one.notes, *found.left_out),
            search=found,
        )
    return judged


def _led(found: TriggerSearch, reference: TriggerReference | None, suspect: Provenance) -> TriggerSearch:
    """With the kind of trigger that stands out most among the references, and remarks on those that say nothing."""
    if found.problem or found.gaps.keys() == {TRANSFERABILITY}:
        return found
    notes = [f"No statement by {one.label or one.kind}: {one.problem}." for one in found.results if one.problem]
    if reference is None or not reference.networks:
        return replace(found, left_out=(*found.left_out, *notes)) if notes else found
    compared = reference.compare(found.results, suspect.sha256)
    notes += [
        f"Not judged: {kind}; no reference network was searched for it as it is now." for kind in compared.unknown
    ]
    return replace(found, lead=compared.lead, left_out=(*found.left_out, *notes))


def _joined(by_profile: float, by_search: float, found: TriggerSearch) -> float:
    """See `jaxguard.detection.joining`; what was never begun, as inputs are no images, costs nothing."""
    if math.isnan(by_profile) or not found.source:
        return by_search if math.isnan(by_profile) else by_profile
    is_working = not math.isnan(by_search) and found.interval[0] > WORKS
    return joining.joined(by_profile, by_search if is_working else 1.0)


def _adjusted(findings: Sequence[Finding], p_values: Sequence[float]) -> list[float]:
    """For all that are suspected together; copies of one file count once."""
    # The function of a live network belongs to what makes it a copy; where it differs, so do p-values.
    contents = [(one.provenance.content or f"row {k}", p_values[k]) for k, one in enumerate(findings)]
    rows = {key: key[1] for key in contents if not math.isnan(key[1])}
    known = dict(zip(rows, conformal.adjusted_p_values(list(rows.values())), strict=True)) if rows else {}
    return [float(known[key]) if key in known else math.nan for key in contents]


def _again(one: Finding, q_value: float, rate: float, alpha: float) -> Finding:
    """One that was not searched, after the searches of others have changed how many are suspected together."""
    if math.isnan(one.p_value) or one.verdict is Verdict.ERROR:
        return one
    is_high, verdict = rate <= alpha + ROUNDING, one.verdict
    told = f"with the searches of others q = {q_value:.2g}"
    if is_high != (verdict is Verdict.SUSPECTED) and one.p_value <= alpha + ROUNDING:
        verdict = Verdict.SUSPECTED if is_high else Verdict.INCONCLUSIVE
    reason = one.reason if verdict is one.verdict else f"{one.reason}; {told}"
    return replace(one, verdict=verdict, reason=reason, q_value=q_value)


def _both(
    one: Finding, found: TriggerSearch, rates: tuple[float, float, float], alpha: float, basis: str
) -> tuple[Verdict, str]:
    """The verdict of a profile and of a search together; `rates` by the search, of both, and that which decides."""
    by_search, together, rate = rates
    if found.problem or math.isnan(by_search):
        told = f"no statement on triggers: {found.problem or _undefined(found)}"
    else:
        told = f"{sentence(found)}; {basis}"
    if together != one.p_value:
        told = f"{told}; p = {together:.2g}, twice the smaller one of the profile's {one.p_value:.2g} and the search's"
    reason = f"{one.reason}; {told}"
    if rate <= alpha + ROUNDING:
        is_by_search = not math.isnan(by_search) and by_search < one.p_value
        return Verdict.SUSPECTED, f"{told}; by the profile: {one.reason}" if is_by_search else reason
    is_doubtful = not found.problem and by_search <= DOUBTFUL and found.success >= DOUBTFUL_SUCCESS
    if min(one.p_value, together) <= alpha + ROUNDING or is_doubtful:
        return Verdict.INCONCLUSIVE, reason
    return one.verdict, reason


def _p_value(found: TriggerSearch, reference: TriggerReference | None, suspect: Provenance) -> tuple[float, str]:
    """The deciding p-value, and what it rests on."""
    if found.problem or math.isnan(found.gap):
        return math.nan, ""
    if found.gaps.keys() == {TRANSFERABILITY}:
        return found.p_class, f"expected transferability {found.gap:.2f}, above 1/2 with p = {found.p_class:.2g}"
    by_class = f"p = {found.p_class:.2g} among its own classes"
    if reference is None or not reference.networks:
        return found.p_class, f"{by_class}, as there are no reference networks"
    compared = reference.compare(found.results, suspect.sha256, suspect.architecture)
    if not compared.lead:
        return found.p_class, f"{by_class}, as no reference network was searched for the same triggers"
    alike, number = compared.number
    kinds = f" by {compared.lead}, the highest of {len(compared.by_kind)} kinds" if len(compared.by_kind) > 1 else ""
    family = suspect.architecture.partition(":")[0]
    like = f" ({alike or 'none'} of them {family})" if family and family != "unknown" else ""
    images = "" if "procedural" in found.source else " searched on procedural images"
    words = f"p = {compared.p_value:.2g}{kinds} among {number} reference networks{images}{like}, {by_class}"
    return compared.p_value, f"{words}; {_rates(found, reference)}"


def _rates(found: TriggerSearch, reference: TriggerReference) -> str:
    """What the rule did to networks that no choice had seen."""
    rates = reference.rates_of(found.results)
    if rates is None:
        return "how often that errs on strangers was not measured for these kinds of triggers"
    attacks = ", ".join(f"{name} {some} of {number}" for name, (some, number) in rates.power.items())
    wrong, clean = rates.false_alarms
    return (
        f"of networks that no choice had seen, the rule at {100 * rates.alpha:g} % suspected {wrong} of {clean} clean"
        f" ones and found {attacks}"
    )


def _undefined(found: TriggerSearch) -> str:
    """Why there is no p-value."""
    if math.isnan(found.gap) or not all(map(math.isfinite, (one for row in found.rows for one in row.margin))):
        return "the margin of a class is undefined"
    return f"no reference network was searched for {found.label}, and their classes give no p-value"


def _verdict(found: TriggerSearch, p_value: float, rate: float, alpha: float, basis: str) -> tuple[Verdict, str]:
    if found.problem:
        return Verdict.INCONCLUSIVE, f"no statement on triggers: {found.problem}"
    if math.isnan(p_value):
        return Verdict.INCONCLUSIVE, f"no statement on triggers: {_undefined(found)}"
    if rate <= alpha and found.interval[0] > WORKS:
        return Verdict.SUSPECTED, f"{sentence(found)}; {basis}"
    if rate <= DOUBTFUL and found.success >= DOUBTFUL_SUCCESS:
        return Verdict.INCONCLUSIVE, f"{sentence(found)}, but it does not stand out far enough: {basis}"
    return Verdict.NO_TRIGGER, f"searched were {found.label} for {_classes(found)}; {sentence(found)}; {basis}"


def sentence(found: TriggerSearch) -> str:
    """What the leading trigger does.

    Example:
        >>> import numpy as np
        >>> from jaxguard.types import KindResult, TriggerRow
        >>> counts = np.array([4.0, -1]), np.array([80, 8]), np.array([80, 80])
        >>> row = TriggerRow("patch", 3.0, np.arange(2), *counts, {}, "a 3x3 patch at (29, 29)")
        >>> found = TriggerSearch((row,), (KindResult("patch", gap=5.0),))
        >>> for part in sentence(found).split(" images "):
        ...     print(part)
        a 3x3 patch at (29, 29) turns 100.0 % [95.5, 100.0] of 80 held-out
        into class 0, the next class reaches 10 %
    """
    row = found.leading
    if row is None:
        return "no trigger was found"
    first, second = (int(k) for k in row.order[:2])
    low, high = (100 * end for end in found.interval)
    turns = (
        f"{row.label} turns {100 * found.success:.1f} % [{low:.1f}, {high:.1f}] of {row.judged[first]} held-out images"
    )
    if row.assignments is not None:
        return f"{turns} into the class that it has for theirs ({row.goal(first)})"
    if row.sources is not None:
        return f"{turns} of class {row.sources[first]} into class {row.classes[first]}"
    return f"{turns} into class {row.classes[first]}, the next class reaches {100 * row.success[second]:.0f} %"


def _classes(found: TriggerSearch) -> str:
    return found.rows[0].searched(found.num_classes)


def confirmed(finding: Finding, metrics: Metrics) -> Finding:
    """With what a known trigger did to test images.

    Args:
        finding: of the network.
        metrics: measured with the trigger.

    Returns:
        The verdict `CONFIRMED` where it turns nearly all images and the network is no guesser; code in the file stays
        the first thing to say.
    """
    if metrics.asr is None or metrics.acc < ACCURATE or finding.verdict is Verdict.CODE_EXECUTION:
        return finding
    from scipy import stats

    hits = round(metrics.asr * metrics.num_triggered)
    interval = stats.binomtest(hits, metrics.num_triggered).proportion_ci(0.95, method="exact")
    if not interval.low >= CONFIRMED:
        return finding
    told = (
        f"the given trigger turns {100 * metrics.asr:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}] of "
        f"{metrics.num_triggered} test images into the attacker's class"
    )
    found = f"; {finding.reason}" if finding.verdict is Verdict.SUSPECTED else ""
    return replace(finding, verdict=Verdict.CONFIRMED, reason=f"{told}{found}")
