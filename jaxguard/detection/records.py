"""What is known of one checkpoint or network before it is judged, and the cohort it is compared with."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxguard.checkpoints import LeafSpec
from jaxguard.errors import DataError
from jaxguard.types import LayerSummary, Provenance
from jaxguard.types.findings import LeafAccount

if TYPE_CHECKING:
    from jaxguard.models import Model

WEIGHTS, RESPONSES, TRIGGERS = "weights", "responses", "triggers"
"""The looks, cheapest first: see `jaxguard.detection.looks`."""


class Features(NamedTuple):
    """What one look gives.

    Attributes:
        names: of the `F` features, in their order.
        values: `[F]`, NaN where undefined.
    """

    names: tuple[str, ...]
    values: np.ndarray


class Record(NamedTuple):
    """One checkpoint or network, to calibrate with it or to judge it.

    Attributes:
        provenance: where it came from. An empty hash is taken to be like no other.
        cohort: what it is compared with: networks of one architecture, or of equal leaves.
        features: by look; a look that was not taken is missing.
        z: the largest channel z-score; NaN where it could not be scored.
        layers: summaries of its layers; empty where they are kept elsewhere.
        notes: caveats for the reader, in full sentences.
        error: why it could not be read or scored, in words; empty where it could.
        kind: of that error, one word, see `jaxguard.errors`.
        leaves: what became of every leaf; empty where that is not kept.
        left_out: stored entries that are no leaves of the model, `{name: reason}`.
        aliases: `{leaf: its other names}`.
        modified: time of the file's last change in nanoseconds; 0 for a URL or a live network.
    """

    provenance: Provenance
    cohort: str = ""
    features: Mapping[str, Features] = MappingProxyType({})
    z: float = np.nan
    layers: tuple[LayerSummary, ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""
    kind: str = ""
    leaves: tuple[LeafAccount, ...] = ()
    left_out: Mapping[str, str] = MappingProxyType({})
    aliases: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    modified: int = 0

    @property
    def name(self) -> str:
        """Path, URL, or the name of a live network."""
        return self.provenance.name

    @property
    def content(self) -> str:
        """Name of the content, see `jaxguard.types.Provenance`; may be empty."""
        return self.provenance.content

    @property
    def sha256(self) -> str:
        """Content hash, hexadecimal; may be empty."""
        return self.provenance.sha256

    def with_features(self, look: str, found: Features) -> Record:
        """The same record after another look."""
        return self._replace(features={**self.features, look: found})


def feature_rows(records: Sequence[Record], looks: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Features of several records of one cohort.

    Args:
        records: `M` of them.
        looks: whose features are wanted, side by side.
        names: of these `F` features, in their order.

    Returns:
        float64 `[M, F]`, NaN where undefined, and in all of a row that lacks one of the looks.

    Raises:
        DataError: a record has other features.
    """
    rows = np.full((len(records), len(names)), np.nan)
    wanted, known = tuple(names), set[tuple[int, ...]]()
    for k, one in enumerate(records):
        parts = [one.features[look] for look in looks if look in one.features]
        if len(parts) < len(looks):
            continue
        # Records of one source share their tuples of names, so that comparing them once is enough.
        key = tuple(id(part.names) for part in parts)
        if key not in known and sum((part.names for part in parts), ()) != wanted:
            raise DataError(
                f"expected the {len(wanted)} features of the cohort {one.cohort!r}, got others for {_shown(one)}; "
                "score all of them with one version"
            )
        known.add(key)
        found = np.concatenate([part.values for part in parts]) if parts else np.empty(0)
        if found.shape != (len(wanted),):
            raise DataError(
                f"expected {len(wanted)} features, got {found.shape} for {_shown(one)} of {one.cohort}; score all of "
                "them with one version"
            )
        rows[k] = found
    return rows


def _shown(record: Record) -> str:
    return record.name or record.content[:16] or "a network"


_COLLECTIONS = frozenset({"params", "batch_stats", "value"})  # what Flax puts around the same leaf, or leaves out


def cohort_of_model(model: Model) -> str:
    """The cohort of a bundled architecture: its specification, classes and input."""
    return f"{model.spec}, {model.num_classes} classes, {'x'.join(map(str, model.input_shape))}"


def cohort_of_leaves(leaves: Mapping[str, LeafSpec], *, is_traced: bool) -> str:
    """The cohort of networks of no known architecture: names and shapes of their floating-point leaves.

    A live network and its checkpoint have one cohort, whatever separates the parts of a name and whichever collections
    Flax puts around it.

    Args:
        leaves: shape and dtype by name.
        is_traced: whether the network's function is known; its features then are others than those by names alone.

    Returns:
        The cohort's name.

    Example:
        >>> import numpy as np
        >>> spec = LeafSpec((3, 4), np.dtype(np.float32))
        >>> live = cohort_of_leaves({"params/fc/kernel": spec}, is_traced=True)
        >>> live, live == cohort_of_leaves({"fc.kernel.value": spec}, is_traced=True)
        ('traced, leaves 2d12c32e44c8', True)
    """
    rows = sorted(
        (plain(name), spec.shape) for name, spec in leaves.items() if jnp.issubdtype(spec.dtype, jnp.floating)
    )
    digest = hashlib.sha256(json.dumps(rows).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return f"{'traced' if is_traced else 'structural'}, leaves {digest}"


def plain(name: str) -> str:
    """A leaf's name, whatever separates its parts and whichever collections Flax puts around it."""
    return "/".join(part for part in re.split(r"[./]", name) if part not in _COLLECTIONS)
