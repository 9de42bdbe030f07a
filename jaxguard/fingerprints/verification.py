"""Is a suspect a copy? A verdict with a p-value, from a certificate and a suspect's outputs."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxguard import conformal
from jaxguard.errors import FingerprintError
from jaxguard.fingerprints.protocol import Fingerprint, Probes
from jaxguard.types import Verdict, Verification

ALPHA = 0.05
"""Accepted rate of accusing an independent model."""

NULL_ALPHA = 1e-3
"""The same for a method's own null distribution, which needs no references."""


def compare(
    fingerprint: Fingerprint, probes: Probes, signature: Any, num_classes: int, outputs: list[np.ndarray]
) -> np.ndarray:
    """The method's number for each of several models.

    Args:
        fingerprint: the method.
        probes: of the certificate.
        signature: the owner's, `[...]`.
        num_classes: the owner's `K`.
        outputs: one `[N, K]` per model.

    Returns:
        float64 `[S]`.

    Raises:
        FingerprintError: a number of classes that the method cannot compare, or a NaN distance.
    """
    distances = np.full(len(outputs), np.nan)
    widths = np.array([one.shape[1] for one in outputs])
    for width in np.unique(widths):
        if width != num_classes and not fingerprint.across_classes:
            raise FingerprintError(
                f"expected suspects with {num_classes} classes, as the owner has, got {width} in {fingerprint.name}; "
                "use sac to compare models of different tasks"
            )
        members = np.flatnonzero(widths == width)
        signatures = fingerprint.signature_fn(probes, jnp.stack([jnp.asarray(outputs[k]) for k in members]))
        distances[members] = np.asarray(fingerprint.distance_fn(probes, signature, signatures), np.float64)
    if np.isnan(distances).any():
        raise FingerprintError(
            f"expected a number for each of {len(outputs)} models, got NaN for {int(np.isnan(distances).sum())} in "
            f"{fingerprint.name}; their outputs may be constant"
        )
    return distances


def judge(
    fingerprint: Fingerprint,
    probes: Probes,
    distances: np.ndarray,
    *,
    outputs: list[np.ndarray],
    names: list[tuple[str, str]],
    references: np.ndarray,
    alpha: float = ALPHA,
) -> list[Verification]:
    """Verdicts on several suspects.

    Args:
        fingerprint: the method.
        probes: of the certificate.
        distances: `[S]`, of `compare`.
        outputs: one `[N, K]` per suspect.
        names: name and content hash of each.
        references: `[R]` scores of independent models.
        alpha: accepted rate of false accusations, in (0, 1).

    Raises:
        FingerprintError: `alpha` out of range.
    """
    if not 0 < alpha < 1:
        raise FingerprintError(f"expected alpha in (0, 1), got {alpha}; 0.05 accuses one independent model in twenty")
    scores = fingerprint.scores(distances)
    found = conformal.p_values(scores, references)
    enough = len(references) >= conformal.needed_references(alpha)
    results = []
    for k, (name, sha256) in enumerate(names):
        null = (
            None
            if fingerprint.null_fn is None
            else float(fingerprint.null_fn(probes, jnp.asarray(outputs[k])[None])[0])
        )
        verdict = Verdict.NO_EVIDENCE if enough else Verdict.INCONCLUSIVE
        if found[k] <= alpha or (null is not None and null < NULL_ALPHA):
            verdict = Verdict.SUSPECTED
        row = (float(distances[k]), float(scores[k]), float(found[k]), null)
        results.append(Verification(name, sha256, *row, verdict))
    return results
