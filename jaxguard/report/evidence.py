"""What verdicts rest on, in words: counts of channels, recovered triggers, references, p-values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from jaxguard.errors import DataError
from jaxguard.report import wording
from jaxguard.types import (
    Finding,
    FingerprintMatrix,
    LayerScores,
    OwnershipReport,
    PruningPath,
    RecoveredTrigger,
    Reference,
    Verification,
)
from jaxguard.types.findings import NOT_ASKED

if TYPE_CHECKING:
    import numpy as np

FLAGGED_ANOMALY = 2.0
"""A class is flagged when its anomaly index is larger: its norm lies more than so many deviations below the median."""


def numbers(finding: Finding) -> list[tuple[str, str]]:
    """What was measured on a scanned network, as `(name, value)`; what is unknown is left out.

    >>> from jaxguard.types import Provenance, Verdict
    >>> numbers(Finding(Provenance("m.npz"), Verdict.SUSPECTED, score=3.016))
    [('score', '3.02')]
    """
    shown = [("score", finding.score), ("p", finding.p_value), ("q", finding.q_value)]
    facts = [(name, wording.rate(value) if name in "pq" else wording.number(value)) for name, value in shown]
    facts = [pair for pair, (_, value) in zip(facts, shown, strict=True) if math.isfinite(value)]
    if finding.layers:
        above, total = sum(layer.above for layer in finding.layers), sum(layer.channels for layer in finding.layers)
        facts.append(("channels above their threshold", f"{above} of {total}"))
        undefined = sum(layer.undefined for layer in finding.layers)
        facts += [("channels without a score", str(undefined))] if undefined else []
    if finding.search is not None and not finding.search.problem:
        facts.append(("searched on", finding.search.source))
    if finding.metrics is not None:
        facts.append(("accuracy", wording.percent(finding.metrics.acc)))
        if finding.metrics.asr is not None:
            facts.append(("success of the given trigger", wording.percent(finding.metrics.asr)))
    return facts


def unsearched(findings: Iterable[Finding]) -> str:
    """Counts by reason the networks in which no triggers were searched; empty where all were, or none was asked for.

    >>> from jaxguard.types import Provenance, TriggerSearch, Verdict
    >>> one = Finding(Provenance("m.npz"), Verdict.INCONCLUSIVE, unsearched="not among the 1 most suspicious")
    >>> unsearched([one, one, Finding(Provenance("n.npz"), Verdict.NO_TRIGGER, search=TriggerSearch())])
    'triggers were searched in 1 of 3 checkpoints, in 2 not: not among the 1 most suspicious'
    """
    reasons, searched = Counter[str](), 0
    for one in findings:
        searched += one.search is not None
        if one.unsearched not in ("", NOT_ASKED):
            reasons[one.unsearched] += 1
    missing = reasons.total()
    if not missing:
        return ""
    told = "; ".join(f"{count:,}: {why}" if len(reasons) > 1 else why for why, count in reasons.most_common())
    return f"triggers were searched in {searched:,} of {searched + missing:,} checkpoints, in {missing:,} not: {told}"


def cut_count(layers: Sequence[LayerScores]) -> tuple[int, int]:
    """Counts the channels that a defense edits, and all channels it scored."""
    return sum(int(layer.mask.sum()) for layer in layers), sum(len(layer.mask) for layer in layers)


def suspicion(trigger: RecoveredTrigger) -> str:
    """Says which class a trigger search suspects, and on what numbers.

    >>> import numpy as np
    >>> suspicion(RecoveredTrigger(np.array([7.1, 48]), np.ones(2), np.array([4.2, 0]), 0, *np.ones((3, 0)), "images"))
    'class 0 suspected (L1 norm 7.10, anomaly index 4.20)'
    """
    if trigger.target is not None:
        norm, anomaly = trigger.norms[trigger.target], trigger.anomaly[trigger.target]
        if is_named(trigger):
            return f"class {trigger.target} was named beforehand (L1 norm {wording.pixels(norm)})"
        doubt = "" if anomaly > FLAGGED_ANOMALY else ", though not flagged"
        index = f"anomaly index {wording.deviations(anomaly)}"
        return f"class {trigger.target} suspected{doubt} (L1 norm {wording.pixels(norm)}, {index})"
    defined = [(float(index), -k) for k, index in enumerate(trigger.anomaly) if math.isfinite(index)]
    if not defined:
        return "no class suspected (no anomaly index is defined)"
    highest = -max(defined)[1]
    index = wording.deviations(trigger.anomaly[highest])
    return f"no class suspected (highest anomaly index {index}, of class {highest})"


def is_named(trigger: RecoveredTrigger) -> bool:
    """Whether its class was named beforehand, so that no other was searched."""
    return [k for k, norm in enumerate(trigger.norms) if not math.isnan(norm)] == [trigger.target]


def cuts_kept(path: PruningPath) -> str:
    """Says how many of the cuts tried were kept, and why no more: `9 of 14 cuts kept (attack below 5 %)`."""
    tried = len(path.channels)
    counts = f"{path.chosen} of {tried} cuts kept" if tried else "no channel cut"
    return f"{counts} ({wording.printable(path.stop)})" if path.stop else counts


def power(references: Iterable[Reference]) -> str:
    """Says how many backdoored networks would have been found, by those known to the profile.

    >>> power([Reference("cnn", (), (), 0.875, (0.8, 0.93)), Reference("vgg", (), (), float("nan"), (0.0, 1.0))])
    'of backdoored networks known to the profile 87.5 % would be suspected'
    """
    known = [reference.power for reference in references if math.isfinite(reference.power)]
    if not known:
        return "how many backdoored networks would be suspected was not measured"
    low, high = map(wording.percent, (min(known), max(known)))
    span = low if low == high else f"{low.removesuffix(' %')} to {high}, by cohort,"
    return f"of backdoored networks known to the profile {span} would be suspected"


def reference(found: Reference | None) -> str:
    """Says what the checkpoints of one cohort were compared with.

    >>> reference(Reference("cnn", (0.1,) * 40, (0.9,) * 32, 0.875, (0.72, 0.95)))
    'compared with 40 clean references; 87.5 % of 32 backdoored ones would be suspected (95 % interval 72.0 to 95.0 %)'
    >>> reference(None)
    'nothing to compare with'
    """
    if found is None or not len(found.scores):
        return "nothing to compare with"
    facts = f"compared with {wording.plural(len(found.scores), 'clean reference')}"
    if not math.isfinite(found.power) or not len(found.suspects):
        return f"{facts}; how many backdoored networks would be suspected was not measured"
    facts += f"; {wording.percent(found.power)} of {len(found.suspects):,} backdoored ones would be suspected"
    if all(map(math.isfinite, found.interval)):
        low, high = (wording.percent(end).removesuffix(" %") for end in found.interval)
        facts += f" (95 % interval {low} to {high} %)"
    return facts


def suffices(report: OwnershipReport) -> bool:
    """Whether there are references enough for a p-value of alpha."""
    return 1 / (len(report.references) + 1) <= report.alpha


def threshold(report: OwnershipReport) -> float:
    """The score that a suspect has to exceed for a p-value of alpha; NaN where references do not suffice.

    >>> import numpy as np
    >>> known = OwnershipReport("m", "", "", "sac", {}, 100, 0.05, np.arange(39.0), ("",) * 39, ())
    >>> threshold(known)  # one reference of 39 may score as high: (1 + 1) / 40
    37.0
    """
    if not suffices(report):
        return math.nan
    import numpy as np

    known = np.sort(np.asarray(report.references, np.float64))[::-1]
    return float(known[math.floor(round(report.alpha * (len(known) + 1), 9)) - 1])


def references(report: OwnershipReport) -> str:
    """Says what suspects are compared with, and from which score on they are accused.

    >>> import numpy as np
    >>> references(OwnershipReport("m", "", "", "sac", {}, 100, 0.05, np.arange(5.0), ("",) * 5, ()))
    '5 independent models, scores 0 to 4: too few for p ≤ 0.05'
    """
    scores = list(map(float, report.references))
    models = f"{len(scores) or 'no'} independent model{'s' * (len(scores) != 1)}"
    if scores:
        low, high = wording.number(min(scores)), wording.number(max(scores))
        models += f", score {high}" if len(scores) == 1 else f", scores {low} to {high}"
    if not suffices(report):
        return f"{models}: too few for p ≤ {report.alpha:g}"
    return f"{models}: p ≤ {report.alpha:g} above {wording.number(threshold(report))}"


def accused_by_chance(report: OwnershipReport) -> str:
    """Says how many suspects would be accused were all of them independent; empty where it is none, rounded.

    >>> import numpy as np
    >>> accused_by_chance(OwnershipReport("m", "", "", "sac", {}, 100, 0.05, np.arange(19.0), ("",) * 19, (None,) * 80))
    'about 4 of 80 suspects, were all independent'
    """
    count = len(report.verifications)
    expected = round(report.alpha * count)
    return f"about {expected} of {count} suspects, were all independent" if suffices(report) and expected else ""


def comparison(report: OwnershipReport, found: Verification) -> str:
    """Says how a suspect's score compares with those of independent models, and how often chance would do as much."""
    count = len(report.references)
    as_high = sum(score >= found.score for score in report.references)
    rank = f"higher than {'the one independent model' if count == 1 else f'all {count} independent models'}"
    if not count:
        rank = "no independent model to compare with"
    elif as_high:
        rank = f"{as_high} of {count} independent models score as high"
    facts = [f"{wording.method_name(report.method)} score {wording.number(found.score)}, {rank}"]
    if count and math.isfinite(found.p_value):
        facts.append(f"an independent model would score as high {wording.odds(found.p_value)}")
    if found.null_p_value is not None:
        chance = wording.odds(found.null_p_value)
        facts.append(f"by the method’s own null distribution, chance would do so {chance}")
    return "; ".join(facts)


def checked_scores(matrix: FingerprintMatrix) -> np.ndarray:
    """Scores of owners against suspects as float64 `[A, B]`.

    Raises:
        DataError: not one score per owner and suspect.
    """
    import numpy as np

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
        count: suspects named of each owner; the owner itself is none of them.

    Returns:
        `(owner, [(suspect, score in words), ...])`.

    Raises:
        DataError: not one score per owner and suspect.
    """
    scores = checked_scores(matrix)
    texts = iter(wording.aligned(scores.ravel()))
    suspects, found = wording.unshared(matrix.suspects), []
    for owner, name, row in zip(matrix.owners, wording.unshared(matrix.owners), scores, strict=True):
        written = [next(texts) for _ in row]
        order = sorted(range(len(row)), key=lambda k: math.inf if math.isnan(row[k]) else -row[k])
        others = [k for k in order if matrix.suspects[k] != owner][:count]
        found.append((name, [(suspects[k], written[k]) for k in others]))
    return found
