"""Cross-conformal p-values: checkpoints of one bucket compared with its references.

A new checkpoint is scored by the combination of every fold and compared with the references of that fold (Vovk,
Cross-conformal predictors, Annals of Mathematics and Artificial Intelligence 2015). How often a clean one then gets a
p-value of `alpha` or less: `alpha`, if all combinations were one; near it in practice; and at most
`2 alpha + 2 (K - 1) (1 - alpha) / (R + K)` in the worst case of `R` references in `K` folds, since the average of the
folds' p-values is at most doubly too small (Vovk, Wang, Combining p-values via averaging, Biometrika 2020). All of it
holds for checkpoints that are drawn like the references.

Where some checkpoints are searched for triggers, both looks make one score, see `jaxguard.detection.cascade`; all of
this holds whoever is searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from jaxguard import conformal
from jaxguard.detection.cascade import cascade
from jaxguard.detection.combination import FEWEST_CLEAN, cross_scores
from jaxguard.detection.profile import BucketProfile, Record, Scored, Stage, feature_rows

WEIGHTS, DEEP = "weights", "deep"
"""Names of the stages: by the weights alone, or by a search for triggers too."""


class Yardstick(NamedTuple):
    """What one stage compares with.

    Attributes:
        references: the clean ones that count.
        clean: all clean ones, as this stage scores them.
        backdoored: likewise.
    """

    references: Scored
    clean: Scored
    backdoored: Scored


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
    count, needed = len(known.weights.clean.sha256), max(conformal.needed_references(alpha), FEWEST_CLEAN)
    if count < needed:
        return f"its bucket has {count} references, at least {needed} are needed at alpha {alpha:g}"
    if not known.weights.combinations:
        return "no feature of its bucket's references can be compared; the profile's notes tell"
    deep = () if known.deep is None or not deep_names else known.deep.names[1:]
    if known.weights.names != tuple(names) or (deep and deep != tuple(deep_names)):
        return "the reference profile was made with other features; calibrate again with this version"
    return ""


def yardsticks(known: BucketProfile, alpha: float) -> dict[str, Yardstick]:
    """What checkpoints of a bucket are compared with.

    Args:
        known: of the profile; without its deep stage where no checkpoint is searched for triggers.
        alpha: accepted error rate.

    Returns:
        By stage. `DEEP` is among them where enough references were searched; `WEIGHTS` then compares with the same
        ones, so that a checkpoint may be of either stage.
    """
    weights, deep = known.weights, known.deep
    if deep is None or len(deep.clean.sha256) < conformal.needed_references(alpha):
        return {WEIGHTS: Yardstick(weights.clean, weights.clean, weights.backdoored)}
    both = cascade(known)
    clean, backdoored = (
        replace(one, scores=both.higher(one.scores, np.full(len(one.scores), np.nan)))
        for one in (weights.clean, weights.backdoored)
    )
    first = _scores(weights.backdoored)
    own = np.array([first.get(sha256, np.nan) for sha256 in deep.backdoored.sha256], np.float64)
    guilty = replace(deep.backdoored, scores=both.higher(own, deep.backdoored.scores))
    return {
        WEIGHTS: Yardstick(both.references, clean, backdoored),
        DEEP: Yardstick(both.references, both.references, guilty),
    }


def compare(records: Sequence[Record], known: BucketProfile, alpha: float) -> list[Comparison]:
    """Compares checkpoints with the references of their bucket.

    By their weights; and where the references were searched for triggers, as many as `alpha` needs, also by what a
    search found in them, if there was one.

    Args:
        records: of this bucket.
        known: of the profile; not `unusable`.
        alpha: accepted error rate.

    Returns:
        One comparison per record.

    Raises:
        DataError: a record has another number of features than the references.
    """
    rows = feature_rows(records, known.weights.names)
    by_fold = cross_scores(known.weights.combinations, rows)
    yard, stages = yardsticks(known, alpha), [WEIGHTS] * len(records)
    incomplete: list[int] = []
    if DEEP in yard:
        searched, deep_by_fold = _searched(records, known, by_fold)
        complete = np.asarray(~np.isnan(deep_by_fold).any(axis=1))
        stages = [DEEP if is_complete else WEIGHTS for is_complete in complete]
        incomplete = [k for k in searched if not complete[k]]
        by_fold = cascade(known).higher(by_fold, np.where(complete[:, None], deep_by_fold, np.nan))
    found = _compared([one.sha256 for one in records], yard, stages, by_fold, conformal.needed_references(alpha))
    for k in incomplete:
        why = "its search for triggers is incomplete, so by its weights alone"
        found[k] = found[k]._replace(note=f"{why}{': ' * bool(found[k].note)}{found[k].note}")
    for k in np.flatnonzero(np.isnan(by_fold).any(1)):
        found[k] = Comparison(_undefined(rows[k], known.weights))
    return found


def backdoored_p_values(yard: Yardstick) -> np.ndarray:
    """P-values of the known backdoored, each by a combination that was not fitted on it.

    Args:
        yard: of one stage.

    Returns:
        `[S]`, NaN for those that could not be scored.
    """
    scores = yard.backdoored.scores
    found, scored = np.full(len(scores), np.nan), ~np.isnan(scores)
    found[scored] = conformal.p_values(scores[scored], yard.references.scores)
    return found


def _searched(records: Sequence[Record], known: BucketProfile, by_fold: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Which checkpoints were searched, and scores of the search `[M, K]`; NaN for the others.

    One that the weights were fitted on has a deep score of its own, or none.
    """
    found = np.full_like(by_fold, np.nan)
    if known.deep is None:
        return [], found
    fitted_on = {*known.weights.clean.sha256, *known.weights.backdoored.sha256}
    eligible = {*known.deep.clean.sha256, *known.deep.backdoored.sha256}
    searched = [
        k
        for k, one in enumerate(records)
        if one.deep is not None
        and not np.isnan(one.deep).all()
        and (one.sha256 in eligible or one.sha256 not in fitted_on)
    ]
    rows = feature_rows([records[k] for k in searched], known.deep.names[1:], deep=True)
    found[searched] = cross_scores(known.deep.combinations, rows, by_fold[searched])
    return searched, found


def _scores(known: Scored) -> dict[str, float]:
    return dict(zip(known.sha256, known.scores.tolist(), strict=True))


def _compared(
    hashes: list[str], yard: dict[str, Yardstick], stages: list[str], by_fold: np.ndarray, needed: int
) -> list[Comparison]:
    """By the scores `[M, K]` of every fold; those that are known already, by their own score."""
    known = yard[WEIGHTS].references
    above = np.zeros(len(hashes))
    for k in range(by_fold.shape[1]):
        above += conformal.as_high(by_fold[:, k], np.sort(known.scores[known.folds == k]))
    count = len(known.sha256)
    scores, p_values = by_fold.mean(1), (1 + above) / (count + 1)
    found = [
        Comparison("", float(score), float(p_value), count, stage)
        for score, p_value, stage in zip(scores, p_values, stages, strict=True)
    ]
    own = {stage: (_scores(one.clean), _scores(one.backdoored)) for stage, one in yard.items()}
    places = {sha256: k for k, sha256 in enumerate(known.sha256)}
    for row, (sha256, stage) in enumerate(zip(hashes, stages, strict=True)):
        clean, backdoored = own[stage]
        if sha256 in clean:
            score = clean[sha256]
            others = np.delete(known.scores, places[sha256]) if sha256 in places else known.scores
            lead = "it is one of the references, compared with the others"
        elif sha256 in backdoored:
            score, others = backdoored[sha256], known.scores
            lead = "it is known to be backdoored, and scored here by a model that was not fitted on it"
        else:
            continue
        if len(others) < needed:
            found[row] = Comparison(f"it is one of the references, and {len(others)} others are fewer than {needed}")
        elif not np.isnan(score):
            p_value = conformal.p_values([score], others).item()
            found[row] = Comparison(lead, float(score), p_value, len(others), stage)
    return found


def _undefined(row: np.ndarray, weights: Stage) -> str:
    usable = np.logical_or.reduce([one.usable for one in weights.combinations])
    missing = [name for name, is_missing in zip(weights.names, usable & np.isnan(row), strict=True) if is_missing]
    if len(missing) == usable.sum():
        return "nothing in it could be scored"
    return (
        f"undefined in it: {len(missing)} of {usable.sum()} features, such as {missing[0]!r}, which all references have"
    )
