"""What a report says of ownership: one headline per suspect, p-values as odds, the best suspects of an owner."""

import math
from collections.abc import Iterable

import numpy as np

from jaxguard.errors import DataError
from jaxguard.report import marks, wording
from jaxguard.types import AuditReport, FingerprintMatrix, OwnershipReport, Verification

MAX_HEADLINES = 8
"""Suspects with a headline of their own; of more, the accused come first and the rest is counted."""

RARE = 0.1
"""Rates up to this one are told as `once in 10 times`, others in the hundred."""


def tone(verdict: str) -> wording.Tone:
    """`bad` for a suspected copy, `open` for everything else: no comparison acquits."""
    return "bad" if verdict == "copy suspected" else "open"


def odds(rate: float) -> str:
    """Writes a rate as people say it; never rarer than it is.

    >>> [odds(rate) for rate in (0.025, 1 / 32713, 0.37, 1.0, 1e-9)]
    ['once in 40 times', 'once in 32,700 times', '37 times in 100', 'always', 'less than once in a million times']
    """
    if not math.isfinite(rate):
        return "undefined"
    if rate > 0.995:
        return "always"
    if rate > RARE:
        return f"{math.ceil(round(100 * rate, 6))} times in 100"
    if rate < 1e-6:
        return "less than once in a million times"
    times = math.floor(round(1 / rate, 6))
    digits = 10 ** max(len(str(times)) - 3, 0)
    return f"once in {times // digits * digits:,} times"


def p_value(p: float | None) -> str:
    """Writes a p-value with two significant digits.

    >>> p_value(1 / 21), p_value(1.0), p_value(3.21e-41), p_value(None)
    ('0.048', '1', '3.2e-41', '–')
    """
    if p is None:
        return "–"
    if p == 0:
        return "<1e-300"
    return f"{p:.2g}" if math.isfinite(p) else "undefined"


def suffices(report: OwnershipReport) -> bool:
    """Whether there are references enough for a p-value of alpha."""
    return 1 / (len(report.references) + 1) <= report.alpha


def threshold(report: OwnershipReport) -> float:
    """The score that a suspect has to exceed for a p-value of alpha; NaN where references do not suffice.

    >>> from jaxguard.types import OwnershipReport
    >>> known = OwnershipReport("m", "", "", "sac", {}, 100, 0.05, np.arange(39.0), ("",) * 39, ())
    >>> threshold(known)  # one reference of 39 may score as high: (1 + 1) / 40
    37.0
    """
    if not suffices(report):
        return math.nan
    known = np.sort(np.asarray(report.references, np.float64))[::-1]
    return float(known[math.floor(round(report.alpha * (len(known) + 1), 9)) - 1])


def verification_headline(report: OwnershipReport, verification: Verification) -> wording.Headline:
    """Says whether one suspect looks like a copy, and how often an independent model would.

    Args:
        report: whose certificate it is.
        verification: one of the report's.

    Returns:
        `bad` for a suspected copy, else `open`.
    """
    owner = marks.shorten(report.owner.rstrip("/").rpartition("/")[2])
    leads = {
        "copy suspected": f"Copy of {owner} suspected",
        "no evidence": f"No evidence of a copy of {owner}",
        "inconclusive": f"Inconclusive: too few models independent of {owner}",
    }
    quoted = wording.printable(verification.verdict)
    lead = leads.get(verification.verdict, f"{quoted[:1].upper()}{quoted[1:]}")
    score = f"{wording.method_name(report.method)} score {wording.number(verification.score)}"
    numbers = [f"{score}, {_rank(report, verification)}"]
    if len(report.references) and math.isfinite(verification.p_value):
        numbers.append(f"an independent model would score as high {odds(verification.p_value)}")
    if verification.null_p_value is not None:
        numbers.append(f"by the method’s own null distribution, chance would do so {odds(verification.null_p_value)}")
    return wording.Headline(tone(verification.verdict), lead, "; ".join(numbers))


def headlines(report: AuditReport) -> list[tuple[str, wording.Headline]]:
    """Headlines of all suspects with their names; of more than `MAX_HEADLINES` the accused first, the rest counted."""
    pairs = [(one, found) for one in report.ownerships for found in one.verifications]
    shown = pairs
    if len(pairs) > MAX_HEADLINES:
        shown = sorted((pair for pair in pairs if tone(pair[1].verdict) == "bad"), key=lambda pair: pair[1].p_value)
        shown = shown[:MAX_HEADLINES]
    told = [(found.suspect, verification_headline(one, found)) for one, found in shown]
    for one in report.ownerships if len(shown) < len(pairs) else ():
        hidden = [found for found in one.verifications if not any(found is seen for _, seen in shown)]
        for verdict in dict.fromkeys(found.verdict for found in hidden):
            count = sum(found.verdict == verdict for found in hidden)
            more = "more " if any(told_of is one for told_of, _ in shown) else ""
            lead = f"{count} {more}suspect{'s' * (count > 1)}: {wording.printable(verdict)}"
            detail = f"{wording.method_name(one.method)}, {references(one)}"
            told.append((f"Copies of {one.owner}", wording.Headline(tone(verdict), lead, detail)))
    return told


def references(report: OwnershipReport) -> str:
    """Says what suspects are compared with, and from which score on they are accused.

    >>> references(OwnershipReport("m", "", "", "sac", {}, 100, 0.05, np.arange(5.0), ("",) * 5, ()))
    '5 independent models, scores 0 to 4: too few for p ≤ 0.05'
    """
    scores = np.asarray(report.references, np.float64)
    models = f"{len(scores) or 'no'} independent model{'s' * (len(scores) != 1)}"
    if len(scores):
        low, high = wording.number(scores.min()), wording.number(scores.max())
        models += f", score {high}" if len(scores) == 1 else f", scores {low} to {high}"
    if not suffices(report):
        return f"{models}: too few for p ≤ {report.alpha:g}"
    return f"{models}: p ≤ {report.alpha:g} above {wording.number(threshold(report))}"


def accused_by_chance(report: OwnershipReport) -> str:
    """Says how many suspects would be accused were all of them independent; empty where it is none, rounded.

    >>> accused_by_chance(OwnershipReport("m", "", "", "sac", {}, 100, 0.05, np.arange(19.0), ("",) * 19, (None,) * 80))
    'about 4 of 80 suspects, were all independent'
    """
    count = len(report.verifications)
    expected = round(report.alpha * count)
    return f"about {expected} of {count} suspects, were all independent" if suffices(report) and expected else ""


def aligned(values: Iterable[float], digits: int = 3) -> list[str]:
    """Writes scores with the same decimals, so many digits of their spread; `–` where undefined.

    >>> aligned([-0.5, 0.25, float("nan")]), aligned([7.0, 7.0])
    (['-0.500', '0.250', '–'], ['7.00', '7.00'])
    """
    numbers = np.asarray(list(values), np.float64)
    known = numbers[np.isfinite(numbers)]
    spread = (float(np.ptp(known)) or float(np.abs(known).max())) if known.size else 0.0
    decimals = min(max(digits - 1 - math.floor(math.log10(spread)), 0), 8) if spread > 0 else digits - 1
    return [f"{value:.{decimals}f}" if math.isfinite(value) else "–" for value in numbers]


def checked_scores(matrix: FingerprintMatrix) -> np.ndarray:
    """Scores of owners against suspects as float64 `[A, B]`.

    Raises:
        DataError: not one score per owner and suspect.
    """
    scores = np.asarray(matrix.scores, np.float64)
    expected = len(matrix.owners), len(matrix.suspects)
    if scores.shape != expected and scores.size + expected[0] * expected[1] > 0:
        raise DataError(
            f"expected scores of shape {expected}, one per owner and suspect, got {scores.shape} in the fingerprint "
            "matrix; make it again"
        )
    return scores.reshape(expected)


def best_suspects(matrix: FingerprintMatrix, count: int) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each owner with its suspects of highest scores, highest first; names without what all paths share.

    Args:
        matrix: of any size.
        count: suspects told of each owner; the owner itself is none of them.

    Returns:
        `(owner, [(suspect, score in words), ...])`.

    Raises:
        DataError: not one score per owner and suspect.
    """
    scores = checked_scores(matrix)
    texts = np.array(aligned(scores.ravel()), object).reshape(scores.shape)
    suspects, found = wording.unshared(matrix.suspects), []
    for owner, name, row, written in zip(matrix.owners, wording.unshared(matrix.owners), scores, texts, strict=True):
        order = np.argsort(np.where(np.isnan(row), np.inf, -row), kind="stable")
        others = [k for k in order if matrix.suspects[k] != owner][:count]
        found.append((name, [(suspects[k], str(written[k])) for k in others]))
    return found


def _rank(report: OwnershipReport, verification: Verification) -> str:
    count = len(report.references)
    if not count:
        return "no independent model to compare with"
    as_high = int(np.sum(np.asarray(report.references) >= verification.score))
    if as_high:
        return f"{as_high} of {count} independent models score as high"
    return f"higher than {'the one independent model' if count == 1 else f'all {count} independent models'}"
