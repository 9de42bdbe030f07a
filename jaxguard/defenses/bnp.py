"""BNP: channels whose clean statistics differ from those that training recorded were trained on something else too.

Zheng, Tang, Li and Liu, "Pre-activation Distributions Expose Backdoor Neurons", NeurIPS 2022. BatchNorm's running
statistics are those of the training set, poisoned images included; on clean images a backdoor's channels fall short.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import methods
from jaxguard.activations.preactivations import Moments, moments
from jaxguard.defenses.protocol import Data, DefenseReport, require_clean
from jaxguard.errors import UnscorableError
from jaxguard.graph import ChannelGraph
from jaxguard.graph.pairing import Layer
from jaxguard.graph.program import numeric_leaves
from jaxguard.pruning.learned_gates import Form, Gating, Layers, gating, ungated
from jaxguard.scores.channel_bounds import ChannelBounds, layer_scores, require_finite
from jaxguard.types import Network, Variables


def divergence(clean: Moments, recorded: Moments, *, log_factor: float = 0.5) -> np.ndarray:
    """KL divergence of two normal distributions, `D(clean || recorded)`, channel by channel.

        log_factor log(v2 / v1) + (v1 + (m1 - m2)^2) / (2 v2) - 1/2

    Args:
        clean: `m1, v1`.
        recorded: `m2, v2`.
        log_factor: 1/2; BackdoorBench's is 1, which is no divergence: it is below 0 where `v1` is somewhat above `v2`.

    Returns:
        float32 `[C]`; NaN where a variance is not positive.

    Example:
        >>> divergence(Moments(np.zeros(2), np.ones(2)), Moments(np.array([0.0, 2.0]), np.ones(2))).tolist()
        [0.0, 2.0]
    """
    defined = (clean.var > 0) & (recorded.var > 0)
    v1, v2 = np.where(defined, clean.var, 1), np.where(defined, recorded.var, 1)
    found = log_factor * np.log(v2 / v1) + (v1 + np.square(clean.mean - recorded.mean)) / (2 * v2) - 0.5
    return np.where(defined, found, np.nan).astype(np.float32)


def running(graph: ChannelGraph, variables: Variables, layer: Layer) -> Moments | None:
    """A layer's running statistics.

    Args:
        graph: the model's channel graph.
        variables: its variables.
        layer: of `jaxguard.graph.pairing.layers`.

    Returns:
        Mean and variance `[C]`; None where the layer has none.
    """
    if layer.affine is None:
        return None
    affine = graph.affines[layer.affine]
    if affine.mean is None or affine.var is None:
        return None
    leaves = numeric_leaves(variables)
    mean, var = (view.read(jnp.asarray(leaves[view.path])) for view in (affine.mean, affine.var))
    return Moments(np.asarray(mean, np.float64), np.asarray(var, np.float64))


@methods.checked
def bnp(
    network: Network,
    data: Data,
    key: jax.Array | None = None,
    *,
    u: methods.NonNegative = 3.0,
    log_factor: methods.Positive = 0.5,
    layers: Layers = "all",
    form: Form = "channel",
    batch_size: methods.Count = 256,
) -> tuple[Network, DefenseReport]:
    """Cuts every channel whose divergence exceeds its layer's mean by `u` standard deviations.

    `log_factor=1` gives BackdoorBench's version, `form="weight"` the authors' code; both use one batch of clean images,
    this all. Layers without running statistics are compared with their activations on `data.mixed`, as
    BackdoorBench does for its transformers, and left out where there are no such images.

    Args:
        network: the suspect.
        data: needs `clean`; labels are not used.
        key: not used, BNP is deterministic.
        u: 3 for CIFAR-10, 4 for Tiny ImageNet.
        log_factor: see `divergence`.
        layers: `all` that CLP scores, or those with BatchNorm, `norms`.
        form: `channel` zeroes a norm's weight and bias, `weight` leaves the bias.
        batch_size: images per forward pass.

    Returns:
        The repaired network, and a report with every layer's divergences and cut channels.

    Raises:
        DefenseError: there are no clean images.
        UnscorableError: no layer has running statistics and there are no mixed images, or a parameter is not finite.
    """
    del key
    clean = require_clean(data, "bnp")
    where = gating(network.graph, layers, form)
    graph, variables = where.graph, network.variables
    require_finite(variables)
    recorded = [running(graph, variables, layer) for layer in where.layers]
    stateless = tuple(layer for layer, own in zip(where.layers, recorded, strict=True) if own is None)
    notes = list(ungated(graph))
    if stateless and data.mixed is not None:
        seen = iter(moments(graph, variables, data.mixed, stateless, batch_size=batch_size))
        recorded = [next(seen) if own is None else own for own in recorded]
    elif len(stateless) == len(where.layers):
        raise UnscorableError(
            f"expected layers with running statistics, got none among {len(stateless)}; bnp compares clean images with "
            "what training recorded, so give it images of the training set in data.mixed, or take another defense"
        )
    elif stateless:
        names = ", ".join(layer.name for layer in stateless)
        notes.append(f"{len(stateless)} layers have no running statistics and were left alone: {names}.")
    scored = [(layer, own) for layer, own in zip(where.layers, recorded, strict=True) if own is not None]
    chosen = tuple(layer for layer, _ in scored)
    found = moments(graph, variables, clean.images, chosen, batch_size=batch_size)
    scores = [divergence(own, past, log_factor=log_factor) for own, (_, past) in zip(found, scored, strict=True)]
    results = layer_scores(ChannelBounds(chosen, scores), u)
    undefined = sum(int(layer.undefined.sum()) for layer in results)
    if undefined:
        notes.append(f"{undefined} channels do not vary, so they have no divergence and were left alone.")
    repaired = Gating(graph, chosen, form).cut(variables, [layer.mask for layer in results])
    return network.with_variables(repaired), DefenseReport(results, tuple(notes))
