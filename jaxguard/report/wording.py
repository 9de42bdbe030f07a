"""What a report says in plain words: one headline per scan and per repair, shared by the terminal and the page."""

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxguard.types import LayerScores, Metrics, RepairReport, ScanReport

REMOVED_ASR = 0.10
"""A repair takes the backdoor out when at most this share of triggered images still reaches the target."""

HARMFUL_ACC_DROP = 0.05
"""A repair that loses more clean accuracy than this is said to harm the model."""

Tone = Literal["good", "bad", "open"]
"""How a headline reads: a success, a failure, or a question left open."""

SYMBOLS: dict[Tone, str] = {"good": "✓", "bad": "✗", "open": "?"}
"""A sign per tone, so that colour never carries meaning alone."""

_ACRONYMS = frozenset({"abl", "anp", "bnp", "clp", "ft", "nad", "npd", "otbr", "rnp", "sam", "tsbd"})


class Headline(NamedTuple):
    """One verdict in words.

    Attributes:
        tone: `good`, `bad` or `open`.
        lead: the verdict itself, such as `FT-SAM takes the backdoor out`.
        detail: the numbers behind it.
    """

    tone: Tone
    lead: str
    detail: str

    def __str__(self) -> str:
        return f"{self.lead} – {self.detail}"


def percent(rate: float | None) -> str:
    """Writes a rate in [0, 1] as a percentage with one decimal that never rounds to a false 0 or 100.

    Args:
        rate: in [0, 1]; None where it was not measured, NaN where it has no value.

    Returns:
        Such as `99.7 %`; `–` for None, `undefined` for NaN.

    >>> [percent(rate) for rate in (0.997, 1.0, 0.9999, 0.0, 0.0001, None)]
    ['99.7 %', '100.0 %', '>99.9 %', '0.0 %', '<0.1 %', '–']
    """
    if rate is None:
        return "–"
    if not math.isfinite(rate):
        return "undefined"
    if 0 < rate < 0.0005:
        return "<0.1 %"
    if 0.9995 <= rate < 1:
        return ">99.9 %"
    return f"{100 * rate:.1f} %"


def change(before: float | None, after: float | None) -> str:
    """Writes two rates as `98.9 % → 98.1 %`, or `–` where neither was measured.

    >>> change(0.989, 0.981)
    '98.9 % → 98.1 %'
    """
    if before is None and after is None:
        return "–"
    return f"{percent(before)} → {percent(after)}"


def number(value: float) -> str:
    """Writes a score with three significant digits; `undefined` where it is not finite.

    >>> number(2.6), number(22.134), number(float("nan"))
    ('2.6', '22.1', 'undefined')
    """
    return f"{value:.3g}" if math.isfinite(value) else "undefined"


def printable(text: str) -> str:
    r"""Escapes whatever could drive a terminal or reorder a line: control codes, bidirectional marks, lone surrogates.

    >>> printable("model\x1b[2J.npz")
    'model\\x1b[2J.npz'
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def method_name(method: str) -> str:
    """Names a method as its paper does.

    >>> method_name("ft_sam"), method_name("fine_pruning")
    ('FT-SAM', 'Fine-pruning')
    """
    words = [word.upper() if word.lower() in _ACRONYMS else word for word in re.split("[_-]", printable(method))]
    name = "-".join(words)
    return name[:1].upper() + name[1:]


def cut_count(layers: Sequence[LayerScores]) -> tuple[int, int]:
    """Counts the channels a defense edits and all channels it looked at."""
    return sum(int(np.sum(layer.mask)) for layer in layers), sum(len(layer.mask) for layer in layers)


def above_count(layers: Sequence[LayerScores]) -> tuple[int, int]:
    """Counts the channels above their layer's threshold and all channels; an undefined score is not above."""
    above = sum(int(np.sum(np.asarray(layer.scores) > layer.threshold)) for layer in layers)
    return above, sum(len(layer.scores) for layer in layers)


def undefined_count(layers: Sequence[LayerScores]) -> int:
    """Counts the channels that have no score."""
    return sum(int(np.sum(layer.undefined)) for layer in layers)


def scan_headline(scan: ScanReport) -> Headline:
    """Says what a scan found.

    Args:
        scan: `verdict` is quoted; `inconclusive` is explained.

    Returns:
        `open` for an inconclusive scan, `bad` for every other verdict: a scan never acquits.
    """
    above, total = above_count(scan.layers)
    if math.isfinite(scan.score):
        numbers = [
            f"highest channel z-score {number(scan.score)}",
            f"{above} of {total} channels above their threshold",
        ]
    else:
        numbers = [f"no channel z-score exists ({total} channels seen)"]
    if scan.metrics is not None and scan.metrics.asr is not None:
        numbers.append(f"the given trigger succeeds on {percent(scan.metrics.asr)} of the images")
    verdict = printable(scan.verdict)
    if scan.verdict == "inconclusive":
        return Headline("open", "Inconclusive: no reference fleet to compare with", ", ".join(numbers))
    return Headline("bad", verdict[:1].upper() + verdict[1:], ", ".join(numbers))


def repair_headline(repair: RepairReport) -> Headline:
    """Says whether a repair took the known backdoor out.

    The backdoor is *out* when ASR is at most `REMOVED_ASR` afterwards, *left in* when more than half of the ASR
    remains, *weakened* in between. Losing more than `HARMFUL_ACC_DROP` of ACC on the way is said in the lead.
    """
    name = method_name(repair.method)
    numbers = []
    if repair.before is not None and repair.after is not None:
        if repair.before.asr is not None:
            numbers.append(f"ASR {change(repair.before.asr, repair.after.asr)}")
        numbers.append(f"ACC {change(repair.before.acc, repair.after.acc)}")
    if repair.layers:
        cut, total = cut_count(repair.layers)
        numbers.append(f"{cut} of {total} channels cut")
    tone, phrase = _outcome(repair.before, repair.after)
    return Headline(tone, f"{name} {phrase}", ", ".join(numbers) or f"{len(repair.change)} leaves changed")


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
        return (
            ("bad", "takes the backdoor out but harms the model") if is_harmed else ("good", "takes the backdoor out")
        )
    return ("bad", "harms the model") if is_harmed else ("open", "found no working backdoor to take out")
