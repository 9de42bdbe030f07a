"""From networks of known truth to a reference profile: cross-fitted, so that no network is judged by itself.

The networks of a cohort are dealt into folds. For each fold a combination is fitted on all others and scores those of
the fold; a new network is later scored by all combinations (cross-conformal prediction). What is fitted for a fold
never depends on the fold, not even in the trigger stage: it learns from first scores that were cross-fitted again
without the fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from jaxguard.detection import combination
from jaxguard.detection.combination import Combination, cross_scores
from jaxguard.detection.profile import CohortProfile, Profile, ReferenceScores, Stage
from jaxguard.detection.records import RESPONSES, TRIGGERS, WEIGHTS, Record, feature_rows
from jaxguard.errors import DataError

FOLDS = 5
"""Parts that the references of a cohort are dealt into."""

FIRST_SCORE = "first score"
"""First feature of the trigger stage."""


class _Known(NamedTuple):
    """`R` networks of one cohort and one truth, in the order of their hashes."""

    sha256: np.ndarray
    features: np.ndarray
    triggers: np.ndarray
    folds: np.ndarray

    @property
    def searched(self) -> np.ndarray:
        """In which of them triggers were searched, `[R]` bool."""
        return ~np.isnan(self.triggers).all(1) & (self.triggers.shape[1] > 0)

    def where(self, chosen: np.ndarray) -> _Known:
        return _Known(*(column[chosen] for column in self))

    def without(self, fold: int) -> _Known:
        """All others, dealt again."""
        others = self.where(self.folds != fold)
        return others._replace(folds=np.arange(len(others.folds)) % FOLDS)


def calibrate(clean: Sequence[Record], backdoored: Sequence[Record] = ()) -> Profile:
    """Makes a reference profile.

    The references must be drawn like the networks that will be judged, except for the backdoors; and triggers must
    have been searched in all of them or in a random part, not in the suspicious ones. The order of the records does
    not matter, and copies of one file count once.

    Args:
        clean: known to be clean.
        backdoored: known to be backdoored; may be none. From `combination.FEWEST_BACKDOORED` in a cohort on, the
            features are weighed by them.

    Returns:
        One cohort profile per cohort that has clean records. One of fewer than `combination.FEWEST_CLEAN`, or without a
        usable feature, has no combinations; the notes say why.

    Raises:
        DataError: no clean record, one without a hash or with other features than the rest, or a hash in both lists.

    Example:
        >>> from jaxguard.detection.records import Features
        >>> from jaxguard.types import Provenance
        >>> draw = np.random.default_rng(0).normal
        >>> def record(name: str) -> Record:
        ...     found = Features(("a", "b", "c"), draw(size=3))
        ...     return Record(Provenance(name, name), "small", {"weights": found})
        >>> profile = calibrate([record(f"{k:04x}") for k in range(40)])
        >>> profile.cohorts["small"].first.clean.scores.shape
        (40,)
    """
    if not clean:
        raise DataError("expected checkpoints known to be clean, got none in calibrate(); name a folder that has some")
    both = {one.sha256 for one in clean} & {one.sha256 for one in backdoored}
    if both:
        raise DataError(
            f"expected checkpoints that are clean or backdoored, got {len(both)} as both, such as {min(both)[:16]}, "
            "in calibrate(); correct the lists"
        )
    notes: list[str] = []
    cohorts = {}
    for cohort in sorted({one.cohort for one in clean}):
        cohorts[cohort], more = _calibrated(cohort, _distinct(clean, cohort), _distinct(backdoored, cohort))
        notes += [f"{cohort}: {note}." for note in more]
    orphans = sorted({one.cohort for one in backdoored} - cohorts.keys())
    notes += [f"{cohort}: backdoored checkpoints were left out, there are no clean ones." for cohort in orphans]
    return Profile(cohorts, tuple(notes))


def _calibrated(
    cohort: str, clean_records: list[Record], backdoored_records: list[Record]
) -> tuple[CohortProfile, list[str]]:
    notes, together = [], [*clean_records, *backdoored_records]
    looks = tuple(look for look in (WEIGHTS, RESPONSES) if any(look in one.features for one in together))
    names = sum((_names(together, look) for look in looks), ())
    trigger_names = _names(together, TRIGGERS)
    rows = feature_rows(clean_records, looks, names)
    is_kept = _are_mostly_defined(rows)
    scorable = [one for one, kept in zip(clean_records, is_kept, strict=True) if kept]
    if len(scorable) < len(clean_records):
        missing = [one.sha256[:16] for one, kept in zip(clean_records, is_kept, strict=True) if not kept]
        notes.append(
            f"{len(missing)} of {len(clean_records)} clean checkpoints were left out, most of their features are "
            f"undefined: {', '.join(missing[:5])}{', …' * (len(missing) > 5)}"
        )
    clean, backdoored = (_known(records, looks, names, trigger_names) for records in (scorable, backdoored_records))
    first, triggers = Stage(names, (), *(_unscored(known) for known in (clean, backdoored))), None
    try:
        if len(scorable) < combination.FEWEST_CLEAN:
            raise DataError(f"{len(scorable)} clean checkpoints, too few to compare with")
        first = _first_stage(names, clean, backdoored)
        if clean.searched.sum() >= combination.FEWEST_CLEAN:
            triggers = _trigger_stage((FIRST_SCORE, *trigger_names), first, clean, backdoored)
    except DataError as error:
        notes.append(str(error))
    return CohortProfile(cohort, looks, first, triggers), notes


def _distinct(records: Sequence[Record], cohort: str) -> list[Record]:
    """One of each hash, in their order; of copies one in which triggers were searched, if any."""
    members = sorted((one for one in records if one.cohort == cohort), key=lambda one: TRIGGERS in one.features)
    found = {one.sha256: one for one in members}
    if "" in found:
        raise DataError(
            f"expected a content hash of every reference, got none for one of {cohort} in calibrate(); hash the file"
        )
    return [found[sha256] for sha256 in sorted(found)]


def _names(records: Sequence[Record], look: str) -> tuple[str, ...]:
    """Names of the features that a look gives in a cohort."""
    return next((one.features[look].names for one in records if look in one.features), ())


def _known(records: list[Record], looks: Sequence[str], names: Sequence[str], trigger_names: Sequence[str]) -> _Known:
    hashes = np.array([one.sha256 for one in records], str)
    triggers = feature_rows(records, (TRIGGERS,), trigger_names) if trigger_names else np.empty((len(records), 0))
    return _Known(hashes, feature_rows(records, looks, names), triggers, np.arange(len(records)) % FOLDS)


def _are_mostly_defined(rows: np.ndarray) -> np.ndarray:
    """Which of `[R, F]` have at least half of the features that most have; a network without norms has none of them."""
    # Features that most of the cohort lacks, such as norms, do not speak against a network that lacks them.
    known = np.isfinite(rows)
    wanted = known.mean(0) >= 0.5 if len(rows) else np.zeros(rows.shape[1], bool)
    return known[:, wanted].mean(1) >= 0.5 if wanted.any() else np.zeros(len(rows), bool)


def _usable(clean: np.ndarray, backdoored: np.ndarray) -> tuple[np.ndarray, bool]:
    """Features that all clean ones have `[F]`, and whether enough backdoored ones have them too."""
    usable = np.asarray(np.isfinite(clean).all(0))
    return usable, int((~np.isnan(backdoored[:, usable])).all(1).sum()) >= combination.FEWEST_BACKDOORED


def _fit(clean: np.ndarray, backdoored: np.ndarray, usable: np.ndarray, is_fitted: bool) -> Combination:
    return combination.fit(clean, backdoored, usable) if is_fitted else combination.fit_one_class(clean, usable)


def _cross_fitted(clean: _Known, backdoored: _Known, usable: np.ndarray, is_fitted: bool) -> tuple[Combination, ...]:
    return tuple(
        _fit(clean.features[clean.folds != k], backdoored.features[backdoored.folds != k], usable, is_fitted)
        for k in range(FOLDS)
    )


def _unscored(known: _Known) -> ReferenceScores:
    return ReferenceScores(tuple(known.sha256.tolist()), known.folds, np.full(len(known.folds), np.nan))


def _held_out(known: _Known, scores: np.ndarray) -> ReferenceScores:
    """Each with its score by the combination of its own fold, of `[R, K]`."""
    return replace(_unscored(known), scores=scores[np.arange(len(scores)), known.folds])


def _first_stage(names: tuple[str, ...], clean: _Known, backdoored: _Known) -> Stage:
    combinations = _cross_fitted(clean, backdoored, *_usable(clean.features, backdoored.features))
    scored = (_held_out(one, cross_scores(combinations, one.features)) for one in (clean, backdoored))
    return Stage(names, combinations, *scored)


def _trigger_stage(names: tuple[str, ...], first: Stage, clean: _Known, backdoored: _Known) -> Stage:
    learned = _usable(clean.features, backdoored.features)
    usable, is_fitted = _usable(clean.triggers[clean.searched], backdoored.triggers[backdoored.searched])
    usable = np.concatenate([[True], usable])
    combinations = []
    for k in range(FOLDS):
        others = clean.without(k), backdoored.without(k)
        # Nested: the first scores that the trigger stage learns from must be held out too, or they would look better
        # than those of a new checkpoint.
        inner = _cross_fitted(*others, *learned)
        rows = []
        for one in others:
            first_scores = _held_out(one, cross_scores(inner, one.features)).scores
            rows.append(np.column_stack([first_scores, one.triggers])[one.searched])
        combinations.append(_fit(rows[0], rows[1], usable, is_fitted))
    scored = []
    for known in (clean, backdoored):
        one = known.where(known.searched)
        first_scores = cross_scores(first.combinations, one.features)
        scored.append(_held_out(one, cross_scores(combinations, one.triggers, first_scores)))
    return Stage(names, tuple(combinations), *scored)
