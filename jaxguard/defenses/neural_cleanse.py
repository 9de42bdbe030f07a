"""Neural Cleanse unlearning: recover the trigger, then fine-tune on images that bear it under their true labels.

Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", S&P 2019.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import methods, training
from jaxguard.defenses.ft import ft
from jaxguard.defenses.protocol import Data, DefenseReport, require_clean, require_training
from jaxguard.inversion.recovery import Recovered, recover, stamp
from jaxguard.scores.channel_bounds import require_finite
from jaxguard.types import Batch, Network

FLAGGED = 2.0
"""Anomaly index above which a class is flagged."""


def stamped_share(
    clean: Batch, patch: tuple[jax.Array, jax.Array], share: float, key: jax.Array
) -> tuple[Batch, np.ndarray]:
    """The images, some of them with the trigger; labels stay.

    Args:
        clean: `N` images.
        patch: mask `[H, W, 1]` and pattern `[H, W, C]`.
        share: how many are stamped, in [0, 1], rounded.
        key: draws which.

    Returns:
        The images, and the numbers of those stamped.
    """
    total = len(clean.images)
    chosen = np.sort(np.asarray(jax.random.permutation(key, total))[: round(share * total)])
    images = np.array(clean.images)
    images[chosen] = stamp(jnp.asarray(images[chosen]), patch)
    return Batch(images, clean.labels), chosen


def stretched(part: jax.Array) -> jax.Array:
    """Spreads values over [0, 1], as a picture is saved; all 0 where they are equal.

    Example:
        >>> stretched(jnp.array([0.25, 0.5, 0.75])).tolist()
        [0.0, 0.5, 1.0]
    """
    low, high = part.min(), part.max()
    return (part - low) / jnp.where(high > low, high - low, 1)


@methods.checked
@methods.options_of(ft)
def neural_cleanse(
    network: Network,
    data: Data,
    key: jax.Array,
    *,
    target: methods.Steps | None = None,
    share: methods.Share = 0.2,
    stretch: bool = False,
    inversion_steps: methods.Count = 800,
    **tuning: Any,
) -> tuple[Network, DefenseReport]:
    """Finds the class of an unusually small trigger, and unlearns that trigger.

    Patches of all classes are recovered on the clean images (`jaxguard.inversion`). Where the smallest one's anomaly
    index is above 2, some of the images get it under their true labels, and the model is fine-tuned on all of them.
    Where no class is flagged, nothing is changed, and a note says so. The paper also offers to prune; that is
    what ShapPruning does here.

    `schedule_epochs=100` and, for CIFAR-10, `augment="crop-flip"` give BackdoorBench's fine-tuning; it shifts and
    mirrors the trigger as well.

    Args:
        network: the suspect.
        data: needs `clean`.
        key: draws patches, which images are stamped, batches and augmentation.
        target: the class to unlearn, flagged or not; only its trigger is recovered then.
        share: of the clean images that are stamped.
        stretch: whether mask and pattern are first spread over [0, 1], as BackdoorBench does by way of saved
            pictures: a faint mask becomes opaque somewhere.
        inversion_steps: most steps of the inversion per class.
        tuning: options of `ft`, which fine-tunes.

    Returns:
        The repaired network, and a report with the recovered trigger and, where a class was unlearned, the curve
        `loss`, `[steps]`.

    Raises:
        DefenseError: clean images or a training mode are missing, or the loss became NaN or infinite.
        UnscorableError: a parameter is not finite.
        DataError: the images are not in [0, 1], or do not fit the model.
    """
    clean = require_clean(data, "neural-cleanse")
    require_training(network, "neural-cleanse")
    require_finite(network.variables)
    key_recover, key_stamp, key_tune = jax.random.split(key, 3)
    recovered = recover(
        network,
        clean,
        key_recover,
        target=target,
        most=len(clean.images),
        steps=inversion_steps,
        progress=data.progress,
    )
    if recovered.trigger.target is None:
        return network, DefenseReport(notes=(_nothing(recovered),), trigger=recovered.trigger)
    mask, pattern = recovered.patch
    patch = (stretched(mask), stretched(pattern)) if stretch else (mask, pattern)
    taught, chosen = stamped_share(clean, patch, share, key_stamp)
    repaired, tuned = ft(
        network,
        Data(clean=taught, progress=training.staged(data.progress, "unlearning the trigger")),
        key_tune,
        **tuning,
    )
    notes = (*recovered.notes, *_unlearned(recovered, len(chosen), len(clean.images)))
    return repaired, DefenseReport(notes=notes, curves=tuned.curves, trigger=recovered.trigger)


def _nothing(recovered: Recovered) -> str:
    return (
        f"No class is flagged: the highest anomaly index is {recovered.trigger.anomaly.max():.1f}, not above "
        f"{FLAGGED:g}, so nothing was changed. The model may have no backdoor of this kind; target={recovered.target} "
        "unlearns the smallest patch nevertheless."
    )


def _unlearned(recovered: Recovered, stamped: int, total: int) -> list[str]:
    notes = [f"{stamped} of {total} clean images bore class {recovered.target}'s trigger under their true labels."]
    others = np.flatnonzero(recovered.trigger.anomaly > FLAGGED)
    others = others[others != recovered.target]
    if others.size:
        names = ", ".join(map(str, others))
        notes.append(f"Also flagged, but not unlearned: {names}. Repair again with target= for each of them.")
    return notes
