"""What a trigger can be: families of triggers behind one protocol, all candidates at once.

A candidate has a part that is given, such as the place of a patch, and a part that is searched for, such as its
pixels. Both are pytrees whose leaves have the leading axis `N` of the candidates:

    stamped = model.stamp(given, free, images)     # images [N or 1, B, H, W, C] -> [N, B, H, W, C]
    free = model.project(given, free)              # back to what the family allows
    sizes = model.size(given, free)                # [N], what an attacker would keep small
    ways = model.steepest(gradient)                # the step of unit length that gains most, in the family's norm
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard.types.triggers import moved


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

    def steepest(self, gradient: Any) -> Any:
        """The step of length 1, in the norm that bounds `free`, that gains most; 0 where there is no gradient."""
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

    def steepest(self, gradient: jax.Array) -> jax.Array:
        """Of the largest change of a pixel."""
        return jnp.sign(gradient)


@dataclass(frozen=True)
class Additive:
    """A change of all pixels, `clip(x + radius u, 0, 1)`, with `u` in a ball.

    `given` is the radius `[N]`, `free` is u `[N, H, W, C]`: at most 1 in every pixel (`norm` is inf), or a root mean
    square of at most 1 (`norm` is 2, an L2 ball of radius `sqrt(H W C)`). So both balls of a radius hold changes of the
    same strength, and that of L2 may concentrate them.

    Example:
        >>> u = jnp.array([3.0, 0.0]).reshape(1, 1, 2, 1)
        >>> Additive(np.inf).project(jnp.ones(1), u).ravel().tolist()
        [1.0, 0.0]
        >>> [round(value, 3) for value in Additive(2).project(jnp.ones(1), u).ravel().tolist()]
        [1.414, 0.0]
    """

    norm: float
    name: str = "additive"

    def stamp(self, given: jax.Array, free: jax.Array, images: jax.Array) -> jax.Array:
        """See `TriggerModel`."""
        return jnp.clip(images + (given[:, None, None, None] * free)[:, None], 0, 1)

    def project(self, given: jax.Array, free: jax.Array) -> jax.Array:
        """The nearest `u` in the ball."""
        del given
        if self.norm == math.inf:
            return jnp.clip(free, -1, 1)
        return free / jnp.maximum(_root_mean_square(free), 1)

    def size(self, given: jax.Array, free: jax.Array) -> jax.Array:
        """The norm of the change, in its own units."""
        change = jnp.abs(free).max((1, 2, 3)) if self.norm == math.inf else _root_mean_square(free)[:, 0, 0, 0]
        return given * change

    def steepest(self, gradient: jax.Array) -> jax.Array:
        """Signs, or the gradient at a root mean square of 1."""
        if self.norm == math.inf:
            return jnp.sign(gradient)
        length = _root_mean_square(gradient)
        return jnp.where(length > 0, gradient / jnp.where(length > 0, length, 1), 0)


def _root_mean_square(values: jax.Array) -> jax.Array:
    """`[N, 1, 1, 1]`."""
    return jnp.sqrt(jnp.square(values).mean((1, 2, 3), keepdims=True))


@dataclass(frozen=True)
class Warp:
    """A smooth shift of pixels: each takes the value that lies `radius u` away, u from `grid` x `grid` points.

    `given` is the radius in pixels `[N]`, `free` the shifts at the points, rows and columns `[N, grid, grid, 2]` in
    [-1, 1], carried on to all pixels by cubic interpolation, as in WaNet (Nguyen and Tran, ICLR 2021: 4 x 4 points).
    """

    grid: int = 4
    name: str = "warp"

    def flow(self, given: jax.Array, free: jax.Array, height: int, width: int) -> jax.Array:
        """Shifts `[N, H, W, 2]` in pixels."""
        rows, columns = (
            jnp.asarray(jax.image.resize(np.eye(self.grid, dtype=np.float32), (length, self.grid), "cubic"))
            for length in (height, width)
        )
        smooth = jnp.einsum("hi,nijd,wj->nhwd", rows, free, columns)
        # Cubic interpolation overshoots between points.
        return given[:, None, None, None] * jnp.clip(smooth, -1, 1)

    def stamp(self, given: jax.Array, free: jax.Array, images: jax.Array) -> jax.Array:
        """See `TriggerModel`; at a border the border's own pixels stand for those beyond it."""
        images, (height, width) = jnp.asarray(images), images.shape[-3:-1]
        flow = self.flow(given, free, height, width)
        one = images.shape[0] == 1  # one stack of images for all candidates
        return jax.vmap(moved, in_axes=(None if one else 0, 0))(images[0] if one else images, flow)

    def project(self, given: jax.Array, free: jax.Array) -> jax.Array:
        """Shifts of at most the radius along each axis."""
        del given
        return jnp.clip(free, -1, 1)

    def size(self, given: jax.Array, free: jax.Array) -> jax.Array:
        """The largest shift along an axis, in pixels."""
        return given * jnp.abs(free).max((1, 2, 3))

    def steepest(self, gradient: jax.Array) -> jax.Array:
        """Signs."""
        return jnp.sign(gradient)
