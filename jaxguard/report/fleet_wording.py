"""What a fleet report says: how many checkpoints got which verdict, who comes first, how often we are wrong."""

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jaxguard.report import wording
from jaxguard.types import FleetEntry, FleetReport, Reference

SKIPPED = "skipped"
"""What is said of a file that nobody looked into, beside the verdicts of `FleetEntry`."""


class Verdict(NamedTuple):
    """How a verdict is shown.

    Attributes:
        tone: of its colour.
        sign: a mark of its own, for colour never carries meaning alone.
        label: what its count is called.
    """

    tone: wording.Tone
    sign: str
    label: str


VERDICTS = {
    "backdoor suspected": Verdict("bad", "✗", "suspected"),
    "no evidence": Verdict("open", "○", "no evidence"),
    "inconclusive": Verdict("open", "?", "inconclusive"),
    "error": Verdict("bad", "!", "could not be read"),
    SKIPPED: Verdict("open", "–", "skipped"),
}
"""Every verdict, the one a reader asks about first leading."""

_RANKS = {verdict: rank for rank, verdict in enumerate(VERDICTS)}


class Tally(NamedTuple):
    """How many files there were of each kind.

    Attributes:
        suspected: a backdoor is suspected.
        innocent: no evidence of one.
        inconclusive: nobody can tell; verdicts that this version does not know are among them.
        failed: could not be read or scored.
        skipped: nobody looked.
    """

    suspected: int
    innocent: int
    inconclusive: int
    failed: int
    skipped: int

    @property
    def examined(self) -> int:
        """Checkpoints that were read and scored."""
        return self.suspected + self.innocent + self.inconclusive


def tally(report: FleetReport) -> Tally:
    """Counts a fleet by verdict.

    >>> tally(FleetReport("", "", (), skipped=(("notes.txt", "no checkpoint"),)))
    Tally(suspected=0, innocent=0, inconclusive=0, failed=0, skipped=1)
    """
    counts = Counter(shown(entry.verdict) for entry in report.entries)
    counts[SKIPPED] += len(report.skipped)
    return Tally(*(counts[verdict] for verdict in VERDICTS))


def shown(verdict: str) -> str:
    """A verdict as it is counted: one that this version does not know is inconclusive."""
    return verdict if verdict in VERDICTS else "inconclusive"


def by_suspicion(entries: Iterable[FleetEntry]) -> list[FleetEntry]:
    """Sorts checkpoints: by verdict, then by q, p, score and z, the most suspicious first and the undefined last."""
    return sorted(entries, key=_suspicion)


def _suspicion(entry: FleetEntry) -> tuple[float, ...]:
    keys = (entry.q_value, entry.p_value, -entry.score, -entry.z)
    return (_RANKS[shown(entry.verdict)], *(math.inf if math.isnan(key) else key for key in keys))


def headline(report: FleetReport) -> wording.Headline:
    """Says what a scan found, and how many files it says nothing about.

    Args:
        report: of any size.

    Returns:
        `bad` where a backdoor is suspected, else `open`: a scan never acquits.

    >>> headline(FleetReport("", "", (), skipped=(("notes.txt", "no checkpoint"),))).lead
    'Nothing was scanned; 1 file skipped'
    """
    counts = tally(report)
    total = plural(len(report.entries), "checkpoint")
    if counts.suspected:
        lead = f"Backdoor suspected in {counts.suspected:,} of {total}"
    elif counts.innocent:
        lead = f"No evidence of a backdoor in {counts.innocent:,} of {total}"
    elif counts.inconclusive:
        lead = f"Inconclusive: {_none_of(len(report.entries), 'judged')}"
    else:
        lead = f"Nothing known: {_none_of(counts.failed, 'read')}" if counts.failed else "Nothing was scanned"
    unexamined = [f"{counts.failed:,} could not be read"] if counts.failed and counts.examined else []
    unexamined += [f"{plural(counts.skipped, 'file')} skipped"] if counts.skipped else []
    lead = "; ".join([lead, *([", ".join(unexamined)] if unexamined else [])])
    return wording.Headline("bad" if counts.suspected else "open", lead, " ".join(_error_rates(report, counts)))


def _none_of(count: int, done: str) -> str:
    return f"none of {count:,} checkpoints could be {done}" if count > 1 else f"the checkpoint could not be {done}"


def _error_rates(report: FleetReport, counts: Tally) -> Iterable[str]:
    if counts.suspected and report.control == "each":
        yield (
            f"Each was judged as if it were alone: {100 * report.alpha:g} % of the innocent checkpoints are expected "
            "to be among those suspected; none is proven guilty."
        )
    elif counts.suspected:
        yield (
            f"At most {100 * report.alpha:g} % of the checkpoints suspected are expected to be innocent (false "
            "discovery rate); none is proven guilty."
        )
    if counts.innocent:
        yield f"A checkpoint without evidence is not acquitted: {power(report.references)}."
    if not report.profile and counts.inconclusive:
        yield "Without a reference profile nothing tells which scores are high for an innocent checkpoint."
    if counts.failed or counts.skipped:
        yield "Of files that were skipped or could not be read nothing is known."


def power(references: Iterable[Reference]) -> str:
    """Says how many backdoored models would have been found, by those known to the profile.

    >>> power([Reference("cnn", (), (), 0.875, (0.8, 0.93)), Reference("vgg", (), (), float("nan"), (0.0, 1.0))])
    'of backdoored models known to the profile 87.5 % would be suspected'
    """
    known = [reference.power for reference in references if math.isfinite(reference.power)]
    if not known:
        return "how many backdoored models would be suspected was not measured"
    low, high = map(wording.percent, (min(known), max(known)))
    span = low if low == high else f"{low.removesuffix(' %')} to {high}, by bucket,"
    return f"of backdoored models known to the profile {span} would be suspected"


def reference(found: Reference | None) -> str:
    """Says what the checkpoints of one bucket were compared with.

    >>> reference(Reference("cnn", (0.1,) * 40, (0.9,) * 32, 0.875, (0.72, 0.95)))
    'compared with 40 clean references; 87.5 % of 32 backdoored ones would be suspected (95 % interval 72.0 to 95.0 %)'
    >>> reference(None)
    'nothing to compare with'
    """
    if found is None or not len(found.scores):
        return "nothing to compare with"
    told = f"compared with {plural(len(found.scores), 'clean reference')}"
    if not math.isfinite(found.power) or not len(found.suspects):
        return f"{told}; how many backdoored models would be suspected was not measured"
    told += f"; {wording.percent(found.power)} of {len(found.suspects):,} backdoored ones would be suspected"
    if all(map(math.isfinite, found.interval)):
        low, high = (wording.percent(end).removesuffix(" %") for end in found.interval)
        told += f" (95 % interval {low} to {high} %)"
    return told


def common_folder(paths: Sequence[str]) -> str:
    """The folder that all paths lie in, with the slash at its end; empty where there is none.

    >>> common_folder(["runs/a/m.npz", "runs/b/m.npz"]), common_folder(["runs/a", "gs://b"]), common_folder(["/m"])
    ('runs/', '', '/')
    """
    prefix = os.path.commonprefix(list(paths))  # noqa: RUF071  # character by character, cut back to a slash
    return prefix[: prefix.rfind("/") + 1]


def plural(count: int, noun: str) -> str:
    """A number with its noun.

    >>> plural(1, "file"), plural(12_000, "file")
    ('1 file', '12,000 files')
    """
    return f"{count:,} {noun}{'s' * (count != 1)}"


def size(count: int) -> str:
    """Bytes in decimal units with three digits.

    >>> [size(count) for count in (0, 999, 1000, 44_712_345, 999_999, 3 * 10**15)]
    ['0 B', '999 B', '1.00 kB', '44.7 MB', '1.00 MB', '3.00 PB']
    """
    if count < 1000:
        return f"{count} B"
    value, units = float(count), iter(("kB", "MB", "GB", "TB", "PB"))
    unit = ""
    while value >= 999.5 and unit != "PB":
        value, unit = value / 1000, next(units)
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f} {unit}"


def rate(value: float) -> str:
    """Writes a p or q value with two digits, `–` where there is none.

    >>> rate(0.03125), rate(1.0), rate(float("nan"))
    ('0.031', '1', '–')
    """
    return f"{value:.2g}" if math.isfinite(value) else "–"


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> [duration(seconds) for seconds in (0.25, 59.6, 3725)]
    ['0.25 s', '60 s', '1 h 2 min']
    """
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
