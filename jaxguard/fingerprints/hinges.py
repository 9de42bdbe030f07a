"""Points where one hidden unit of a ReLU network switches, found from the weights alone.

Across the hyperplane `z(x) = 0` of a unit the Jacobian of the outputs jumps by `a grad z^T`, where `a` is the
derivative of the outputs by the unit. With `u = grad z / ||grad z||` and no other unit switching within `delta` of x,

    f(x + delta u) - 2 f(x) + f(x - delta u) = delta ||grad z|| a.

A point is drawn uniformly in a box and projected onto the linearised hyperplane until it is on it:
`x <- clip(x - z grad z / ||grad z||^2)`. `delta` is chosen so that no pixel changes by more than `scale` within it. The
box keeps enough distance from 0 and 1 that every query along u is an image and needs no clipping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxguard import programs, training
from jaxguard.activations.layer_inputs import activations
from jaxguard.fingerprints.hinge_layers import HingeLayer
from jaxguard.fingerprints.protocol import Space
from jaxguard.fingerprints.spaces import to_space
from jaxguard.graph import ChannelGraph
from jaxguard.training import Progress
from jaxguard.types import Variables

STEPS_LINEAR, STEPS = 20, 60
"""Projections onto a flat hyperplane, and onto one that bends with the layers before it."""

NEAR_LINEAR, NEAR = 1e-4, 1e-3
"""Largest distance, in units of a pixel's range, at which a point counts as on such a hyperplane."""

LEAST_BEND = 1e-5
"""Second differences below this, relative to the outputs, are lost in float32 rounding."""

LARGEST_ARRAY = 2**25
"""Numbers in the largest array of a batch of candidates."""

LARGEST_BATCH = 400


class Hinges(NamedTuple):
    """`B` points on hyperplanes of hidden units.

    Attributes:
        points: float32 `[B, H, W, C]`, each on the hyperplane of its unit, in [0, 1].
        directions: float32 `[B, H, W, C]`, the hyperplane's unit normal there.
        deltas: float32 `[B]`, half the width of the second difference.
        slopes: float32 `[B]`, `||grad z||`.
        distances: float32 `[B]`, `|z| / ||grad z||`, distance to the hyperplane that is left.
        bends: float32 `[B]`, norm of the second difference of the outputs.
        outputs: float32 `[B]`, norm of the outputs.
        isolation: float32 `[B]`, distance along the normal to the nearest other unit that is linear in the image.
        depths: int32 `[B]`, layer of the unit.
        units: int32 `[B, 2]`, number of its ReLU in the layer, and of the unit in it: channel and location.
    """

    points: np.ndarray
    directions: np.ndarray
    deltas: np.ndarray
    slopes: np.ndarray
    distances: np.ndarray
    bends: np.ndarray
    outputs: np.ndarray
    isolation: np.ndarray
    depths: np.ndarray
    units: np.ndarray

    def take(self, index: np.ndarray) -> Hinges:
        """The hinges of `index`, in its order."""
        return Hinges(*(part[index] for part in self))

    @property
    def usable(self) -> np.ndarray:
        """Whether each is on its hyperplane and bends the outputs, bool `[B]`."""
        near = np.where(self.depths == 1, NEAR_LINEAR, NEAR)
        finite = np.isfinite(self.bends) & np.isfinite(self.distances) & (self.slopes > 0)
        return finite & (self.distances < near) & (self.bends > LEAST_BEND * self.outputs)

    @property
    def ranks(self) -> np.ndarray:
        """`bend * min(isolation / delta, 1)`, higher is better, float64 `[B]`."""
        return self.bends.astype(np.float64) * np.minimum(self.isolation / self.deltas, 1)


def search(
    graph: ChannelGraph,
    variables: Variables,
    key: jax.Array,
    layers: Sequence[HingeLayer],
    count: int,
    *,
    linear: Sequence[HingeLayer] = (),
    scale: float = 0.03,
    margin: float = 0.0,
    space: Space = "logits",
    progress: Progress | None = None,
) -> Hinges:
    """Searches for points on hinges of one depth; units are drawn uniformly over channels and locations.

    Args:
        graph: the model's channel graph.
        variables: its weights.
        key: draws units and starting points.
        layers: ReLUs of one depth.
        count: candidates; all are returned, usable or not.
        linear: ReLUs of units linear in the image, for the isolation; it is infinite without any.
        scale: largest change of a pixel within `delta`.
        margin: least distance of points from 0 and 1.
        space: in which second differences are measured.
        progress: called with the progress of each batch.

    Returns:
        `count` hinges.
    """
    key_units, key_points = jax.random.split(key)
    # Uniform over all units of all layers: a layer is drawn in proportion to its size.
    sizes = np.array([layer.units for layer in layers])
    drawn = np.asarray(jax.random.randint(key_units, (count,), 0, int(sizes.sum())))
    which = np.searchsorted(np.cumsum(sizes), drawn, side="right")
    units = np.stack([which, drawn - (np.cumsum(sizes) - sizes)[which]], axis=1).astype(np.int32)
    values = tuple(layer.value for layer in layers)
    straight = all(layer.is_linear for layer in layers)
    batch = int(np.clip(LARGEST_ARRAY // max(sizes.max(), *(layer.units for layer in linear), 1), 1, LARGEST_BATCH))
    # Batches of equal size, so that the last one is not padded more than needed.
    batch = -(-count // -(-count // batch))
    shape = graph.program.shapes[graph.program.images][1:]
    measurement = _Measurement(graph, values, tuple(layer.value for layer in linear), space)
    parts = []
    for start in range(0, count, batch):
        mine = np.resize(units[start : start + batch], (batch, 2))  # fills the last batch by repetition; cut below
        first = jax.random.uniform(
            jax.random.fold_in(key_points, start), (batch, *shape), minval=margin, maxval=1 - margin
        )
        step_fn = Partial(_Projection(graph, values, margin), variables, mine)
        points, _ = training.descend(step_fn, first, STEPS_LINEAR if straight else STEPS, progress=progress)
        parts.append(jax.device_get((points, *_measure(measurement, variables, mine, points, scale))))
    whole = [np.concatenate(column)[:count] for column in zip(*parts, strict=True)]
    return Hinges(*whole, depths=np.full(count, layers[0].depth, np.int32), units=units)


def preactivation(
    graph: ChannelGraph, values: Sequence[int], variables: Variables, units: jax.Array, points: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Pre-activation `z [B]` of one unit per point, and its gradient `[B, H, W, C]`.

    Args:
        graph: the model's channel graph.
        values: the ReLUs' inputs, in the graph's program.
        variables: the model's weights.
        units: int `[B, 2]`: index into `values`, and the unit.
        points: `[B, H, W, C]`.
    """

    def total(points: jax.Array) -> tuple[jax.Array, jax.Array]:
        own = jnp.zeros(len(points))
        for k, value in enumerate(_rows(graph, values, variables, points)):
            # For points of other ReLUs the unit may be out of range: NaN, and not used.
            entering = jnp.take_along_axis(value, units[:, 1:], axis=1)[:, 0]
            # Which layer a point belongs to is data: all layers are read, and one is chosen for each point.
            own = jnp.where(units[:, 0] == k, entering, own)
        return own.sum(), own

    # In evaluation mode an output depends on its own image only: the gradient of the sum holds every image's gradient.
    gradient, own = jax.grad(total, has_aux=True)(points)
    return own, gradient


def _rows(graph: ChannelGraph, values: Sequence[int], variables: Variables, points: jax.Array) -> list[jax.Array]:
    """Float32 `[B, units]` of each value."""
    found = activations(graph, variables, points, values)
    whole = (jnp.moveaxis(array, graph.batch_axes[value], 0) for value, array in zip(values, found, strict=True))
    return [array.reshape(len(points), -1).astype(jnp.float32) for array in whole]


@dataclass(frozen=True)
class _Projection:
    """One step of all candidates; a value, so that equal settings share a compiled program."""

    graph: ChannelGraph
    values: tuple[int, ...]
    margin: float

    def __call__(
        self, variables: Variables, units: jax.Array, points: jax.Array, index: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del index
        own, gradient = preactivation(self.graph, self.values, variables, units, points)
        squares = _dot(gradient, gradient)
        step = own / jnp.where(squares > 0, squares, 1)
        # Newton's step onto the hyperplane z = 0 of the present linear region, then back into the box.
        moved = jnp.clip(points - _along(step, gradient), self.margin, 1 - self.margin)
        return moved, {"distance": jnp.median(jnp.abs(step) * jnp.sqrt(squares))}


@dataclass(frozen=True)
class _Measurement:
    """Static settings of `_measure`; a value, so that equal settings share a compiled program."""

    graph: ChannelGraph
    values: tuple[int, ...]
    linear: tuple[int, ...]
    space: Space


@partial(programs.jit, static_argnums=0)
def _measure(
    of: _Measurement, variables: Variables, units: jax.Array, points: jax.Array, scale: float
) -> tuple[jax.Array, ...]:
    """Directions, deltas, slopes, distances, bends, norms of the outputs and isolation."""
    own, gradient = preactivation(of.graph, of.values, variables, units, points)
    slopes = jnp.sqrt(_dot(gradient, gradient))
    safe = jnp.where(slopes > 0, slopes, 1)
    directions = _along(1 / safe, gradient)
    largest = jnp.abs(directions).max(range(1, points.ndim))
    deltas = scale / jnp.where(largest > 0, largest, 1)

    def outputs(t: float) -> jax.Array:
        found = of.graph.apply_fn(variables, points + _along(t * deltas, directions))
        return to_space(found.reshape(len(points), -1), of.space)

    low, middle, high = (outputs(t) for t in (-1.0, 0.0, 1.0))
    # Differences of differences, in this order: each is small, so that float32 loses less than in f(+) - 2 f(0) +
    # f(-).
    bends = (high - middle) - (middle - low)
    norms = [jnp.linalg.norm(array, axis=-1) for array in (bends, middle)]
    found = isolation(of.graph, of.linear, variables, (points, directions), (of.values, units))
    return directions, deltas, slopes, jnp.abs(own) / safe, *norms, found


def isolation(
    graph: ChannelGraph,
    linear: Sequence[int],
    variables: Variables,
    lines: tuple[jax.Array, jax.Array],
    own: tuple[Sequence[int], jax.Array],
) -> jax.Array:
    """Distance along a line to the nearest switch of a unit that is linear in the image, `min |z_j / (dz_j / dt)|`.

    Args:
        graph: the model's channel graph.
        linear: the inputs of those units' ReLUs, in the graph's program.
        variables: the model's weights.
        lines: points and directions, both `[B, H, W, C]`.
        own: the units to leave out: values and `[B, 2]`, as for `preactivation`.

    Returns:
        `[B]`, infinite where no unit switches.
    """
    points, directions = lines
    found = jnp.full(len(points), jnp.inf)
    if not linear:
        return found
    entering = partial(_rows, graph, linear, variables)
    values, units = own
    for value, here, rate in zip(linear, *jax.jvp(entering, (points,), (directions,)), strict=True):
        distances = jnp.where(rate == 0, jnp.inf, jnp.abs(here / jnp.where(rate == 0, 1, rate)))
        if value in values:
            # The point lies on its own unit's hyperplane, at distance 0: it must not count as its own neighbour.
            mine = (units[:, :1] == values.index(value)) & (units[:, 1:] == jnp.arange(here.shape[1])[None])
            distances = jnp.where(mine, jnp.inf, distances)
        found = jnp.minimum(found, distances.min(1))
    return found


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return (a * b).sum(range(1, a.ndim))


def _along(lengths: jax.Array, directions: jax.Array) -> jax.Array:
    return lengths.reshape(-1, *[1] * (directions.ndim - 1)) * directions
