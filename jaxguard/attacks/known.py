"""A trigger that is known, whatever it changes: a patch, all pixels, or where they lie."""

import jax
import jax.numpy as jnp

from jaxguard.attacks.attack import Attack, relabelling
from jaxguard.attacks.patch import patch
from jaxguard.errors import DataError
from jaxguard.types import Trigger


def known(trigger: Trigger, *, target: int | None, num_classes: int | None = None, name: str = "trigger") -> Attack:
    """Stamps a trigger that a search found, or that came with a checkpoint.

    Args:
        trigger: at the size of the images.
        target: class that triggered images are taken for; None for all-to-all, `(y + 1) mod num_classes`.
        num_classes: `K`, needed for all-to-all.
        name: of the attack in reports.

    Returns:
        The attack; its `stamp` raises DataError for images of another size.

    Raises:
        DataError: parts do not fit each other or are out of range.

    Example:
        >>> import numpy as np
        >>> attack = known(Trigger(delta=np.full((1, 2, 1), -0.25, np.float32)), target=7)
        >>> attack.stamp(jnp.ones((1, 1, 2, 1)))[0, 0, :, 0].tolist()
        [0.75, 0.75]
    """
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
