"""Fleets of known truth, as records of numbers."""

import hashlib
from collections.abc import Sequence

import numpy as np

from jaxguard.detection import judging
from jaxguard.detection.profile import Profile
from jaxguard.detection.records import TRIGGERS, WEIGHTS, Features, Record
from jaxguard.types import Provenance

NAMES = tuple("abcd")
TRIGGER_NAMES = ("success", "norm")


def record(
    cohort: str, sha256: str, weights, triggers=None, *, names: Sequence[str] = NAMES, trigger_names=TRIGGER_NAMES
) -> Record:
    """A record of these features; None for a look that was not taken."""
    features = {}
    if weights is not None:
        features[WEIGHTS] = Features(tuple(names), np.asarray(weights))
    if triggers is not None:
        features[TRIGGERS] = Features(tuple(trigger_names), np.asarray(triggers))
    return Record(Provenance(sha256, sha256), cohort, features)


def weights_of(one: Record) -> np.ndarray:
    return one.features[WEIGHTS].values


def triggers_of(one: Record) -> np.ndarray:
    return one.features[TRIGGERS].values


def with_weights(one: Record, values) -> Record:
    return with_look(one, WEIGHTS, NAMES, values)


def with_triggers(one: Record, values) -> Record:
    return with_look(one, TRIGGERS, TRIGGER_NAMES, values)


def with_look(one: Record, look: str, names: Sequence[str], values) -> Record:
    """The record with other features; None takes the look away."""
    left = {name: found for name, found in one.features.items() if name != look}
    if values is not None:
        left[look] = Features(tuple(names), np.asarray(values))
    return one._replace(features=left)


def with_hash(one: Record, sha256: str) -> Record:
    return one._replace(provenance=Provenance(one.name, sha256))


def fleet(rng: np.random.Generator, count: int, *, shift=0.0, triggers: float | None = None, cohort="small"):
    """`count` checkpoints of independent normal features, moved by `shift`; those of a search by `triggers`."""
    return [
        record(
            cohort,
            hashlib.sha256(rng.bytes(8)).hexdigest(),
            rng.normal(size=4) + shift,
            None if triggers is None else rng.normal(size=2) + triggers,
        )
        for _ in range(count)
    ]


class Judged:
    """Findings as columns, in their order."""

    def __init__(self, records: Sequence[Record], profile: Profile | None, **options):
        self.findings = judging.judge(records, profile, **options)
        self.scores, self.p_values, self.q_values = (
            np.array([getattr(one, name) for one in self.findings]) for name in ("score", "p_value", "q_value")
        )
        self.verdicts = tuple(one.verdict for one in self.findings)
        self.reasons = tuple(one.reason for one in self.findings)
        self.stages = tuple(
            "" if np.isnan(one.p_value) else "search" if TRIGGERS in one.looks else "first" for one in self.findings
        )
        self.notes = tuple(judging.unlike_references(self.findings, options.get("alpha", judging.ALPHA)))


def power(profile: Profile, *, searched: bool) -> float:
    """Of the first or the trigger stage of a profile of one cohort, where triggers are searched in some."""
    found = judging.references(profile, searched=True)
    (one,) = (one for one in found if one.cohort.endswith(judging.SEARCHED) == searched)
    return one.power
