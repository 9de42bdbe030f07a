"""Outputs of models that verify faces rather than classify.

Such a model measures the similarity of two images and has no classes. SAC-JC's paper names a variant for it, "feature
from reference images" (FRI), whose text and code were not available; this is our reading of the name: with `R`
reference images, a probe's outputs are its `R` similarities to them under the tested model, and sample correlation
compares those as it does logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxguard import programs
from jaxguard.endpoints import QueryFn
from jaxguard.errors import FingerprintError
from jaxguard.kernels import correlation

SimilarityFn = Callable[[np.ndarray, np.ndarray], Any]
"""`(images [P, H, W, C], images [P, H, W, C]) -> similarities [P]` of the pairs; higher is more alike."""


def from_embeddings(embed_fn: QueryFn, references: np.ndarray) -> QueryFn:
    """Outputs of a model that gives embeddings: cosine similarities to those of the references.

    Args:
        embed_fn: `images [N, H, W, C] -> embeddings [N, D]`.
        references: `[R, H, W, C]`, at least two; the same for the owner and all suspects.

    Returns:
        `images [N, H, W, C] -> similarities [N, R]`; every call embeds the references too.

    Raises:
        FingerprintError: fewer than two references; when called, embeddings of another shape.

    Example:
        >>> flat = lambda images: images.reshape(len(images), -1)
        >>> query = from_embeddings(flat, np.eye(4).reshape(4, 2, 2, 1)[:3])
        >>> query(np.ones((1, 2, 2, 1))).round(3).tolist()
        [[0.5, 0.5, 0.5]]
    """
    _check_references(references)

    def query(images: np.ndarray) -> np.ndarray:
        # In one call: an endpoint may change its scale between calls, unnoticed.
        together = jnp.asarray(embed_fn(np.concatenate([images, references])))
        if together.ndim != 2 or len(together) != len(images) + len(references):
            raise FingerprintError(
                f"expected embeddings [{len(images) + len(references)}, D], one per image and reference, got shape "
                f"{together.shape} in from_embeddings(); flatten them"
            )
        rows = correlation.unit_rows(together)
        probes, anchors = rows[: len(images)], rows[len(images) :]
        return np.asarray(programs.matmul(probes, anchors.T))

    return query


def from_similarities(similarity_fn: SimilarityFn, references: np.ndarray) -> QueryFn:
    """Outputs of a model that only compares images: its similarities to the references.

    Args:
        similarity_fn: compares pairs, all `N R` in one call.
        references: `[R, H, W, C]`, at least two; the same for the owner and all suspects.

    Returns:
        `images [N, H, W, C] -> similarities [N, R]`.

    Raises:
        FingerprintError: fewer than two references; when called, another number of similarities than of pairs.

    Example:
        >>> nearness = lambda left, right: 1 - np.abs(left - right).mean((1, 2, 3))
        >>> from_similarities(nearness, np.arange(2.0).reshape(2, 1, 1, 1))(np.ones((1, 1, 1, 1))).tolist()
        [[0.0, 1.0]]
    """
    _check_references(references)

    def query(images: np.ndarray) -> np.ndarray:
        left = np.repeat(images, len(references), axis=0)
        right = np.tile(references, (len(images), 1, 1, 1))
        found = np.asarray(similarity_fn(left, right))
        if found.shape != (len(left),):
            raise FingerprintError(
                f"expected similarities [{len(left)}], one per pair, got shape {found.shape} in from_similarities(); "
                "return one number for each pair"
            )
        return found.reshape(len(images), len(references))

    return query


def _check_references(references: np.ndarray) -> None:
    if np.ndim(references) != 4 or len(references) < 2:
        raise FingerprintError(
            f"expected at least two reference images [R, H, W, C], got shape {np.shape(references)}; a single "
            "similarity has no direction"
        )
