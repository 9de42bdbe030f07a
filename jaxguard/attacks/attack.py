"""What an attack is: where the trigger goes, and which label it asks for."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from jaxguard.errors import DataError

Stamp = Callable[[jax.Array], jax.Array]
Relabel = Callable[[jax.Array | np.ndarray], jax.Array | np.ndarray]


@dataclass(frozen=True, eq=False)
class Attack:
    """A trigger and its labels; pure functions, traceable and vmappable.

    Attributes:
        name: row of the ATTACKS table, or what the user calls a known trigger.
        stamp: `images [..., H, W, C] -> images`, with the trigger.
        relabel: `labels [...] -> labels`, what the attacker wants triggered images to be taken for.
        target: the one class of an all-to-one attack; None where the wanted label depends on the true one.
        sources: classes that the trigger is to work on; None for all.
        cover: images of other classes that are stamped but keep their label, per poisoned image.
    """

    name: str
    stamp: Stamp
    relabel: Relabel
    target: int | None
    sources: tuple[int, ...] | None = None
    cover: float = 0.0


def relabelling(target: int | None, num_classes: int | None, attack: str) -> Relabel:
    """All-to-one labels, or all-to-all ones, `(y + 1) mod K`.

    Args:
        target: class in [0, K) that every image is given; None for all-to-all.
        num_classes: `K`, needed for all-to-all.
        attack: name for messages.

    Returns:
        `labels -> labels`, of the same shape and dtype.

    Raises:
        DataError: `target` is not a class, or `num_classes` is missing.

    Example:
        >>> relabelling(None, 10, "badnets")(np.array([3, 9])).tolist()
        [4, 0]
    """
    if target is None:
        if num_classes is None or num_classes < 2:
            raise DataError(
                f"expected num_classes >= 2 for an all-to-all attack, got {num_classes} in {attack}(target=None); "
                "pass num_classes=, or a target class"
            )
        return lambda labels: (labels + 1) % num_classes
    if target < 0 or (num_classes is not None and target >= num_classes):
        raise DataError(
            f"expected a class in [0, {num_classes or 'K'}), got {target} in {attack}(target=...); "
            "pass the label the attacker wants"
        )
    return lambda labels: labels * 0 + target
