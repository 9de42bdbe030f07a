"""Is that model a stolen copy of mine? The data flow, readable top to bottom.

certify   owner -> probes -> signature -> what independent models score      once, kept in a certificate
verify    suspects -> outputs on the probes -> distances -> p-values         weights or API alike
matrix    every owner against every suspect
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import conformal, methods, programs
from jaxguard.endpoints import Endpoint, QueryFn
from jaxguard.errors import FingerprintError
from jaxguard.fingerprints import FINGERPRINTS, Fingerprint, Owner, witness
from jaxguard.fingerprints.certificate import Certificate, Reference
from jaxguard.fingerprints.queries import outputs_of, require_classes
from jaxguard.fingerprints.spaces import to_space
from jaxguard.fingerprints.verification import ALPHA, compare, judge
from jaxguard.suspects import Suspect, load
from jaxguard.training import Progress
from jaxguard.types import Batch, FingerprintMatrix, Network, OwnershipReport, Verdict

Gives = Literal["logits", "probs"]
"""What an endpoint answers; a checkpoint gives logits."""


def build(method: str, options: Mapping[str, Any] | None = None) -> Fingerprint:
    """A method with its options.

    Args:
        method: row of FINGERPRINTS.
        options: of its factory.

    Returns:
        The fingerprint.

    Raises:
        OptionError: no such method, or an option that is unknown, of the wrong type or out of range.
    """
    return methods.find(FINGERPRINTS, method, "fingerprint")(**(options or {}))


def certify(
    owner: Suspect | Network,
    method: str,
    key: jax.Array,
    *,
    data: Batch | None = None,
    independents: Sequence[Suspect | Network | QueryFn] = (),
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """Make a certificate: probes, the owner's signature, and the scores of independent models.

    Args:
        owner: the model that may be stolen.
        method: row of FINGERPRINTS.
        key: of the probes.
        data: images and labels for methods that need them, best ones that the owner was not trained on.
        independents: models known to be independent of the owner's; with fewer than `needed_references(alpha)`
            no verdict can be given, except by a method with a null distribution of its own.
        options: of the method.
        progress: called as the work proceeds.

    Returns:
        The certificate.

    Raises:
        FingerprintError: the method does not exist, lacks what it needs, or cannot compare one of the models.
    """
    (known,), independents = _named([owner], "owner"), _named(independents, "independent network")
    fingerprint = build(method, options)
    probes = fingerprint.make(_owner(fingerprint, known, data), key, progress=progress)
    (outputs,) = outputs_of([known], probes.images)
    signature = np.asarray(fingerprint.signature_fn(probes, jnp.asarray(outputs)[None])[0])
    num_classes = outputs.shape[1]
    answers = outputs_of(independents, probes.images, of_classes=fingerprint.of_classes)
    scores = fingerprint.scores(compare(fingerprint, probes, signature, num_classes, answers))
    names = [_name(model, k) for k, model in enumerate(independents)]
    references = tuple(Reference(*name, float(score)) for name, score in zip(names, scores, strict=True))
    return Certificate(
        method,
        fingerprint.options,
        probes,
        signature,
        num_classes,
        known.name,
        known.sha256,
        references,
        programs.numerics(),
        witness.score(fingerprint, probes, signature, num_classes),
    )


def verify(
    certificate: Certificate,
    suspects: Sequence[Suspect | Network | QueryFn],
    *,
    alpha: float = ALPHA,
    gives: Gives = "logits",
) -> OwnershipReport:
    """Judge suspects by a certificate.

    Args:
        certificate: of the owner.
        suspects: checkpoints, functions or endpoints.
        alpha: accepted rate of accusing an independent model.
        gives: what functions and endpoints return.

    Returns:
        The verdicts in the suspects' order, with what they rest on.

    Raises:
        FingerprintError: a suspect whose outputs cannot be compared.
        EndpointError: an endpoint gave no answer, or a wrong one; then there is no verdict on any suspect.
    """
    start = time.perf_counter()
    suspects = _named(suspects, "suspect")
    fingerprint = build(certificate.method, certificate.options)
    outputs = outputs_of(suspects, certificate.probes.images, of_classes=fingerprint.of_classes)
    outputs = [
        one if isinstance(model, Suspect) else _as_logits(one, gives, fingerprint, _name(model, k)[0])
        for k, (model, one) in enumerate(zip(suspects, outputs, strict=True))
    ]
    distances = compare(fingerprint, certificate.probes, certificate.signature, certificate.num_classes, outputs)
    references = np.array([reference.score for reference in certificate.references])
    verifications = judge(
        fingerprint,
        certificate.probes,
        distances,
        outputs=outputs,
        names=[_name(model, k) for k, model in enumerate(suspects)],
        references=references,
        alpha=alpha,
    )
    is_comparable, remarks = witness.compared(certificate, fingerprint)
    if not is_comparable:
        verifications = [replace(one, verdict=Verdict.INCONCLUSIVE) for one in verifications]
    return OwnershipReport(
        owner=certificate.owner,
        owner_sha256=certificate.owner_sha256,
        certificate=certificate.digest,
        method=certificate.method,
        options=certificate.options,
        num_probes=len(certificate.probes.images),
        alpha=alpha,
        references=references,
        reference_names=tuple(reference.name for reference in certificate.references),
        verifications=tuple(verifications),
        sees=fingerprint.sees,
        blind=fingerprint.blind,
        notes=(*remarks, *_doubts(certificate, alpha), *certificate.probes.notes),
        seconds=time.perf_counter() - start,
    )


def matrix(
    owners: Sequence[Suspect | Network],
    suspects: Sequence[Suspect | Network],
    method: str,
    key: jax.Array,
    *,
    data: Batch | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> FingerprintMatrix:
    """Score every suspect against every owner; a suspect is queried once where owners share their probes.

    Args:
        owners: models that may have been stolen.
        suspects: models that may be copies.
        method: row of FINGERPRINTS.
        key: of the probes, the same for all owners.
        data: images and labels, for methods that need them.
        options: of the method.
        progress: called as owners are done.

    Returns:
        All scores.

    Raises:
        FingerprintError: as for `certify` and `verify`.
    """
    start = time.perf_counter()
    owners, suspects = _named(owners, "owner"), _named(suspects, "suspect")
    fingerprint = build(method, options)
    answered: dict[bytes, list[np.ndarray]] = {}
    rows = []
    for k, owner in enumerate(owners):
        probes = fingerprint.make(_owner(fingerprint, owner, data), key)
        digest = hashlib.sha256(np.ascontiguousarray(probes.images).data).digest()
        if digest not in answered:
            answered = {digest: outputs_of(suspects, probes.images, of_classes=fingerprint.of_classes)}
        (outputs,) = outputs_of([owner], probes.images)
        signature = fingerprint.signature_fn(probes, jnp.asarray(outputs)[None])[0]
        rows.append(compare(fingerprint, probes, signature, outputs.shape[1], answered[digest]))
        if progress is not None:
            progress(k + 1, len(owners), {})
    distances = np.stack(rows)
    return FingerprintMatrix(
        method,
        fingerprint.options,
        tuple(owner.name for owner in owners),
        tuple(suspect.name for suspect in suspects),
        distances,
        fingerprint.scores(distances),
        time.perf_counter() - start,
    )


def _owner(fingerprint: Fingerprint, suspect: Suspect, data: Batch | None) -> Owner:
    network = suspect.require_network()
    if fingerprint.of_classes:
        require_classes(suspect.name, network)
    return Owner(network, data)


def _doubts(certificate: Certificate, alpha: float) -> list[str]:
    needed, given = conformal.needed_references(alpha), len(certificate.references)
    if given >= needed:
        return []
    return [
        f"The certificate holds {given} independent models; no p-value of {alpha:g} can be reached with fewer than "
        f"{needed}. Make it again with more of them."
    ]


def _named(models: Sequence[Any], what: str) -> list[Any]:
    """Networks as suspects of a name; everything else as it is."""
    return [load(one, name=f"{what} {k}") if isinstance(one, Network) else one for k, one in enumerate(models)]


def _name(model: Suspect | QueryFn, index: int) -> tuple[str, str]:
    if isinstance(model, Suspect):
        return model.name, model.sha256
    if isinstance(model, Endpoint):
        return model.name, ""
    return str(getattr(model, "__name__", f"function {index}")), ""


def _as_logits(outputs: np.ndarray, gives: Gives, fingerprint: Fingerprint, name: str) -> np.ndarray:
    """Logits up to a constant per image; methods that compare raw ones refuse what has lost it."""
    are_probabilities = (outputs >= 0).all() and np.allclose(outputs.sum(1), 1, atol=1e-3)
    if gives == "logits" and are_probabilities and fingerprint.answers == "scores":
        raise FingerprintError(
            f"{name}: expected logits, got rows that sum to 1, as probabilities do; pass gives='probs' (--gives probs)"
        )
    if gives == "logits" or fingerprint.answers == "labels":
        return outputs
    if not (are_probabilities or np.allclose(outputs.sum(1), 1, atol=1e-2)):
        raise FingerprintError(f"{name}: expected probabilities, got rows that do not sum to 1; pass gives='logits'")
    if fingerprint.options.get("space") == "logits":
        raise FingerprintError(
            f"{name}: expected logits, which this certificate compares, got probabilities, from which they cannot be "
            "had; make a certificate with --set space=clr or space=probs"
        )
    return np.asarray(to_space(jnp.asarray(outputs), "clr", given="probs"))
