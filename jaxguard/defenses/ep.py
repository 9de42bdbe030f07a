"""EP: where some training images are poisoned, a backdoor's channels respond in two clusters, and so of low entropy.

Zheng, Tang, Li and Liu, "Pre-activation Distributions Expose Backdoor Neurons", NeurIPS 2022. It needs a batch of the
suspect's training images as they are, and nobody has to know which of them are poisoned. Without poisoned images in the
batch there is nothing to see.
"""

from __future__ import annotations

from typing import Any, get_args

import jax
import numpy as np

from jaxguard.defenses.learned_gates import Form, Layers, gating, ungated
from jaxguard.defenses.preactivations import peaks
from jaxguard.defenses.protocol import Context, DefenseReport, require_mixed
from jaxguard.errors import DefenseError
from jaxguard.scores.channel_bounds import ChannelBounds, layer_scores, require_finite
from jaxguard.types import Variables


def entropy(values: np.ndarray, bin_width: float) -> np.ndarray:
    """Entropy of the histogram of each channel's standardised values, in nats.

    Two far clusters are two narrow peaks once they are standardised; a single one spreads over many bins. All channels
    share a grid that begins at their least value. BackdoorBench's leaves out values on the edges of bins and in the
    last, incomplete bin.

    Args:
        values: `[N, C]`, N >= 2.
        bin_width: of the histogram, in standard deviations (`ddof=1`).

    Returns:
        float32 `[C]`; NaN where a channel has but one value.

    Example:
        >>> two_clusters, spread = [0.0, 0, 9, 9], [0.0, 1, 2, 3]
        >>> entropy(np.array([two_clusters, spread]).T, bin_width=0.5).tolist()  # ln 2, ln 4
        [0.693147..., 1.386294...]
    """
    count, channels = values.shape
    std = values.std(0, ddof=1)
    varies = (values.max(0) > values.min(0)) & (std > 0)
    unit = (values - values.mean(0)) / np.where(varies, std, 1)
    bins = np.floor((unit - unit[:, varies].min(initial=np.inf)) / bin_width) if varies.any() else np.zeros_like(unit)
    found = np.full(channels, np.nan, np.float32)
    for channel in np.flatnonzero(varies):
        shares = np.unique(bins[:, channel], return_counts=True)[1] / count
        found[channel] = -(shares * np.log(shares)).sum()
    return found


def ep(
    variables: Variables,
    context: Context,
    key: jax.Array | None = None,
    *,
    u: float = 3.0,
    bin_width: float = 0.1,
    layers: Layers = "all",
    form: Form = "channel",
    batch_size: int = 256,
) -> tuple[Any, DefenseReport]:
    """Cuts every channel whose entropy lies `u` standard deviations below its layer's mean.

    A channel's value for an image is the largest before its norm, over all positions. BackdoorBench looks at BatchNorms
    alone, `layers="norms"`, and at 256 images; the authors' code takes `bin_width=0.01` and `form="weight"`.

    Args:
        variables: the suspect, left untouched.
        context: needs `mixed` and `graph`.
        key: not used, EP is deterministic.
        u: 3 for CIFAR-10, 4 for Tiny ImageNet.
        bin_width: see `entropy`.
        layers: `all` that CLP scores, or those with BatchNorm, `norms`.
        form: `channel` zeroes a norm's weight and bias, `weight` leaves the bias.
        batch_size: images per forward pass.

    Returns:
        The repaired variables, and a report with the entropies times -1 and the cut channels of every layer.

    Raises:
        DefenseError: the context lacks something, an option is out of range, or a parameter is not finite.
        UnscorableError: no layer is left, or one keeps its images on no axis of their own.
    """
    del key
    mixed = require_mixed(context, "ep")
    if not (u >= 0 and bin_width > 0 and batch_size >= 1 and layers in get_args(Layers) and form in get_args(Form)):
        raise DefenseError(
            f"expected u >= 0, bin_width > 0, batch_size >= 1, layers all or norms and form channel or weight, came "
            f"{u=}, {bin_width=}, {batch_size=}, {layers=}, {form=} in ep(); leave them out for the defaults"
        )
    where = gating(context.graph, layers, form)
    require_finite(variables)
    found = peaks(where.graph, variables, mixed, where.layers, batch_size=batch_size)
    results = layer_scores(ChannelBounds(where.layers, [-entropy(values, bin_width) for values in found]), u)
    undefined = sum(int(layer.undefined.sum()) for layer in results)
    notes = ungated(where.graph)
    if undefined:
        notes += (
            f"{undefined} channels have one value on all {len(mixed)} images, so no entropy; they were left alone.",
        )
    repaired = where.cut(variables, [layer.mask for layer in results])
    options = {"u": u, "bin_width": bin_width, "layers": layers, "form": form, "batch_size": batch_size}
    return repaired, DefenseReport("ep", options, results, notes)
