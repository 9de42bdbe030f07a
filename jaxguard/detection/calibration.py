"""From checkpoints whose truth is known to a reference profile: cross-fitted, so that none is judged by itself.

The checkpoints of a bucket are dealt into folds. For each fold a combination is fitted on all others and scores those
of the fold; a new checkpoint is later scored by all of them (cross-conformal prediction). What is fitted for a fold
never depends on the fold, the deep stage included: it learns from weight scores that were cross-fitted anew without
the fold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from jaxguard.detection import combination
from jaxguard.detection.combination import Combination, cross_scores
from jaxguard.detection.profile import BucketProfile, LayerReference, Profile, Record, Scored, Stage, feature_rows
from jaxguard.errors import DataError

FOLDS = 5
"""Parts that the references of a bucket are dealt into."""

WEIGHTS_SCORE = "weights score"
"""First feature of the deep stage."""


class _Known(NamedTuple):
    """`R` checkpoints of one bucket and one truth, in the order of their hashes."""

    sha256: np.ndarray
    features: np.ndarray
    deep: np.ndarray
    folds: np.ndarray

    @property
    def searched(self) -> np.ndarray:
        """Which of them triggers were searched in."""
        return ~np.isnan(self.deep).all(1) & (self.deep.shape[1] > 0)

    def where(self, chosen: np.ndarray) -> _Known:
        return _Known(*(column[chosen] for column in self))

    def without(self, fold: int) -> _Known:
        """All others, dealt anew."""
        others = self.where(self.folds != fold)
        return others._replace(folds=np.arange(len(others.folds)) % FOLDS)


def calibrate(
    clean: Sequence[Record],
    backdoored: Sequence[Record] = (),
    *,
    names: Mapping[str, Sequence[str]],
    deep_names: Sequence[str] = (),
) -> Profile:
    """Makes a reference profile.

    The references must be drawn like the checkpoints that will be judged, except for the backdoors; and triggers must
    have been searched in all of them or in a random part, not in the suspicious ones. The order of the records does
    not matter, and copies of one file count once.

    Args:
        clean: known to be clean.
        backdoored: known to be backdoored; may be none. From `combination.FEWEST_BACKDOORED` in a bucket on, the
            features are weighed by them.
        names: of the `F` features, by bucket.
        deep_names: of the `D` features of a search for triggers.

    Returns:
        One bucket profile per bucket that has clean records. One of fewer than `combination.FEWEST_CLEAN`, or in which
        no feature is usable, has no combinations; the notes tell.

    Raises:
        DataError: no clean record, one without a hash or of unexpected length, or a hash in both lists.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> records = [Record("small", f"{k:04x}", rng.normal(size=3)) for k in range(40)]
        >>> profile = calibrate(records, names={"small": ("a", "b", "c")})
        >>> profile.buckets["small"].weights.clean.scores.shape
        (40,)
    """
    if not clean:
        raise DataError("expected checkpoints known to be clean, came none in calibrate(); name a folder that has some")
    both = {one.sha256 for one in clean} & {one.sha256 for one in backdoored}
    if both:
        raise DataError(
            f"expected checkpoints that are clean or backdoored, came {len(both)} as both, such as {min(both)[:16]}, "
            "in calibrate(); correct the lists"
        )
    notes: list[str] = []
    buckets = {}
    for bucket in sorted({one.bucket for one in clean}):
        sides = _distinct(clean, bucket), _distinct(backdoored, bucket)
        buckets[bucket], told = _calibrated(bucket, sides, tuple(names[bucket]), tuple(deep_names))
        notes += [f"{bucket}: {note}." for note in told]
    orphans = sorted({one.bucket for one in backdoored} - buckets.keys())
    notes += [f"{bucket}: backdoored checkpoints were left out, there are no clean ones." for bucket in orphans]
    return Profile(buckets, tuple(notes))


def _calibrated(
    bucket: str,
    sides: tuple[list[Record], list[Record]],
    names: tuple[str, ...],
    deep_names: tuple[str, ...],
) -> tuple[BucketProfile, list[str]]:
    notes, (clean_records, backdoored_records) = [], sides
    scorable = [one for one in clean_records if one.features is not None and np.isfinite(one.features).mean() >= 0.5]
    if len(scorable) < len(clean_records):
        kept = {one.sha256 for one in scorable}
        missing = [one.sha256[:16] for one in clean_records if one.sha256 not in kept]
        notes.append(
            f"{len(missing)} of {len(clean_records)} clean checkpoints were left out, most of their features are "
            f"undefined: {', '.join(missing[:5])}{', …' * (len(missing) > 5)}"
        )
    clean, backdoored = (_known(records, names, deep_names) for records in (scorable, backdoored_records))
    weights, deep = Stage(names, (), *(_unscored(known) for known in (clean, backdoored))), None
    try:
        if len(scorable) < combination.FEWEST_CLEAN:
            raise DataError(f"{len(scorable)} clean checkpoints, too few to compare with")
        weights = _weights_stage(names, clean, backdoored)
        if clean.searched.sum() >= combination.FEWEST_CLEAN:
            deep = _deep_stage((WEIGHTS_SCORE, *deep_names), weights, clean, backdoored)
    except DataError as error:
        notes.append(str(error))
    return BucketProfile(bucket, weights, deep, _layers(clean_records)), notes


def _distinct(records: Sequence[Record], bucket: str) -> list[Record]:
    """One of each hash, in their order; of copies one that triggers were searched in, if any."""
    members = sorted((one for one in records if one.bucket == bucket), key=lambda one: one.deep is not None)
    found = {one.sha256: one for one in members}
    if "" in found:
        raise DataError(
            f"expected a content hash of every reference, came none for one of {bucket} in calibrate(); hash the file"
        )
    return [found[sha256] for sha256 in sorted(found)]


def _known(records: list[Record], names: Sequence[str], deep_names: Sequence[str]) -> _Known:
    hashes = np.array([one.sha256 for one in records], str)
    deep = feature_rows(records, deep_names, deep=True)
    return _Known(hashes, feature_rows(records, names), deep, np.arange(len(records)) % FOLDS)


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


def _unscored(known: _Known) -> Scored:
    return Scored(tuple(known.sha256.tolist()), known.folds, np.full(len(known.folds), np.nan))


def _held_out(known: _Known, scores: np.ndarray) -> Scored:
    """Each with its score by the combination of its own fold, of `[R, K]`."""
    return replace(_unscored(known), scores=scores[np.arange(len(scores)), known.folds])


def _weights_stage(names: tuple[str, ...], clean: _Known, backdoored: _Known) -> Stage:
    combinations = _cross_fitted(clean, backdoored, *_usable(clean.features, backdoored.features))
    scored = (_held_out(one, cross_scores(combinations, one.features)) for one in (clean, backdoored))
    return Stage(names, combinations, *scored)


def _deep_stage(names: tuple[str, ...], weights: Stage, clean: _Known, backdoored: _Known) -> Stage:
    learned = _usable(clean.features, backdoored.features)
    usable, is_fitted = _usable(clean.deep[clean.searched], backdoored.deep[backdoored.searched])
    usable = np.concatenate([[True], usable])
    combinations = []
    for k in range(FOLDS):
        others = clean.without(k), backdoored.without(k)
        inner = _cross_fitted(*others, *learned)
        rows = []
        for one in others:
            weights_scores = _held_out(one, cross_scores(inner, one.features)).scores
            rows.append(np.column_stack([weights_scores, one.deep])[one.searched])
        combinations.append(_fit(rows[0], rows[1], usable, is_fitted))
    scored = []
    for known in (clean, backdoored):
        one = known.where(known.searched)
        weights_scores = cross_scores(weights.combinations, one.features)
        scored.append(_held_out(one, cross_scores(combinations, one.deep, weights_scores)))
    return Stage(names, tuple(combinations), *scored)


def _layers(records: Sequence[Record]) -> tuple[LayerReference, ...]:
    numbers: dict[str, list[tuple[float, float]]] = {}
    for one in records:
        for layer in one.layers:
            numbers.setdefault(layer.name, []).append((layer.z, layer.largest))
    return tuple(
        LayerReference(name, *(number for column in np.transpose(rows) for number in _mean_and_deviation(column)))
        for name, rows in numbers.items()
    )


def _mean_and_deviation(values: np.ndarray) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    return (float(values.mean()), float(values.std(ddof=1))) if len(values) > 1 else (float("nan"), float("nan"))
