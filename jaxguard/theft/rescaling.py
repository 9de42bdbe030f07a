"""Neuron rescaling: the same function from weights of other sizes, `c` before a ReLU and `1 / c` behind it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import surgery, training
from jaxguard.graph import ChannelGraph, Member
from jaxguard.theft import protocol
from jaxguard.theft.homogeneity import Symmetry, symmetries
from jaxguard.theft.protocol import Network, TheftError, TheftReport
from jaxguard.types import Batch, Variables


def rescaling(
    owner: Network,
    data: Batch | None = None,
    key: jax.Array | None = None,
    *,
    factor: float = 4.0,
) -> tuple[Network, TheftReport]:
    """Multiplies hidden channels by random positive factors wherever that cancels out.

    What cancels is derived from the program, see `jaxguard.theft.homogeneity`: through ReLU, poolings, and the scale
    and bias of norms; not through GELU, SiLU or sigmoids. Running statistics are left alone, so that the copy is the
    owner's in training mode too.

    Args:
        owner: the stolen model; its graph is needed.
        data: ignored.
        key: draws the factors.
        factor: the largest, >= 1; a channel's largest factor is log-uniform between 1 and this or its inverse. 1
            changes nothing.

    Returns:
        The copy, whose logits are the owner's up to rounding, and a report.

    Raises:
        TheftError: the graph or the key is missing, `factor` is out of range, or nothing in the model can be rescaled.

    Example:
        >>> from jaxguard import models
        >>> model = models.build("mlp:hidden=8", num_classes=3, input_shape=(4, 4, 1))
        >>> owner = Network.of(model, model.init(jax.random.key(0)))
        >>> copy, report = rescaling(owner, key=jax.random.key(1))
        >>> report.notes
        ('8 hidden channels in 1 of 1 groups were rescaled.',)
    """
    del data
    graph = protocol.require_graph(owner, "rescaling")
    if key is None or not (math.isfinite(factor) and factor >= 1):
        raise TheftError(f"expected a key and a finite factor >= 1, came key={key}, {factor=} in rescaling()")
    found = symmetries(graph, _pinned(graph, owner.variables))
    hidden = [group for group in graph.groups if group.frozen not in ("input", "output")]
    if not found:
        raise TheftError(
            f"expected hidden channels whose scale cancels out, came none among {len(hidden)} groups in rescaling(); "
            "nothing between layers is positively homogeneous, as ReLU is: take permutation() instead"
        )
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    factors: dict[str, list[tuple[Member, np.ndarray]]] = defaultdict(list)
    for symmetry in found:
        for place, values in zip(symmetry.places, _draw(symmetry, factor, rng), strict=True):
            factors[place.path].append((place, values))
    variables = surgery.edit(owner.variables, {path: _scaled(places) for path, places in factors.items()})
    names = {symmetry.name for symmetry in found}
    left = sorted({group.name for group in hidden} - names)
    notes = [f"{sum(one.size for one in found)} hidden channels in {len(found)} of {len(hidden)} groups were rescaled."]
    if left:
        notes.append(f"No factor cancels out in {', '.join(left)}.")
    return replace(owner, variables=variables), TheftReport("rescaling", {"factor": factor}, tuple(notes))


def _pinned(graph: ChannelGraph, variables: Variables) -> frozenset[str]:
    """Running statistics."""
    views = [view for affine in graph.affines for view in (affine.mean, affine.var)]
    pinned = {view.path for view in views if view}
    if training.partition(variables)[1] is not None:
        pinned.update(path for path in graph.program.paths if not path.startswith("params/"))
    return frozenset(pinned)


def _draw(symmetry: Symmetry, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Factors `[places, C]`: a random direction among the exponents for each channel, of random length."""
    exponents = rng.standard_normal((symmetry.size, len(symmetry.exponents))) @ symmetry.exponents
    largest = np.abs(exponents).max(axis=1, keepdims=True)
    length = rng.uniform(0, 1, (symmetry.size, 1)) * math.log(factor)
    return np.exp(length * exponents / np.maximum(largest, 1e-12)).T


def _scaled(places: Sequence[tuple[Member, np.ndarray]]) -> surgery.Edit:
    """Edit that multiplies a leaf by factors along some axes; on the host, where no shape has to be compiled."""

    def apply(leaf: jax.Array) -> jax.Array:
        whole = np.asarray(leaf)
        product = whole.astype(np.float64)
        for place, factors in places:
            along = np.ones(whole.shape[place.axis])
            along[place.positions] = factors
            product = product * along.reshape([-1 if axis == place.axis else 1 for axis in range(whole.ndim)])
        return jnp.asarray(product.astype(whole.dtype))

    return apply
