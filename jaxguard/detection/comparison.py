"""Cross-conformal p-values: checkpoints of one bucket compared with its references.

A new checkpoint is scored by the combination of every fold and compared with the references of that fold (Vovk,
Cross-conformal predictors, Annals of Mathematics and Artificial Intelligence 2015). How often a clean one then gets a
p-value of `alpha` or less: `alpha`, if all combinations were one; near it in practice; and at most
`2 alpha + 2 (K - 1) (1 - alpha) / (R + K)` in the worst case of `R` references in `K` folds, since the average of the
folds' p-values is at most doubly too small (Vovk, Wang, Combining p-values via averaging, Biometrika 2020). All of it
holds for checkpoints that are drawn like the references.

Where only some checkpoints are searched for triggers, let it be all those with a p-value of at most `alpha` by their
weights, or more: then a clean one gets one of at most `alpha` no more often than if all were searched. Where the budget
ends before, the rates of both stages add up at worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxguard import verdict
from jaxguard.detection.combination import FEWEST_CLEAN, cross_scores
from jaxguard.detection.profile import BucketProfile, Record, Stage, feature_rows

WEIGHTS, DEEP = "weights", "deep"
"""Names of the stages."""


class Comparison(NamedTuple):
    """What became of one checkpoint.

    Attributes:
        note: why there is no p-value; else what a reader must know of it, or nothing; in words.
        score: mean over the folds, higher is more suspicious; NaN without a comparison.
        p_value: NaN without one.
        references: how many it was compared with.
        stage: `WEIGHTS` or `DEEP`; empty without a comparison.
    """

    note: str
    score: float = np.nan
    p_value: float = np.nan
    references: int = 0
    stage: str = ""


def unusable(known: BucketProfile | None, names: Sequence[str], deep_names: Sequence[str], alpha: float) -> str:
    """Why a bucket's references cannot be compared with.

    Args:
        known: of the profile, None where it has no such bucket.
        names: of the features that checkpoints have by their weights.
        deep_names: of those by a search for triggers.
        alpha: accepted error rate.

    Returns:
        The reason, or nothing.
    """
    if known is None:
        return "the reference profile has no checkpoints of its bucket"
    count, needed = len(known.weights.clean.sha256), max(verdict.needed_references(alpha), FEWEST_CLEAN)
    if count < needed:
        return f"its bucket has {count} references, at least {needed} are needed at alpha {alpha:g}"
    if not known.weights.combinations:
        return "no feature of its bucket's references can be compared; the profile's notes tell"
    deep = () if known.deep is None or not deep_names else known.deep.names[1:]
    if known.weights.names != tuple(names) or (deep and deep != tuple(deep_names)):
        return "the reference profile was made with other features; calibrate again with this version"
    return ""


def compare(records: Sequence[Record], known: BucketProfile, alpha: float) -> list[Comparison]:
    """Compares checkpoints with the references of their bucket.

    By a search for triggers where there was one and the references have as many as `alpha` needs, else by the weights.

    Args:
        records: of this bucket.
        known: of the profile; not `unusable`.
        alpha: accepted error rate.

    Returns:
        One comparison per record.

    Raises:
        DataError: a record has another number of features than the references.
    """
    rows, needed = feature_rows(records, known.weights.names), verdict.needed_references(alpha)
    by_fold = cross_scores(known.weights.combinations, rows)
    hashes = [one.sha256 for one in records]
    found = _compared(hashes, known.weights, WEIGHTS, by_fold, needed)
    for k in np.flatnonzero(np.isnan(by_fold).any(1)):
        found[k] = Comparison(_undefined(rows[k], known.weights))
    if known.deep is None or len(known.deep.clean.sha256) < needed:
        return found

    # A checkpoint that the weights were fitted on has a deep score of its own, or none.
    fitted_on = {*known.weights.clean.sha256, *known.weights.backdoored.sha256}
    eligible = {*known.deep.clean.sha256, *known.deep.backdoored.sha256}
    searched = [
        k
        for k, one in enumerate(records)
        if found[k].stage and _is_searched(one) and (one.sha256 in eligible or one.sha256 not in fitted_on)
    ]
    deep_rows = feature_rows([records[k] for k in searched], known.deep.names[1:], deep=True)
    deep_by_fold = cross_scores(known.deep.combinations, deep_rows, by_fold[searched])
    deep_found = _compared([hashes[k] for k in searched], known.deep, DEEP, deep_by_fold, needed)
    for k, one, scores in zip(searched, deep_found, deep_by_fold, strict=True):
        incomplete = f"its search for triggers is incomplete, so by its weights alone{': ' * bool(found[k].note)}"
        found[k] = found[k]._replace(note=incomplete + found[k].note) if np.isnan(scores).any() else one
    return found


def backdoored_p_values(stage: Stage) -> np.ndarray:
    """P-values of the known backdoored, each by a combination that was not fitted on it.

    Args:
        stage: of a bucket's profile.

    Returns:
        `[S]`, NaN for those that could not be scored.
    """
    scores = stage.backdoored.scores
    found, scored = np.full(len(scores), np.nan), ~np.isnan(scores)
    found[scored] = verdict.p_values(scores[scored], stage.clean.scores)
    return found


def _is_searched(record: Record) -> bool:
    return record.deep is not None and not np.isnan(record.deep).all()


def _compared(hashes: list[str], stage: Stage, name: str, by_fold: np.ndarray, needed: int) -> list[Comparison]:
    """By the scores `[M, K]` of every fold; those that are known already, by their own score."""
    clean, backdoored = stage.clean, stage.backdoored
    above = np.zeros(len(hashes))
    for k in range(len(stage.combinations)):
        above += verdict.as_high(by_fold[:, k], np.sort(clean.scores[clean.folds == k]))
    count = len(clean.sha256)
    scores, p_values = by_fold.mean(1), (1 + above) / (count + 1)
    found = [
        Comparison("", float(score), float(p_value), count, name)
        for score, p_value in zip(scores, p_values, strict=True)
    ]
    own_clean, own_backdoored = ({sha256: k for k, sha256 in enumerate(known.sha256)} for known in (clean, backdoored))
    for row, sha256 in enumerate(hashes):
        if sha256 in own_clean:
            own = own_clean[sha256]
            score, others = clean.scores[own], np.delete(clean.scores, own)
            lead = "it is one of the references, compared with the others"
        elif sha256 in own_backdoored:
            score, others = backdoored.scores[own_backdoored[sha256]], clean.scores
            lead = "it is known to be backdoored, and scored here by a model that was not fitted on it"
        else:
            continue
        if len(others) < needed:
            found[row] = Comparison(f"it is one of the references, and {len(others)} others are fewer than {needed}")
        elif not np.isnan(score):
            p_value = verdict.p_values([score], others).item()
            found[row] = Comparison(lead, float(score), p_value, len(others), name)
    return found


def _undefined(row: np.ndarray, weights: Stage) -> str:
    usable = np.logical_or.reduce([one.usable for one in weights.combinations])
    missing = [name for name, is_missing in zip(weights.names, usable & np.isnan(row), strict=True) if is_missing]
    if len(missing) == usable.sum():
        return "nothing in it could be scored"
    return (
        f"undefined in it: {len(missing)} of {usable.sum()} features, such as {missing[0]!r}, which all references have"
    )
