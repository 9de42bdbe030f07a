"""What networks are compared with: references of one architecture, or of equal leaves."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

import jax.numpy as jnp

from jaxguard.checkpoints import LeafSpec
from jaxguard.models import Model

_COLLECTIONS = frozenset({"params", "batch_stats", "value"})  # what Flax puts around the same leaf, or leaves out


def of_model(model: Model) -> str:
    """The cohort of a bundled architecture: its specification, classes and input."""
    return f"{model.spec}, {model.num_classes} classes, {'x'.join(map(str, model.input_shape))}"


def of_leaves(leaves: Mapping[str, LeafSpec], *, is_traced: bool) -> str:
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
        >>> live = of_leaves({"params/fc/kernel": spec}, is_traced=True)
        >>> live, live == of_leaves({"fc.kernel.value": spec}, is_traced=True)
        ('traced, leaves 2d12c32e44c8', True)
    """
    rows = sorted(
        (_plain(name), spec.shape) for name, spec in leaves.items() if jnp.issubdtype(spec.dtype, jnp.floating)
    )
    digest = hashlib.sha256(json.dumps(rows).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return f"{'traced' if is_traced else 'structural'}, leaves {digest}"


def _plain(name: str) -> str:
    return "/".join(part for part in re.split(r"[./]", name) if part not in _COLLECTIONS)
