"""Verdicts in words: one headline per scan, repair and suspect, the same in the terminal and on the page."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple

from jaxguard.report import evidence, wording
from jaxguard.types import Finding, Metrics, OwnershipReport, Repair, Report, Verdict, Verification
from jaxguard.types.findings import CODE

REMOVED_ASR = 0.10
"""A repair takes the backdoor out when at most this share of triggered images still reaches the target."""

HARMFUL_ACC_DROP = 0.05
"""A repair that loses more clean accuracy than this is said to harm the model."""

MAX_HEADLINES = 8
"""Suspects with a headline of their own; of more, the accused come first and the rest is counted."""

SKIPPED = "skipped"
"""What stands for a verdict beside a file that was not opened."""

Tone = Literal["good", "bad", "open"]
"""How a headline reads: a success, a failure, or a question left open."""

SYMBOLS: dict[Tone, str] = {"good": "✓", "bad": "✗", "open": "?"}
"""A sign per tone, so that colour never carries meaning alone."""


class Sign(NamedTuple):
    """How a verdict is shown.

    Attributes:
        tone: of its colour.
        mark: a sign of its own, for colour never carries meaning alone.
        label: what its count is called.
    """

    tone: Tone
    mark: str
    label: str


SIGNS: dict[str, Sign] = {
    Verdict.CODE_EXECUTION: Sign("bad", "✗", "code execution"),
    Verdict.CONFIRMED: Sign("bad", "✗", "confirmed"),
    Verdict.SUSPECTED: Sign("bad", "✗", "suspected"),
    Verdict.NO_EVIDENCE: Sign("open", "○", "no evidence"),
    Verdict.NO_TRIGGER: Sign("open", "○", "no trigger found"),
    Verdict.INCONCLUSIVE: Sign("open", "?", "inconclusive"),
    Verdict.ERROR: Sign("bad", "!", "could not be scored"),
    SKIPPED: Sign("open", "–", "skipped"),
}
"""Every verdict, the most urgent first."""

ACCUSED = (Verdict.CODE_EXECUTION, Verdict.CONFIRMED, Verdict.SUSPECTED)
"""Verdicts that a file should not be used after."""

_RANKS = {verdict: rank for rank, verdict in enumerate(SIGNS)}


class Headline(NamedTuple):
    """One verdict in words.

    Attributes:
        tone: `good`, `bad` or `open`.
        lead: the verdict itself, such as `FT-SAM takes the backdoor out`.
        detail: the reason and the numbers behind it.
    """

    tone: Tone
    lead: str
    detail: str

    def __str__(self) -> str:
        return f"{self.lead} – {self.detail}"


def headlines(report: Report) -> list[tuple[str, Headline]]:
    """All verdicts of a report, each with what it is about: the scan, every repair, every suspect.

    Args:
        report: of any size; many suspects are summed up.

    Returns:
        `(subject, headline)`; empty for a report without verdicts.
    """
    found = []
    if report.findings or report.skipped or not (report.repairs or report.ownerships or report.matrices):
        subject = report.findings[0].provenance.name if len(report.findings) == 1 else ""
        found.append((subject, scan_headline(report)))
    found += [(repair.checkpoint, repair_headline(repair)) for repair in report.repairs]
    return found + ownership_headlines(report)


def tally(report: Report) -> dict[str, int]:
    """Counts findings by verdict, and skipped files; all keys of `SIGNS`.

    >>> list(tally(Report("", skipped=(("notes.txt", "no checkpoint"),))).values())
    [0, 0, 0, 0, 0, 0, 0, 1]
    """
    counts = Counter(finding.verdict for finding in report.findings)
    return {verdict: counts[verdict] for verdict in Verdict} | {SKIPPED: len(report.skipped)}


def by_suspicion(findings: Iterable[Finding]) -> list[Finding]:
    """Sorts findings: by verdict, then by q, p and score, the most suspicious first and the undefined last."""
    return sorted(findings, key=_suspicion)


def _suspicion(finding: Finding) -> tuple[float, ...]:
    keys = (finding.q_value, finding.p_value, -finding.score)
    return (_RANKS[finding.verdict], *(math.inf if math.isnan(key) else key for key in keys))


def scan_headline(report: Report) -> Headline:
    """Says what a scan found, and how many files it says nothing about.

    Args:
        report: of any size.

    Returns:
        `bad` where a backdoor is suspected, else `open`: a scan never acquits.

    >>> scan_headline(Report("", skipped=(("notes.txt", "no checkpoint"),))).lead
    'Nothing was scanned; 1 file skipped'
    """
    counts = tally(report)
    if len(report.findings) == 1:
        lead, detail = _alone(report.findings[0])
    else:
        lead, detail = _together(report, counts), []
    errors = counts[Verdict.ERROR]
    verb = "followed to the end" if _is_code_only(report) else "scored"
    left = [f"{errors:,} could not be {verb}"] if 0 < errors < len(report.findings) else []
    left += [f"{wording.plural(counts[SKIPPED], 'file')} skipped"] if counts[SKIPPED] else []
    lead = "; ".join([lead, *([", ".join(left)] if left else [])])
    unclear = sum(one.is_unclear for one in report.findings)
    if unclear:
        where = "" if len(report.findings) == 1 else f" in {unclear:,}"
        lead = f"{lead}; more than a tenth of the weights is not understood{where}"
    tone = "bad" if any(counts[verdict] for verdict in ACCUSED) else "open"
    return Headline(tone, lead, " ".join([*detail, *_error_rates(report, counts)]))


def _alone(finding: Finding) -> tuple[str, list[str]]:
    leads = {
        Verdict.CODE_EXECUTION: "Code execution: do not load this file elsewhere",
        Verdict.CONFIRMED: "Backdoor confirmed",
        Verdict.SUSPECTED: "Backdoor suspected",
        Verdict.NO_EVIDENCE: "No evidence of a backdoor",
        Verdict.NO_TRIGGER: "No trigger found",
        Verdict.INCONCLUSIVE: "Inconclusive",
        Verdict.ERROR: "Could not be scored",
    }
    facts = "; ".join(f"{name} {value}" for name, value in evidence.numbers(finding))
    reason, lead = wording.printable(finding.reason), leads[finding.verdict]
    if finding.verdict is Verdict.SUSPECTED and finding.search is not None:
        lead = f"{lead}: {finding.search.goal}"
    return lead, [text for text in (wording.sentence(reason), wording.sentence(facts)) if text]


def _is_code_only(report: Report) -> bool:
    return bool(report.findings) and all(one.looks == (CODE,) for one in report.findings)


def _together(report: Report, counts: dict[str, int]) -> str:
    count = len(report.findings)
    total = wording.plural(count, "file" if _is_code_only(report) else "checkpoint")
    if counts[Verdict.CODE_EXECUTION]:
        others = f", backdoor suspected in {counts[Verdict.SUSPECTED]:,}" if counts[Verdict.SUSPECTED] else ""
        return f"Code execution in {counts[Verdict.CODE_EXECUTION]:,} of {total}{others}"
    if counts[Verdict.CONFIRMED]:
        others = f", suspected in {counts[Verdict.SUSPECTED]:,}" if counts[Verdict.SUSPECTED] else ""
        return f"Backdoor confirmed in {counts[Verdict.CONFIRMED]:,} of {total}{others}"
    if counts[Verdict.SUSPECTED]:
        return f"Backdoor suspected in {counts[Verdict.SUSPECTED]:,} of {total}"
    passed = {Verdict.NO_EVIDENCE: "No evidence of a backdoor", Verdict.NO_TRIGGER: "No trigger found"}
    passed |= {Verdict.INCONCLUSIVE: "No code that loading would run found"} if _is_code_only(report) else {}
    for verdict in (verdict for verdict in passed if counts[verdict]):
        return f"{passed[verdict]} in {counts[verdict]:,} of {total}"
    if counts[Verdict.INCONCLUSIVE]:
        return f"Inconclusive: none of {total} could be judged"
    return f"Nothing known: none of {total} could be scored" if count else "Nothing was scanned"


def _error_rates(report: Report, counts: dict[str, int]) -> Iterable[str]:
    percent, searched = f"{100 * report.alpha:g} %", [one for one in report.findings if one.search is not None]
    if any(one.verdict is Verdict.SUSPECTED for one in searched):
        yield "A suspected backdoor is not proven: sound networks can have such a trigger too."
    elif counts[Verdict.SUSPECTED] and report.control == "each":
        yield (
            f"Each was judged as if it were alone: {percent} of the clean checkpoints are expected to be among those "
            "suspected; none is proven to be backdoored."
        )
    elif counts[Verdict.SUSPECTED]:
        yield (
            f"At most {percent} of the checkpoints suspected are expected to be clean (false discovery rate); none is "
            "proven to be backdoored."
        )
    if counts[Verdict.NO_TRIGGER]:
        yield (
            "Without a trigger a checkpoint is not acquitted: triggers of other kinds and sizes, and those of one "
            "source class, were not searched."
        )
    if counts[Verdict.NO_EVIDENCE]:
        yield f"A checkpoint without evidence is not acquitted: {evidence.power(report.references)}."
    if counts[Verdict.INCONCLUSIVE] and _is_code_only(report):
        yield "Weights were not examined."
    elif not report.profile and counts[Verdict.INCONCLUSIVE] and not searched:
        yield "Without a reference profile it is unknown which scores are high for a clean checkpoint."
    if counts[Verdict.ERROR] or counts[SKIPPED]:
        yield "Nothing is known of files that were skipped or could not be scored."


def repair_headline(repair: Repair) -> Headline:
    """Says whether a repair took the known backdoor out.

    The backdoor is *out* when ASR is at most `REMOVED_ASR` afterwards, *left in* when more than half of the ASR
    remains, *weakened* in between. Losing more than `HARMFUL_ACC_DROP` of ACC on the way is said in the lead.
    """
    facts = []
    if repair.before is not None and repair.after is not None:
        if repair.before.asr is not None:
            facts.append(f"ASR {wording.change(repair.before.asr, repair.after.asr)}")
        facts.append(f"ACC {wording.change(repair.before.acc, repair.after.acc)}")
    if repair.trigger is not None:
        target, word = repair.trigger.target, "named" if evidence.is_named(repair.trigger) else "suspected"
        facts.append("no class suspected" if target is None else f"class {target} {word}")
    if repair.layers:
        cut, total = evidence.cut_count(repair.layers)
        facts.append(f"{cut} of {total} channels cut")
    tone, phrase = _outcome(repair.before, repair.after)
    lead = f"{wording.method_name(repair.method)} {phrase}"
    return Headline(tone, lead, ", ".join(facts) or f"{len(repair.change)} leaves changed")


def _outcome(before: Metrics | None, after: Metrics | None) -> tuple[Tone, str]:
    if before is None or after is None:
        return "open", "was applied, its effect not measured: no test data"
    if before.asr is None or after.asr is None:
        return "open", "was applied, its effect on a backdoor not measured: no trigger"
    if not all(map(math.isfinite, (before.asr, after.asr, before.acc, after.acc))):
        return "open", "was applied, its effect is undefined"
    was_in, is_in = before.asr > REMOVED_ASR, after.asr > REMOVED_ASR
    is_harmed = before.acc - after.acc > HARMFUL_ACC_DROP
    if is_in:
        phrase = "leaves the backdoor in" if after.asr > before.asr / 2 else "weakens the backdoor but leaves it in"
        return "bad", f"{phrase} and harms the model" if is_harmed else phrase
    if was_in:
        harmed, out = "takes the backdoor out but harms the model", "takes the backdoor out"
        return ("bad", harmed) if is_harmed else ("good", out)
    return ("bad", "harms the model") if is_harmed else ("open", "found no working backdoor to take out")


def copy_verdict(verdict: Verdict) -> str:
    """A verdict on a suspect as words: `copy suspected`, `no evidence`, `inconclusive`.

    >>> copy_verdict(Verdict.SUSPECTED)
    'copy suspected'
    """
    return "copy suspected" if verdict is Verdict.SUSPECTED else str(verdict)


def verification_headline(report: OwnershipReport, found: Verification) -> Headline:
    """Says whether one suspect looks like a copy, and how often an independent model would.

    Args:
        report: whose certificate it is.
        found: one of the report's verifications.

    Returns:
        `bad` for a suspected copy, else `open`: no comparison acquits.
    """
    owner = wording.shorten(report.owner.rstrip("/").rpartition("/")[2])
    leads = {
        Verdict.CODE_EXECUTION: "Code execution: do not load this file elsewhere",
        Verdict.SUSPECTED: f"Copy of {owner} suspected",
        Verdict.NO_EVIDENCE: f"No evidence of a copy of {owner}",
        Verdict.INCONCLUSIVE: f"Inconclusive: too few models independent of {owner}",
        Verdict.ERROR: f"Could not be compared with {owner}",
    }
    tone = "bad" if found.verdict is Verdict.SUSPECTED else "open"
    return Headline(tone, leads[found.verdict], evidence.comparison(report, found))


def ownership_headlines(report: Report) -> list[tuple[str, Headline]]:
    """Headlines of all suspects with their names; of more than `MAX_HEADLINES` the accused first, the rest counted."""
    pairs = [(one, found) for one in report.ownerships for found in one.verifications]
    shown = pairs
    if len(pairs) > MAX_HEADLINES:
        accused = [pair for pair in pairs if pair[1].verdict is Verdict.SUSPECTED]
        shown = sorted(accused, key=lambda pair: pair[1].p_value)[:MAX_HEADLINES]
    facts = [(found.suspect, verification_headline(one, found)) for one, found in shown]
    for one in report.ownerships if len(shown) < len(pairs) else ():
        hidden = [found for found in one.verifications if not any(found is seen for _, seen in shown)]
        more = "more " if any(seen is one for seen, _ in shown) else ""
        for verdict in dict.fromkeys(found.verdict for found in hidden):
            count = sum(found.verdict is verdict for found in hidden)
            lead = f"{count} {more}suspect{'s' * (count > 1)}: {copy_verdict(verdict)}"
            detail = f"{wording.method_name(one.method)}, {evidence.references(one)}"
            facts.append((f"Copies of {one.owner}", Headline(SIGNS[verdict].tone, lead, detail)))
    return facts
