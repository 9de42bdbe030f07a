"""What checkpoints are judged by: scores of references whose truth is known, and the models that gave them.

A profile is text (JSON): numbers, names and hashes. Its digest covers all of it, so that a report can name the profile
it was made with and a damaged one is noticed; whoever wants to forge one can, it proves no authorship.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxguard.detection.combination import FITTED, ONE_CLASS, Combination
from jaxguard.errors import DataError
from jaxguard.types import LayerSummary

NAME = "jaxguard reference profile"

KIND = f"{NAME}, 1"
"""What the text says it is."""


class Record(NamedTuple):
    """What is known of one checkpoint, to calibrate with it or to judge it.

    Attributes:
        bucket: what it is compared with.
        sha256: content hash, hexadecimal; empty where unknown, and then it is taken to be like no other.
        features: `[F]` by its weights, NaN where undefined; None where it could not be scored.
        deep: `[D]` by searching triggers in it; None where none were searched.
        layers: for the report, or none.
    """

    bucket: str
    sha256: str
    features: np.ndarray | None
    deep: np.ndarray | None = None
    layers: tuple[LayerSummary, ...] = ()


def feature_rows(records: Sequence[Record], names: Sequence[str], *, deep: bool = False) -> np.ndarray:
    """Features of several checkpoints of one bucket.

    Args:
        records: `M` of them.
        names: of the `F` features.
        deep: whether those of a search for triggers, in place of those of the weights.

    Returns:
        float64 `[M, F]`, NaN where undefined.

    Raises:
        DataError: a checkpoint has another number of features.
    """
    rows = np.full((len(records), len(names)), np.nan)
    for k, one in enumerate(records):
        given = one.deep if deep else one.features
        if given is not None and np.shape(given) != (len(names),):
            raise DataError(
                f"expected {len(names)} features, came {np.shape(given)} for {one.sha256[:16] or 'a checkpoint'} of "
                f"{one.bucket} in a record; score all of them with one version"
            )
        if given is not None:
            rows[k] = given
    return rows


class LayerReference(NamedTuple):
    """One layer over the clean references; NaN where fewer than two have a number.

    Attributes:
        name: see `LayerSummary`.
        z_mean: of the largest z-score.
        z_std: likewise, `ddof=1`.
        largest_mean: of the largest bound.
        largest_std: likewise, `ddof=1`.
    """

    name: str
    z_mean: float
    z_std: float
    largest_mean: float
    largest_std: float


@dataclass(frozen=True, eq=False)
class Scored:
    """Checkpoints whose truth is known, each scored by the combination of its fold, which was fitted without it.

    Attributes:
        sha256: `R` content hashes, ascending.
        folds: `[R]` int, index of the fold.
        scores: `[R]` float64; NaN where it could not be scored.
    """

    sha256: tuple[str, ...]
    folds: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True, eq=False)
class Stage:
    """One way of scoring, cross-fitted.

    Attributes:
        names: of the `F` features.
        combinations: one per fold, each fitted on all checkpoints outside of it; none where nothing could be fitted.
        clean: the references.
        backdoored: the known suspects; may be none.
    """

    names: tuple[str, ...]
    combinations: tuple[Combination, ...]
    clean: Scored
    backdoored: Scored


@dataclass(frozen=True, eq=False)
class BucketProfile:
    """What the checkpoints of one bucket are judged by.

    Attributes:
        bucket: its name.
        weights: by the features of the weights.
        deep: by `weights score` and the features of a search for triggers; None without enough of them.
        layers: per layer of the clean references.
    """

    bucket: str
    weights: Stage
    deep: Stage | None
    layers: tuple[LayerReference, ...]


@dataclass(frozen=True, eq=False)
class Profile:
    """References of many buckets.

    Attributes:
        buckets: by name.
        notes: what a reader must know, in whole sentences: checkpoints and buckets that were left out.
    """

    buckets: Mapping[str, BucketProfile]
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, in hexadecimal."""
        return _digest(_body(self))


def to_json(profile: Profile) -> str:
    """A profile as text, numbers exact.

    Args:
        profile: what to write.

    Returns:
        JSON.
    """
    body = _body(profile)
    return json.dumps({"kind": KIND, "digest": _digest(body), **body}, allow_nan=False)


def from_json(text: str | bytes, source: str) -> Profile:
    """Reads a profile and checks that it is as it was written.

    Args:
        text: of `to_json`.
        source: where it came from, for errors.

    Returns:
        The profile.

    Raises:
        DataError: it is no profile, one of another version, or it was changed or damaged since.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{source}: expected a {NAME} (JSON), found something else ({error}); `jaxguard calibrate` writes one"
        ) from error
    kind = body.pop("kind", None) if isinstance(body, dict) else None
    if not isinstance(kind, str) or not kind.startswith(NAME):
        raise DataError(f"{source}: expected a {NAME}, found kind {kind!r:.80}; `jaxguard calibrate` writes one")
    if kind != KIND:
        raise DataError(f"{source}: expected a {KIND}, found {kind!r:.80}; calibrate again with this version")
    written = body.pop("digest", None)
    found = _digest(body)
    if written != found:
        raise DataError(
            f"{source}: expected contents of digest {written!r:.80}, found {found}; the profile was changed or damaged "
            "after it was made, take the original or calibrate again"
        )
    try:
        buckets = {name: _bucket(name, told) for name, told in body["buckets"].items()}
        return Profile(buckets, tuple(map(str, body["notes"])))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{source}: expected the contents of a {NAME}, found them incomplete or inconsistent ({error}); "
            "calibrate again"
        ) from error


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _body(profile: Profile) -> dict[str, Any]:
    buckets = {
        name: {
            "weights": _plain(asdict(one.weights)),
            "deep": None if one.deep is None else _plain(asdict(one.deep)),
            "layers": [_plain(layer) for layer in one.layers],
        }
        for name, one in profile.buckets.items()
    }
    return {"buckets": buckets, "notes": list(profile.notes)}


def _plain(value: Any) -> Any:
    """The same of dicts, lists, strings and numbers, None for NaN."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _bucket(name: str, told: Mapping[str, Any]) -> BucketProfile:
    deep = None if told["deep"] is None else _stage(told["deep"])
    layers = tuple(LayerReference(str(layer[0]), *map(_number, layer[1:])) for layer in told["layers"])
    return BucketProfile(name, _stage(told["weights"]), deep, layers)


def _stage(told: Mapping[str, Any]) -> Stage:
    names = tuple(map(str, told["names"]))
    combinations = tuple(_combination(one, len(names)) for one in told["combinations"])
    clean, backdoored = (_scored(told[key], len(combinations)) for key in ("clean", "backdoored"))
    return Stage(names, combinations, clean, backdoored)


def _scored(told: Mapping[str, Any], num_folds: int) -> Scored:
    sha256, folds, scores = tuple(map(str, told["sha256"])), np.array(told["folds"], int), _numbers(told["scores"])
    if not len(sha256) == len(folds) == len(scores) or (num_folds and not np.isin(folds, np.arange(num_folds)).all()):
        raise ValueError(f"{len(sha256)} hashes, {len(folds)} indices of {num_folds} folds, {len(scores)} scores")
    return Scored(sha256, folds, scores)


def _combination(told: Mapping[str, Any], num_features: int) -> Combination:
    arrays = {name: _numbers(told[name]) for name in ("centre", "scale", "coefficients")}
    one = Combination(
        kind=str(told["kind"]),
        usable=np.array(told["usable"], bool),
        intercept=float(told["intercept"]),
        rest=float(told["rest"]),
        **arrays,
    )
    width = int(one.usable.sum())
    if one.kind not in (FITTED, ONE_CLASS):
        raise ValueError(f"a combination of kind {one.kind!r:.80}")
    if one.usable.shape != (num_features,) or one.coefficients.shape[1:] != (width,):
        raise ValueError(f"coefficients {one.coefficients.shape} for {width} of {num_features} features")
    if not one.centre.shape == one.scale.shape == (width,):
        raise ValueError(f"{one.centre.shape} means and {one.scale.shape} deviations of {width} features")
    return one


def _number(told: float | None) -> float:
    return math.nan if told is None else float(told)


def _numbers(told: Sequence[Any]) -> np.ndarray:
    return np.array(told, np.float64)
