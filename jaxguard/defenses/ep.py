"""EP: where some training images are poisoned, a backdoor's channels respond in two clusters, and so of low entropy.

Zheng, Tang, Li and Liu, "Pre-activation Distributions Expose Backdoor Neurons", NeurIPS 2022. It needs a batch of the
suspect's training images; which of them are poisoned need not be known. Without poisoned images in the batch it finds
nothing.
"""

from __future__ import annotations

import jax
import numpy as np

from jaxguard import methods
from jaxguard.activations.preactivations import peaks
from jaxguard.defenses.protocol import Data, DefenseReport, require_mixed
from jaxguard.pruning.learned_gates import Form, Layers, gating, ungated
from jaxguard.scores.channel_bounds import ChannelBounds, layer_scores, require_finite
from jaxguard.types import Network


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


@methods.checked
def ep(
    network: Network,
    data: Data,
    key: jax.Array | None = None,
    *,
    u: methods.NonNegative = 3.0,
    bin_width: methods.Positive = 0.1,
    layers: Layers = "all",
    form: Form = "channel",
    batch_size: methods.Count = 256,
) -> tuple[Network, DefenseReport]:
    """Cuts every channel whose entropy lies `u` standard deviations below its layer's mean.

    A channel's value for an image is the largest before its norm, over all positions. BackdoorBench uses BatchNorms
    alone, `layers="norms"`, and 256 images; the authors' code takes `bin_width=0.01` and `form="weight"`.

    Args:
        network: the suspect.
        data: needs `mixed`.
        key: not used, EP is deterministic.
        u: 3 for CIFAR-10, 4 for Tiny ImageNet.
        bin_width: see `entropy`.
        layers: `all` that CLP scores, or those with BatchNorm, `norms`.
        form: `channel` zeroes a norm's weight and bias, `weight` leaves the bias.
        batch_size: images per forward pass.

    Returns:
        The repaired network, and a report with the entropies times -1 and the cut channels of every layer.

    Raises:
        DefenseError: there are no mixed images.
        UnscorableError: no layer is left, one keeps its images on no axis of their own, or a parameter is not finite.
    """
    del key
    mixed = require_mixed(data, "ep")
    where = gating(network.graph, layers, form)
    require_finite(network.variables)
    found = peaks(where.graph, network.variables, mixed, where.layers, batch_size=batch_size)
    results = layer_scores(ChannelBounds(where.layers, [-entropy(values, bin_width) for values in found]), u)
    undefined = sum(int(layer.undefined.sum()) for layer in results)
    notes = ungated(where.graph)
    if undefined:
        notes += (
            f"{undefined} channels have one value on all {len(mixed)} images, so no entropy; they were left alone.",
        )
    repaired = where.cut(network.variables, [layer.mask for layer in results])
    return network.with_variables(repaired), DefenseReport(results, notes)
