"""Witnesses of profiles: their features as computed here; see `jaxguard.detection.agreement`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import jax
import numpy as np

from jaxguard import programs
from jaxguard.detection import agreement
from jaxguard.detection.looks import Look
from jaxguard.detection.profile import Profile
from jaxguard.detection.records import TRIGGERS, WEIGHTS
from jaxguard.errors import JaxguardError
from jaxguard.fleet import local
from jaxguard.fleet.discovery import Model
from jaxguard.fleet.examination import Examination
from jaxguard.graph.pairing import Pairing
from jaxguard.types import Network

UNCHECKED = (
    "Workers of the cluster computed the weights' features; whether their backend is that of this machine, {}, was not "
    "checked."
)
IMAGES = 32
"""Of noise, on which logits are compared."""


def witnessed(profile: Profile, examples: Mapping[str, Model], looks: Sequence[Look], how: Pairing) -> Profile:
    """A new profile with its witnesses, and what they were computed by.

    Args:
        profile: of `jaxguard.detection.calibration.calibrate`.
        examples: cohort -> a model of it.
        looks: that the references were examined by.
        how: see `jaxguard.graph.pairing.layers`.
    """
    cohorts = {
        name: replace(one, witness=features(examples[name], looks, how) or {}) if one.first.combinations else one
        for name, one in profile.cohorts.items()
    }
    return replace(profile, cohorts=cohorts, numerics=programs.numerics())


def comparable(profile: Profile, seen: Examination, looks: Sequence[Look], how: Pairing) -> tuple[Profile, list[str]]:
    """A profile as far as it may be used with numbers that are computed here, and notes for the reader.

    Args:
        profile: that suspects will be judged by.
        seen: the suspects.
        looks: that they are examined by.
        how: see `jaxguard.graph.pairing.layers`.
    """
    known = profile.cohorts
    examples = {one.cohort: model for one, model in zip(seen.records, seen.models, strict=True) if not one.error}

    def witness_fn(cohort: str) -> dict[str, np.ndarray] | None:
        wanted = [look for look in looks if look.name in (*known[cohort].looks, TRIGGERS)]
        return features(examples[cohort], wanted, how, known)

    searched = any(look.name == TRIGGERS for look in looks)
    checked, notes = agreement.checked(profile, examples.keys(), witness_fn, searched=searched)
    if any(one.by_workers for one in seen.results):
        notes.append(UNCHECKED.format(programs.numerics().backend))
    return checked, notes


def logit_error(network: Network) -> float:
    """How far a network's logits here differ from those by `jaxguard.programs.USUAL`.

    Args:
        network: any.

    Returns:
        The largest difference over some images of noise, in standard deviations of all logits; infinity where the
        others cannot be computed here.
    """
    images = np.random.default_rng(0).uniform(size=(IMAGES, *network.input_spec.shape)).astype(np.float32)
    forward = programs.jit(network.apply_fn)
    here = np.asarray(forward(network.variables, images), np.float64)
    try:
        cpu = jax.local_devices(backend=programs.USUAL.backend)[0]
    except RuntimeError:  # this process has no such backend
        return np.inf
    with jax.default_device(cpu), programs.precision("highest"):
        there = np.asarray(forward(jax.device_get(network.variables), images), np.float64)
    error = np.abs(here - there).max() / there.std()
    return float(error) if np.isfinite(error) else np.inf


def features(
    model: Model, looks: Sequence[Look], how: Pairing, known: Collection[str] = ()
) -> dict[str, np.ndarray] | None:
    """What looks give of the witness of a model's cohort.

    Args:
        model: one of the cohort; its numbers do not matter.
        looks: the weights first; the others where it can be run.
        how: see `jaxguard.graph.pairing.layers`.
        known: cohorts of a profile, see `jaxguard.fleet.local.examine`.

    Returns:
        Features by look, float64; None where one of them cannot be computed.
    """
    try:
        witness = agreement.witness(model.load())
        found = {WEIGHTS: np.asarray(local.scored(witness, how, known)[2].features, np.float64)}
        for look in looks:
            if look.features_fn is not None:
                found[look.name] = np.asarray(look.features_fn(witness.require_network()), np.float64)
    except JaxguardError:
        return None
    return {look: np.where(np.isfinite(values), values, np.nan) for look, values in found.items()}
