"""What a report says in plain words: one headline per scan and per repair, shared by the terminal and the page.

Of ownership: see `jaxguard.report.ownership_wording`.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxguard.types import LayerScores, Metrics, PruningPath, RecoveredTrigger, RepairReport, ScanReport

REMOVED_ASR = 0.10
"""A repair takes the backdoor out when at most this share of triggered images still reaches the target."""

HARMFUL_ACC_DROP = 0.05
"""A repair that loses more clean accuracy than this is said to harm the model."""

FLAGGED_ANOMALY = 2.0
"""A class is flagged when its anomaly index is larger: its norm lies more than so many deviations below the median."""

Tone = Literal["good", "bad", "open"]
"""How a headline reads: a success, a failure, or a question left open."""

SYMBOLS: dict[Tone, str] = {"good": "✓", "bad": "✗", "open": "?"}
"""A sign per tone, so that colour never carries meaning alone."""

_ACRONYMS = frozenset({
    "abl", "akh", "anp", "bnp", "clp", "ep", "ft", "jc", "nad", "npd", "otbr", "rnp", "sac", "sam", "tafa", "tsbd",
    "zest",
})  # fmt: skip
_NAMES = {
    "fine-pruning": "Fine-Pruning",
    "i-bau": "i-BAU",
    "ipguard": "IPGuard",
    "liteguard": "LiteGuard",
    "metav": "MetaV",
    "neural-cleanse": "Neural Cleanse",
    "shapley": "ShapPruning",
}


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


def pixels(norm: float) -> str:
    """Writes an L1 norm with three significant digits, and never an exponent.

    >>> [pixels(norm) for norm in (7.119, 44.0, 1024.4, 0.0, float("nan"))]
    ['7.12', '44.0', '1024', '0', 'undefined']
    """
    if not math.isfinite(norm) or norm == 0:
        return number(norm)
    decimals = max(2 - math.floor(math.log10(abs(norm))), 0)
    return f"{norm:.{min(decimals, 3)}f}"


def deviations(index: float) -> str:
    """Writes an anomaly index with two decimals.

    >>> deviations(4.653), deviations(-0.2), deviations(float("inf"))
    ('4.65', '-0.20', 'undefined')
    """
    return f"{index:.2f}" if math.isfinite(index) else "undefined"


def estimates(values: Iterable[float], errors: Iterable[float]) -> list[str]:
    """Writes a column of values with their standard errors, all to two digits of the smallest error.

    Args:
        values: NaN where undefined.
        errors: one per value; not finite where unknown.

    Returns:
        One text per value, all with the same decimals, so that the column lines up.

    >>> estimates([0.3124, 0.04], [0.0118, 0.0031])
    ['0.3124 ± 0.0118', '0.0400 ± 0.0031']
    """
    pairs = list(zip(values, errors, strict=True))
    known = [error for _, error in pairs if math.isfinite(error) and error > 0]
    decimals = min(max(1 - math.floor(math.log10(min(known))), 2), 8) if known else 4

    def text(value: float) -> str:
        return f"{value:.{decimals}f}" if math.isfinite(value) else "undefined"

    return [f"{text(value)} ± {text(error)}" for value, error in pairs]


def printable(text: str) -> str:
    r"""Escapes whatever could drive a terminal or reorder a line: control codes, bidirectional marks, lone surrogates.

    >>> printable("model\x1b[2J.npz")
    'model\\x1b[2J.npz'
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def unshared(names: Sequence[str]) -> list[str]:
    """Paths without the folders and file names that all of them share; one path alone stays whole.

    >>> unshared(["runs/a/m.npz", "runs/b/c/m.npz"]), unshared(["runs/a.npz", "runs/a.npz"])
    (['a', 'b/c'], ['runs/a.npz', 'runs/a.npz'])
    """
    if len(set(names)) < 2:
        return list(names)
    parts = [name.split("/") for name in names]
    rest = [part[_alike(parts) :] for part in parts]
    end = min(_alike([part[::-1] for part in rest]), max(min(map(len, rest)) - 1, 0))
    short = ["/".join(part[: len(part) - end]) for part in rest]
    return short if all(short) else list(names)


def _alike(parts: Sequence[Sequence[str]]) -> int:
    """How many first items all lists share."""
    columns = zip(*parts, strict=False)
    return next((k for k, column in enumerate(columns) if len(set(column)) > 1), min(map(len, parts)))


def method_name(method: str) -> str:
    """Names a method as its paper does.

    >>> method_name("ft-sam"), method_name("i-bau"), method_name("shapley"), method_name("my_own")
    ('FT-SAM', 'i-BAU', 'ShapPruning', 'My-own')
    """
    if method.lower() in _NAMES:
        return _NAMES[method.lower()]
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


def suspicion(trigger: RecoveredTrigger) -> str:
    """Says which class an inversion suspects, and on what numbers.

    >>> suspicion(RecoveredTrigger(np.array([7.1, 48]), np.ones(2), np.array([4.2, 0]), 0, *np.ones((3, 0)), "images"))
    'class 0 suspected (L1 norm 7.10, anomaly index 4.20)'
    """
    if trigger.target is not None:
        norm, anomaly = trigger.norms[trigger.target], trigger.anomaly[trigger.target]
        if is_named(trigger):
            return f"class {trigger.target} was named beforehand (L1 norm {pixels(norm)})"
        doubt = "" if anomaly > FLAGGED_ANOMALY else ", though not flagged"
        return f"class {trigger.target} suspected{doubt} (L1 norm {pixels(norm)}, anomaly index {deviations(anomaly)})"
    if not np.isfinite(trigger.anomaly).any():
        return "no class suspected (no anomaly index is defined)"
    highest = int(np.nanargmax(np.where(np.isfinite(trigger.anomaly), trigger.anomaly, np.nan)))
    return f"no class suspected (highest anomaly index {deviations(trigger.anomaly[highest])}, of class {highest})"


def is_named(trigger: RecoveredTrigger) -> bool:
    """Whether its class was named beforehand, so that no other was looked at."""
    return np.flatnonzero(~np.isnan(trigger.norms)).tolist() == [trigger.target]


def cuts_kept(path: PruningPath) -> str:
    """Says how many of the cuts tried were kept, and why no more: `9 of 14 cuts kept (attack below 5 %)`."""
    tried = len(path.channels)
    counts = f"{path.chosen} of {tried} cuts kept" if tried else "no channel cut"
    return f"{counts} ({printable(path.stop)})" if path.stop else counts


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
    if repair.trigger is not None:
        target, word = repair.trigger.target, "named" if is_named(repair.trigger) else "suspected"
        numbers.append("no class suspected" if target is None else f"class {target} {word}")
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
