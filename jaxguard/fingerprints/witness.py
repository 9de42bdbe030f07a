"""May scores that are computed here be compared with a certificate's? Where machine or precision differ, that is shown.

A certificate holds the score of a *witness*: a network that is the same on every machine, asked as a suspect is. Where
a certificate was made by other numerics (backend and precision), the same network is asked here; if its score moves by
more than `jaxguard.conformal.TOLERANCE` standard deviations of the independent models' scores, or that cannot be told,
no verdict is given.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import programs
from jaxguard.conformal import TOLERANCE
from jaxguard.errors import FingerprintError
from jaxguard.fingerprints.certificate import Certificate
from jaxguard.fingerprints.protocol import Fingerprint, Probes
from jaxguard.fingerprints.verification import compare
from jaxguard.programs import USUAL

LAYERS, WIDTH = 8, 64
"""Of the witness: dense layers and their outputs."""


def score(fingerprint: Fingerprint, probes: Probes, signature: np.ndarray, num_classes: int) -> float:
    """The witness's score against an owner, as computed here.

    Args:
        fingerprint: the method.
        probes: of the certificate.
        signature: the owner's.
        num_classes: the owner's `K`.

    Returns:
        Higher is more stolen; NaN where the method cannot compare it.
    """
    images = np.reshape(probes.images, (len(probes.images), -1)).astype(np.float32)
    # NumPy keeps the numbers of this generator the same for good.
    random, sizes = np.random.RandomState(0), [images.shape[1], *[WIDTH] * (LAYERS - 1), num_classes]
    weights = [
        (math.sqrt(2 / before) * random.standard_normal((before, after))).astype(np.float32)
        for before, after in itertools.pairwise(sizes)
    ]
    try:
        (distance,) = compare(fingerprint, probes, signature, num_classes, [np.asarray(_logits(weights, images))])
    except FingerprintError:
        return math.nan
    return float(fingerprint.scores(np.array([distance]))[0])


@programs.jit
def _logits(weights: list[jax.Array], images: jax.Array) -> jax.Array:
    for kernel in weights[:-1]:
        images = jax.nn.relu(jnp.matmul(images, kernel))
    return jnp.matmul(images, weights[-1])


def compared(certificate: Certificate, fingerprint: Fingerprint) -> tuple[bool, tuple[str, ...]]:
    """Whether a certificate may be used here.

    Args:
        certificate: of the owner.
        fingerprint: its method.

    Returns:
        Whether, and notes for the reader.
    """
    here, then = programs.numerics(), certificate.numerics or USUAL
    said = f"The certificate does not say how its scores were computed; {then} is assumed."
    notes = (said,) if certificate.numerics is None else ()
    if here == then:
        return True, notes
    again = score(fingerprint, certificate.probes, certificate.signature, certificate.num_classes)
    deviation = np.std([one.score for one in certificate.references]) if certificate.references else 0.0
    moved = abs(again - certificate.witness) / deviation if deviation > 0 else math.inf
    told = f"The certificate was made by {then}, suspects were asked by {here}"
    shown = f"the score of a fixed network moves by {moved:.2g} of the independent models' deviation"
    if moved <= TOLERANCE:
        return True, (*notes, f"{told}; they agree, {shown}.")
    shown = f"{shown}, {TOLERANCE:g} is accepted" if math.isfinite(moved) else "that scores agree could not be shown"
    remedy = "" if here.precision == then.precision else f"verify by {then.precision} (--precision), or "
    return False, (*notes, f"{told}, and {shown}, so there is no verdict; {remedy}make the certificate again here.")
