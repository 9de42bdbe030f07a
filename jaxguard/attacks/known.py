"""A trigger that is known, whatever it changes: a patch, all pixels, or where they lie."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard.attacks.attack import Attack, relabelling
from jaxguard.attacks.patch import patch
from jaxguard.errors import DataError
from jaxguard.types import Trigger

STORED = "stored"
"""The target of a trigger that says itself what it does to each class."""


def known(
    trigger: Trigger,
    *,
    target: int | Literal["stored"] | None,
    num_classes: int | None = None,
    name: str = "trigger",
) -> Attack:
    """Stamps a trigger that a search found, or that came with a checkpoint.

    Args:
        trigger: at the size of the images.
        target: class that triggered images are taken for; None for all-to-all, `(y + 1) mod num_classes`; `stored` for
            the trigger's `labels`.
        num_classes: `K`, needed for all-to-all.
        name: of the attack in reports.

    Returns:
        The attack; its `stamp` raises DataError for images of another size.

    Raises:
        DataError: parts do not fit each other or are out of range, or labels are not those of `num_classes`.

    Example:
        >>> import numpy as np
        >>> attack = known(Trigger(delta=np.full((1, 2, 1), -0.25, np.float32)), target=7)
        >>> attack.stamp(jnp.ones((1, 1, 2, 1)))[0, 0, :, 0].tolist()
        [0.75, 0.75]
    """
    if target == STORED:
        return _relabelled(known(trigger, target=0, name=name), trigger.labels, num_classes)
    if trigger.mask is not None and trigger.pattern is not None and len(trigger.arrays) == 2:
        return patch(trigger.mask, trigger.pattern, target=target, num_classes=num_classes, name=name)

    def stamp(images: jax.Array) -> jax.Array:
        images = jnp.asarray(images)
        for part, array in trigger.arrays.items():
            depth = {1, images.shape[-1]} if part != "flow" else {2}
            if array.shape[:2] != images.shape[-3:-1] or array.shape[2] not in depth:
                raise DataError(
                    f"expected images of the trigger's size, got {images.shape[-3:]} for a {part} {array.shape} in "
                    f"{name}; resize the trigger to the images"
                )
        return jnp.asarray(trigger.stamp(images)).astype(images.dtype)

    return Attack(name, stamp, relabelling(target, num_classes, name), target)


def _relabelled(attack: Attack, labels: np.ndarray | None, num_classes: int | None) -> Attack:
    """The attack with a class of its own for each class."""
    if labels is None or len(labels) != (num_classes or len(labels)):
        raise DataError(
            f"expected labels of {num_classes or 'K'} classes, got {'none' if labels is None else len(labels)} in "
            f"{attack.name}; name a target"
        )
    moved = np.flatnonzero(labels != np.arange(len(labels)))
    targets = set(labels[moved].tolist())
    is_for_all = len(moved) >= len(labels) - 1
    return dataclasses.replace(
        attack,
        relabel=lambda known: jnp.asarray(labels)[known] if isinstance(known, jax.Array) else labels[known],
        target=targets.pop() if len(targets) == 1 else None,
        sources=None if is_for_all else tuple(moved.tolist()),
    )
