"""Reference profiles: scores of networks known to be clean or backdoored, and the models that gave them.

A profile is text (JSON): numbers, names and hashes. Its digest covers all of it, so that a report can name the profile
it was made with and damage is noticed. It proves no authorship: anybody can make another.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from jaxguard.detection.combination import FITTED, ONE_CLASS, Combination
from jaxguard.errors import DataError
from jaxguard.programs import Numerics

NAME = "jaxguard reference profile"

KIND = f"{NAME}, 3"
"""What the text says it is; the number is raised with every change of its form."""


@dataclass(frozen=True, eq=False)
class ReferenceScores:
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
    clean: ReferenceScores
    backdoored: ReferenceScores


@dataclass(frozen=True, eq=False)
class CohortProfile:
    """What the checkpoints of one cohort are judged by.

    Attributes:
        cohort: its name.
        looks: what the first stage combines: the weights, perhaps the responses.
        first: by the features of these looks.
        triggers: by `first score` and the features of a trigger search; None without enough of them.
        witness: by look, features of a fixed network, see `jaxguard.detection.agreement`; none in older profiles.
        blake3: BLAKE3 -> SHA-256 of its references; None where they are known by SHA-256 alone, as in older profiles.
        refused: why it must not be used here, in words; is not written.
    """

    cohort: str
    looks: tuple[str, ...]
    first: Stage
    triggers: Stage | None
    witness: Mapping[str, np.ndarray] = field(default_factory=dict)
    blake3: Mapping[str, str] | None = None
    refused: str = ""

    @property
    def contents(self) -> frozenset[str]:
        """SHA-256 of all references."""
        stages = [one for one in (self.first, self.triggers) if one is not None]
        return frozenset(sha256 for one in stages for part in (one.clean, one.backdoored) for sha256 in part.sha256)

    def known_as(self, sha256: str, blake3: str) -> str:
        """The SHA-256 of a content that is named by either hash, or nothing where it is no reference's."""
        return sha256 or (self.blake3 or {}).get(blake3, "")


@dataclass(frozen=True, eq=False)
class Profile:
    """References of many cohorts.

    Attributes:
        cohorts: by name.
        notes: caveats for the reader, in full sentences: checkpoints and cohorts that were left out.
        numerics: what its features were computed by; None in older profiles, which do not say.
    """

    cohorts: Mapping[str, CohortProfile]
    notes: tuple[str, ...] = ()
    numerics: Numerics | None = None

    @property
    def needs_sha256(self) -> bool:
        """Whether some references would not be recognised by their BLAKE3."""
        return any(one.blake3 is None for one in self.cohorts.values())

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
        source: where the text was read, for errors.

    Returns:
        The profile.

    Raises:
        DataError: it is no profile, one of another version, or it was changed or damaged since.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{source}: expected a {NAME} (JSON), got something else ({error}); `jaxguard calibrate` writes one"
        ) from error
    kind = body.pop("kind", None) if isinstance(body, dict) else None
    if not isinstance(kind, str) or not kind.startswith(NAME):
        raise DataError(f"{source}: expected a {NAME}, got kind {kind!r:.80}; `jaxguard calibrate` writes one")
    if kind != KIND:
        raise DataError(f"{source}: expected a {KIND}, got {kind!r:.80}; calibrate again with this version")
    written = body.pop("digest", None)
    found = _digest(body)
    if written != found:
        raise DataError(
            f"{source}: expected contents of digest {written!r:.80}, got {found}; the profile was changed or damaged "
            "after it was made, take the original or calibrate again"
        )
    try:
        cohorts = {name: _cohort(name, entry) for name, entry in body["cohorts"].items()}
        numerics = Numerics(*map(str, body["numerics"])) if "numerics" in body else None
        return Profile(cohorts, tuple(map(str, body["notes"])), numerics)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{source}: expected the contents of a {NAME}, got them incomplete or inconsistent ({error}); "
            "calibrate again"
        ) from error


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _body(profile: Profile) -> dict[str, Any]:
    cohorts = {
        name: {
            "looks": list(one.looks),
            "first": _plain(asdict(one.first)),
            "triggers": None if one.triggers is None else _plain(asdict(one.triggers)),
            **({"witness": _plain(dict(one.witness))} if one.witness else {}),
            **({} if one.blake3 is None else {"blake3": dict(one.blake3)}),
        }
        for name, one in profile.cohorts.items()
    }
    # What older profiles do not have is left out, so that their digest stays.
    numerics = {} if profile.numerics is None else {"numerics": list(profile.numerics)}
    return {"cohorts": cohorts, "notes": list(profile.notes), **numerics}


def _plain(value: Any) -> Any:
    """The same of dicts, lists, strings and numbers, None for NaN."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _cohort(name: str, entry: Mapping[str, Any]) -> CohortProfile:
    triggers = None if entry["triggers"] is None else _stage(entry["triggers"])
    witness = {str(look): _numbers(values) for look, values in entry.get("witness", {}).items()}
    named = entry.get("blake3")
    blake3 = None if named is None else {str(one): str(sha256) for one, sha256 in named.items()}
    return CohortProfile(name, tuple(map(str, entry["looks"])), _stage(entry["first"]), triggers, witness, blake3)


def _stage(entry: Mapping[str, Any]) -> Stage:
    names = tuple(map(str, entry["names"]))
    combinations = tuple(_combination(one, len(names)) for one in entry["combinations"])
    clean, backdoored = (_reference_scores(entry[key], len(combinations)) for key in ("clean", "backdoored"))
    return Stage(names, combinations, clean, backdoored)


def _reference_scores(entry: Mapping[str, Any], num_folds: int) -> ReferenceScores:
    sha256, folds, scores = tuple(map(str, entry["sha256"])), np.array(entry["folds"], int), _numbers(entry["scores"])
    if not len(sha256) == len(folds) == len(scores) or (num_folds and not np.isin(folds, np.arange(num_folds)).all()):
        raise ValueError(f"{len(sha256)} hashes, {len(folds)} indices of {num_folds} folds, {len(scores)} scores")
    return ReferenceScores(sha256, folds, scores)


def _combination(entry: Mapping[str, Any], num_features: int) -> Combination:
    arrays = {name: _numbers(entry[name]) for name in ("centre", "scale", "coefficients")}
    one = Combination(
        kind=str(entry["kind"]),
        usable=np.array(entry["usable"], bool),
        intercept=float(entry["intercept"]),
        rest=float(entry["rest"]),
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


def _numbers(entry: Sequence[Any]) -> np.ndarray:
    return np.array(entry, np.float64)
