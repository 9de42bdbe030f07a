"""Cross-conformal p-values: checkpoints of one cohort compared with its references.

A new checkpoint is scored by the combination of every fold and compared with the references of that fold (Vovk,
Cross-conformal predictors, Annals of Mathematics and Artificial Intelligence 2015). How often a clean one then gets a
p-value of `alpha` or less: `alpha`, if all combinations were one; near it in practice; and at most
`2 alpha + 2 (K - 1) (1 - alpha) / (R + K)` in the worst case of `R` references in `K` folds, since the average of the
folds' p-values is at most doubly too small (Vovk, Wang, Combining p-values via averaging, Biometrika 2020). All of it
holds for checkpoints that are drawn like the references.

Where triggers are searched in some checkpoints, both stages make one score, see `jaxguard.detection.cascade`; all of
this holds whichever are searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from jaxguard import conformal
from jaxguard.detection.cascade import cascade
from jaxguard.detection.combination import FEWEST_CLEAN, cross_scores
from jaxguard.detection.profile import CohortProfile, ReferenceScores, Stage
from jaxguard.detection.records import TRIGGERS, Record, feature_rows

FIRST, SEARCH = "first", "search"
"""Names of the stages: by the weights and perhaps the responses, or by a trigger search too."""


class Null(NamedTuple):
    """The scores that one stage compares with.

    Attributes:
        references: the clean ones that count.
        clean: all clean ones, as this stage scores them.
        backdoored: likewise.
    """

    references: ReferenceScores
    clean: ReferenceScores
    backdoored: ReferenceScores


class Comparison(NamedTuple):
    """One checkpoint compared with the references of its cohort.

    Attributes:
        note: why there is no p-value; else what a reader must know of it, or nothing; in words.
        score: mean over the folds, higher is more suspicious; NaN without a comparison.
        p_value: NaN without one.
        references: how many it was compared with.
        stage: `FIRST` or `SEARCH`; empty without a comparison.
    """

    note: str
    score: float = np.nan
    p_value: float = np.nan
    references: int = 0
    stage: str = ""


def unusable(known: CohortProfile | None, record: Record, trigger_names: Sequence[str], alpha: float) -> str:
    """Why the references of a cohort cannot be compared with.

    Args:
        known: of the profile, None where it has no such cohort.
        record: one of the cohort, whose features are named like those of the others.
        trigger_names: of the features of a trigger search; empty without one.
        alpha: accepted error rate.

    Returns:
        The reason, or nothing.
    """
    if known is None or known.refused:
        return known.refused if known is not None else "the reference profile has no checkpoints of its cohort"
    count, needed = len(known.first.clean.sha256), max(conformal.needed_references(alpha), FEWEST_CLEAN)
    if count < needed:
        return f"its cohort has {count} references, at least {needed} are needed at alpha {alpha:g}"
    if not known.first.combinations:
        return "no feature of its cohort's references can be compared; the notes of the profile say why"
    missing = [look for look in known.looks if look not in record.features]
    if missing and record.features:
        return f"its references were also examined by their {' and '.join(missing)}, it was not"
    names = sum((record.features[look].names for look in known.looks if look in record.features), ())
    searched = () if known.triggers is None or not trigger_names else known.triggers.names[1:]
    if (names and names != known.first.names) or (searched and searched != tuple(trigger_names)):
        return "the reference profile was made with other features; calibrate again with this version"
    return ""


def nulls(known: CohortProfile, alpha: float) -> dict[str, Null]:
    """What checkpoints of a cohort are compared with.

    Args:
        known: of the profile; without its trigger stage where no triggers are searched.
        alpha: accepted error rate.

    Returns:
        By stage. `SEARCH` is among them where enough references were searched; `FIRST` then compares with the same
        ones, so that a checkpoint may be of either stage.
    """
    first, search = known.first, known.triggers
    if search is None or len(search.clean.sha256) < conformal.needed_references(alpha):
        return {FIRST: Null(first.clean, first.clean, first.backdoored)}
    both = cascade(known)
    clean, backdoored = (
        replace(one, scores=both.higher(one.scores, np.full(len(one.scores), np.nan)))
        for one in (first.clean, first.backdoored)
    )
    by_hash = _scores(first.backdoored)
    own = np.array([by_hash.get(sha256, np.nan) for sha256 in search.backdoored.sha256], np.float64)
    guilty = replace(search.backdoored, scores=both.higher(own, search.backdoored.scores))
    return {
        FIRST: Null(both.references, clean, backdoored),
        SEARCH: Null(both.references, both.references, guilty),
    }


def compare(records: Sequence[Record], known: CohortProfile, alpha: float) -> list[Comparison]:
    """Compares checkpoints with the references of their cohort.

    By the first stage; and where triggers were searched in as many references as `alpha` needs, also by what a search
    found in the checkpoint, if there was one.

    Args:
        records: of this cohort.
        known: of the profile; not `unusable`.
        alpha: accepted error rate.

    Returns:
        One comparison per record.

    Raises:
        DataError: a record has other features than the references.
    """
    rows = feature_rows(records, known.looks, known.first.names)
    by_fold = cross_scores(known.first.combinations, rows)
    hashes = [known.known_as(one.sha256, one.provenance.blake3) for one in records]
    null, stages = nulls(known, alpha), [FIRST] * len(records)
    incomplete: list[int] = []
    if SEARCH in null:
        searched, search_by_fold = _searched(records, hashes, known, by_fold)
        complete = np.asarray(~np.isnan(search_by_fold).any(axis=1))
        stages = [SEARCH if is_complete else FIRST for is_complete in complete]
        incomplete = [k for k in searched if not complete[k]]
        by_fold = cascade(known).higher(by_fold, np.where(complete[:, None], search_by_fold, np.nan))
    found = _compared(hashes, null, stages, by_fold, conformal.needed_references(alpha))
    for k in incomplete:
        why = "its trigger search is incomplete, so it is judged without"
        found[k] = found[k]._replace(note=f"{why}{': ' * bool(found[k].note)}{found[k].note}")
    for k in np.flatnonzero(np.isnan(by_fold).any(1)):
        found[k] = Comparison(_undefined(rows[k], known.first))
    return found


def backdoored_p_values(null: Null) -> np.ndarray:
    """P-values of the known backdoored, each by a combination that was not fitted on it.

    Args:
        null: of one stage.

    Returns:
        `[S]`, NaN for those that could not be scored.
    """
    scores = null.backdoored.scores
    # Undefined scores have no p-value, and do not count towards the power.
    found, scored = np.full(len(scores), np.nan), ~np.isnan(scores)
    found[scored] = conformal.p_values(scores[scored], null.references.scores)
    return found


def _searched(
    records: Sequence[Record], hashes: Sequence[str], known: CohortProfile, by_fold: np.ndarray
) -> tuple[list[int], np.ndarray]:
    """Rows of the checkpoints in which triggers were searched, and scores of the search `[M, K]`; NaN for the others.

    One that the first stage was fitted on counts only where the trigger stage holds a score of its own for it.
    """
    found = np.full_like(by_fold, np.nan)
    if known.triggers is None:
        return [], found
    fitted_on = {*known.first.clean.sha256, *known.first.backdoored.sha256}
    eligible = {*known.triggers.clean.sha256, *known.triggers.backdoored.sha256}
    searched = [
        k
        for k, one in enumerate(records)
        if TRIGGERS in one.features
        and not np.isnan(one.features[TRIGGERS].values).all()
        and (hashes[k] in eligible or hashes[k] not in fitted_on)
    ]
    rows = feature_rows([records[k] for k in searched], (TRIGGERS,), known.triggers.names[1:])
    found[searched] = cross_scores(known.triggers.combinations, rows, by_fold[searched])
    return searched, found


def _scores(known: ReferenceScores) -> dict[str, float]:
    return dict(zip(known.sha256, known.scores.tolist(), strict=True))


def _compared(
    hashes: list[str], null: dict[str, Null], stages: list[str], by_fold: np.ndarray, needed: int
) -> list[Comparison]:
    """By the scores `[M, K]` of every fold; those that are known already, by their own score."""
    known = null[FIRST].references
    # Each fold's combination is compared with the references it was not fitted on; the counts add up.
    above = np.zeros(len(hashes))
    for k in range(by_fold.shape[1]):
        above += conformal.as_high(by_fold[:, k], np.sort(known.scores[known.folds == k]))
    count = len(known.sha256)
    # Each reference was counted in the one fold that it was held out of, so `above` is a rank among all of them
    # (cross-conformal).
    scores, p_values = by_fold.mean(1), (1 + above) / (count + 1)
    found = [
        Comparison("", float(score), float(p_value), count, stage)
        for score, p_value, stage in zip(scores, p_values, stages, strict=True)
    ]
    own = {stage: (_scores(one.clean), _scores(one.backdoored)) for stage, one in null.items()}
    places = {sha256: k for k, sha256 in enumerate(known.sha256)}
    for row, (sha256, stage) in enumerate(zip(hashes, stages, strict=True)):
        clean, backdoored = own[stage]
        if sha256 in clean:
            score = clean[sha256]
            # A reference is compared with the others alone: its own score would count against it.
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


def _undefined(row: np.ndarray, first: Stage) -> str:
    usable = np.logical_or.reduce([one.usable for one in first.combinations])
    missing = [name for name, is_missing in zip(first.names, usable & np.isnan(row), strict=True) if is_missing]
    if len(missing) == usable.sum():
        return "nothing in it could be scored"
    return (
        f"undefined in it: {len(missing)} of {usable.sum()} features, such as {missing[0]!r}, which all references have"
    )
