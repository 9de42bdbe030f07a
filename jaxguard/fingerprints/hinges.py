"""Points where one hidden unit of a ReLU network switches, found from the weights alone.

Across the hyperplane `z(x) = 0` of a unit the Jacobian of the outputs jumps by `a grad z^T`, where `a` is how the
outputs depend on the unit. With `u = grad z / ||grad z||` and no other unit switching within `delta` of x,

    f(x + delta u) - 2 f(x) + f(x - delta u) = delta ||grad z|| a.

A point is drawn uniformly in the box and projected onto the linearised hyperplane until it lies on it:
`x <- clip(x - z grad z / ||grad z||^2)`. `delta` is such that no pixel changes by more than `scale` within it, and the
box keeps so much distance from 0 and 1 that every query along u is an image; nothing is ever clipped there.
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

from jaxguard import training
from jaxguard.activations.layer_inputs import activations
from jaxguard.fingerprints.hinge_layers import HingeLayer
from jaxguard.fingerprints.protocol import Space
from jaxguard.fingerprints.spaces import to_space
from jaxguard.graph import ChannelGraph
from jaxguard.training import Progress
from jaxguard.types import Variables

STEPS_LINEAR, STEPS = 20, 60
"""Projections onto a hyperplane that is one everywhere, and onto one that bends with the layers before it."""

NEAR_LINEAR, NEAR = 1e-4, 1e-3
"""Distances to it, of one pixel's range, within which a point lies on such a hyperplane."""

LEAST_BEND = 1e-5
"""Second differences below this, relative to the outputs, drown in float32."""

LARGEST_ARRAY = 2**25
"""Numbers in the largest array of a batch of candidates."""

LARGEST_BATCH = 400


class Hinges(NamedTuple):
    """Points on hyperplanes of hidden units, `B` of them.

    Attributes:
        points: float32 `[B, H, W, C]`, each on the hyperplane of its unit, in [0, 1].
        directions: float32 `[B, H, W, C]`, the hyperplane's unit normal there.
        deltas: float32 `[B]`, half the width of the second difference.
        slopes: float32 `[B]`, `||grad z||`.
        distances: float32 `[B]`, `|z| / ||grad z||`, how far from its hyperplane a point is left.
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
        """Some of them, in the order of `index`."""
        return Hinges(*(part[index] for part in self))

    @property
    def usable(self) -> np.ndarray:
        """Whether each lies on its hyperplane and bends the outputs, bool `[B]`."""
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
    """Looks for points on hinges of one layer; units are drawn uniformly, channel and location alike.

    Args:
        graph: the model's channel graph.
        variables: its weights.
        key: draws units and starting points.
        layers: ReLUs of one depth.
        count: candidates; all are returned, whether usable or not.
        linear: ReLUs of units linear in the image, for the isolation; without any it is infinite.
        scale: largest change of a pixel within `delta`.
        margin: distance from 0 and 1 that points keep.
        space: in which second differences are measured.
        progress: told how far each batch of candidates is.

    Returns:
        `count` hinges.
    """
    key_units, key_points = jax.random.split(key)
    sizes = np.array([layer.units for layer in layers])
    drawn = np.asarray(jax.random.randint(key_units, (count,), 0, int(sizes.sum())))
    which = np.searchsorted(np.cumsum(sizes), drawn, side="right")
    units = np.stack([which, drawn - (np.cumsum(sizes) - sizes)[which]], axis=1).astype(np.int32)
    values = tuple(layer.value for layer in layers)
    straight = all(layer.is_linear for layer in layers)
    batch = int(np.clip(LARGEST_ARRAY // max(sizes.max(), *(layer.units for layer in linear), 1), 1, LARGEST_BATCH))
    batch = -(-count // -(-count // batch))
    shape = graph.program.shapes[graph.program.images][1:]
    measurement = _Measurement(graph, values, tuple(layer.value for layer in linear), space)
    parts = []
    for start in range(0, count, batch):
        mine = np.resize(units[start : start + batch], (batch, 2))  # the last batch repeats itself, and is cut below
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
    """What enters a unit of each point's own, and its gradient.

    Args:
        graph: the model's channel graph.
        values: what enters the ReLUs, in the graph's program.
        variables: the model's weights.
        units: int `[B, 2]`, number among `values`, and of the unit.
        points: `[B, H, W, C]`.

    Returns:
        `z [B]` and `grad z [B, H, W, C]`.
    """

    def total(points: jax.Array) -> tuple[jax.Array, jax.Array]:
        own = jnp.zeros(len(points))
        for k, value in enumerate(_rows(graph, values, variables, points)):
            entering = jnp.take_along_axis(value, units[:, 1:], axis=1)[:, 0]  # past the end for other ReLUs: not used
            own = jnp.where(units[:, 0] == k, entering, own)
        return own.sum(), own

    # Images do not see each other in evaluation mode, so the gradient of the sum is every image's own.
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
        moved = jnp.clip(points - _along(step, gradient), self.margin, 1 - self.margin)
        return moved, {"distance": jnp.median(jnp.abs(step) * jnp.sqrt(squares))}


@dataclass(frozen=True)
class _Measurement:
    """What is measured of candidates; a value, so that equal settings share a compiled program."""

    graph: ChannelGraph
    values: tuple[int, ...]
    linear: tuple[int, ...]
    space: Space


@partial(jax.jit, static_argnums=0)
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
        linear: what enters their ReLUs, in the graph's program.
        variables: the model's weights.
        lines: points and directions, both `[B, H, W, C]`.
        own: the units that do not count: values and `[B, 2]`, as for `preactivation`.

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
            mine = (units[:, :1] == values.index(value)) & (units[:, 1:] == jnp.arange(here.shape[1]))
            distances = jnp.where(mine, jnp.inf, distances)
        found = jnp.minimum(found, distances.min(1))
    return found


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return (a * b).sum(range(1, a.ndim))


def _along(lengths: jax.Array, directions: jax.Array) -> jax.Array:
    return lengths.reshape(-1, *[1] * (directions.ndim - 1)) * directions
