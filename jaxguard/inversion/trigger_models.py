"""What a trigger can be: families of triggers behind one protocol, all candidates at once.

A candidate has a part that is given, such as the place of a patch, and a part that is searched for, such as its
pixels. Both are pytrees whose leaves have the leading axis `N` of the candidates:

    stamped = model.stamp(given, free, images)     # images [N or 1, B, H, W, C] -> [N, B, H, W, C]
    free = model.project(given, free)              # back to what the family allows
    sizes = model.size(given, free)                # [N], what an attacker would keep small
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp


class TriggerModel(Protocol):
    """A family of triggers; hashable, so that equal ones share compiled programs."""

    @property
    def name(self) -> str:
        """Of the family, in a word."""
        ...

    def stamp(self, given: Any, free: Any, images: jax.Array) -> jax.Array:
        """Images with the trigger of each candidate.

        Args:
            given: leaves `[N, ...]`.
            free: leaves `[N, ...]`.
            images: `[N, B, H, W, C]`, or `[1, B, H, W, C]` for all candidates, in [0, 1].

        Returns:
            `[N, B, H, W, C]` in [0, 1].
        """
        ...

    def project(self, given: Any, free: Any) -> Any:
        """The nearest allowed values of `free`."""
        ...

    def size(self, given: Any, free: Any) -> jax.Array:
        """`[N]`, in the unit of the family."""
        ...


@dataclass(frozen=True)
class Patch:
    """Pixels that replace a part of the image: `x (1 - mask) + pattern mask`, the mask given.

    `given` is the mask `[N, H, W, 1]`, `free` the pattern `[N, H, W, C]`. A mask of 1 in a square is a local patch, one
    of 0.2 everywhere a blended pattern. The size is the root of the mask's area: the edge of a square, in pixels.

    Example:
        >>> mask, pattern = jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1), jnp.full((1, 1, 2, 1), 0.5)
        >>> Patch().stamp(mask, pattern, jnp.zeros((1, 1, 1, 2, 1))).ravel().tolist()
        [0.5, 0.0]
    """

    name: str = "patch"

    def stamp(self, given: jax.Array, free: jax.Array, images: jax.Array) -> jax.Array:
        """See `TriggerModel`."""
        mask, pattern = given[:, None], free[:, None]
        return images * (1 - mask) + pattern * mask

    def project(self, given: jax.Array, free: jax.Array) -> jax.Array:
        """Pixels in [0, 1]."""
        del given
        return jnp.clip(free, 0, 1)

    def size(self, given: jax.Array, free: jax.Array) -> jax.Array:
        """Edge of a square of the mask's area."""
        del free
        return jnp.sqrt(given.sum((1, 2, 3)))
