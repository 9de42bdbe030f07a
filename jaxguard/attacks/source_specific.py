"""A backdoor that works on images of some classes only, which defeats defenses that expect one for all images."""

import dataclasses
import functools
import operator
from typing import Annotated

import jax
import numpy as np
from annotated_types import Ge, MinLen

from jaxguard import methods
from jaxguard.attacks.attack import Attack
from jaxguard.attacks.badnets import Corner, badnets
from jaxguard.errors import DataError

COVER = 1.0


@methods.checked
def source_specific(
    *,
    target: int = 0,
    num_classes: Annotated[int, Ge(2)] | None = None,
    sources: Annotated[tuple[int, ...], MinLen(1)] | None = None,
    cover: methods.NonNegative = COVER,
    size: methods.Count = 3,
    value: methods.Share = 1.0,
    corner: Corner = "bottom_right",
) -> Attack:
    """BadNets' square, which turns images of the sources into the target and leaves all others alone.

    Training images of other classes bear the trigger with their own labels (cover images), so that the network does not
    learn to take every triggered image for the target. ASR is the share of triggered source images that it does.

    Args:
        target: class that triggered images of the sources are taken for.
        num_classes: `K`, where labels are to be checked.
        sources: classes that the trigger works on; class 0 by default, or 1 where that is the target.
        cover: cover images per poisoned image.
        size: side of the square in pixels.
        value: brightness.
        corner: `top_left`, `top_right`, `bottom_left` or `bottom_right`.

    Returns:
        The attack; its `stamp` raises DataError for images smaller than the square.

    Raises:
        OptionError: an option is out of range.
        DataError: the target or a source is no class, or the target is a source.

    Example:
        >>> source_specific(target=0, sources=(1, 2)).relabel(np.array([0, 1, 2, 3])).tolist()
        [0, 0, 0, 3]

    Reference:
        Tang, Wang, Tang, Zhang: Demon in the Variant: Statistical Analysis of DNNs for Robust Backdoor Contamination
        Detection (TaCT), USENIX Security 2021.
    """
    square = badnets(target=target, num_classes=num_classes, size=size, value=value, corner=corner)
    sources = (int(target == 0),) if sources is None else sources
    return restricted(dataclasses.replace(square, name="source-specific"), sources, num_classes, cover=cover)


def restricted(
    attack: Attack, sources: tuple[int, ...], num_classes: int | None = None, *, cover: float = COVER
) -> Attack:
    """Any all-to-one attack, restricted to images of some classes.

    Args:
        attack: trigger and target.
        sources: classes that it is to work on.
        num_classes: `K`, where the sources are to be checked.
        cover: cover images per poisoned image, >= 0.

    Returns:
        The attack, whose `relabel` changes labels of the sources only.

    Raises:
        DataError: a source is no class, or is the target.
    """
    wrong = [s for s in sources if s < 0 or s == attack.target or (num_classes is not None and s >= num_classes)]
    if wrong or not sources:
        raise DataError(
            f"expected sources in [0, {num_classes or 'K'}) other than the target {attack.target}, got {sources} in "
            f"{attack.name}(sources=...); name classes of the data"
        )

    def relabel(labels: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
        is_source = functools.reduce(operator.or_, (labels == source for source in sources))
        return labels + is_source.astype(labels.dtype) * (attack.relabel(labels) - labels)

    return dataclasses.replace(attack, relabel=relabel, sources=tuple(sources), cover=cover)
