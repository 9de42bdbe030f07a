"""Feature maps at several depths of any network, in evaluation mode and while it is trained.

A map is what a layer reads, before any pooling, flattening or slicing on the way to it. In a network with spatial axes
the last map of each size is an end of a stage, or what a strided convolution inside a bottleneck reads, one layer
later; a perceptron or a transformer has one size only, and its maps lie at even distances. The layers of the
training-mode model are those of the evaluation-mode one, in the same order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxguard import training
from jaxguard.activations.layer_inputs import channel_axes, read_by
from jaxguard.errors import DefenseError
from jaxguard.graph import ChannelGraph, axes
from jaxguard.graph.primitives import Channels, makes_channels, row
from jaxguard.graph.program import Equation, Program, Value, is_key
from jaxguard.graph.ties import tie_program
from jaxguard.graph.tracing import trace
from jaxguard.types import TrainFn, Variables

PASSED = (Channels.KEEPS, Channels.MOVES, Channels.POOLS, Channels.MULTIPLIES, Channels.DIVIDES)
"""Primitives through which a map is sought backwards: pooling, and those that move or pick elements.

A product or quotient counts only where the other factor is no parameter, as in a mean.
"""


@dataclass(frozen=True)
class FeatureMap:
    """A value of a model, and what its axes are.

    Attributes:
        layer: name of the layer that reads it.
        value: its number in the program of the graph.
        order: number of that layer among all convolutions and products of the program.
        batch: axis of the images.
        channels: axes of the channels.
        shape: sizes of the other axes, the positions.
    """

    layer: str
    value: Value
    order: int
    batch: int
    channels: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def positions(self) -> int:
        """Number of positions."""
        return math.prod(self.shape)


def feature_maps(graph: ChannelGraph, depths: int = 3) -> tuple[FeatureMap, ...]:
    """The maps at the ends of the last stages, or at even distances where no size changes.

    Args:
        graph: the model's channel graph.
        depths: most maps.

    Returns:
        Maps in program order; fewer where there are not so many.
    """
    found = _all_maps(graph)
    if any(one.positions > 1 for one in found):  # squeezed channels and class tokens are no maps
        found = [one for one in found if one.positions > 1]
    # A stage is a run of maps of one size; its last map has seen the most of it.
    ends = [list(run)[-1] for _, run in itertools.groupby(found, key=lambda one: one.positions)]
    if len(ends) == 1:
        steps = range(1, depths + 1)
        ends = [found[k] for k in sorted({math.ceil(len(found) * step / depths) - 1 for step in steps})]
    return tuple(ends[-depths:])


def _all_maps(graph: ChannelGraph) -> list[FeatureMap]:
    """What the producers read, as far as it comes from another producer, each value once."""
    program, nodes = graph.program, tie_program(graph.program)
    made = program.dependents({producer.result for producer in graph.producers})
    orders = {id(eqn): k for k, eqn in enumerate(_linear_maps(program))}
    found: dict[Value, FeatureMap] = {}
    for producer in graph.producers:
        read = read_by(producer)
        value = _before_pooling(program, read)
        if value not in made or value in found or value not in graph.batch_axes:
            continue
        batch, shape = graph.batch_axes[value], program.shapes[value]
        # Atoms that the kernel sums over are channels; a convolution's window is not, although it is summed over too.
        summed = {
            atom
            for axis in channel_axes(producer)
            for atom, _ in axes.atoms(nodes[read][axis])
            if atom.size > 1 and atom.frozen != "window"
        }
        channels = tuple(
            axis
            for axis, node in enumerate(nodes[value])
            if axis != batch and any(atom in summed for atom, _ in axes.atoms(node))
        )
        rest = tuple(size for axis, size in enumerate(shape) if axis not in (batch, *channels))
        found[value] = FeatureMap(producer.name, value, orders[id(producer.equation)], batch, channels, rest)
    return list(found.values())


def _linear_maps(program: Program) -> list[Equation]:
    return [eqn for eqn in program.equations if makes_channels(eqn)]


def _before_pooling(program: Program, value: Value) -> Value:
    """The value that was pooled, flattened or sliced to give this one."""
    writers = {output: eqn for eqn in program.equations for output in eqn.outputs}
    moving, learned = program.dependents({program.images}), program.dependents(program.leaves)
    while (eqn := writers.get(value)) is not None and row(eqn).channels in PASSED:
        sources = [operand for operand in eqn.inputs if operand in moving]
        others = [operand for operand in eqn.inputs if operand not in moving]
        if len(sources) != 1 or learned.intersection(others):
            break
        (value,) = sources
    return value


def train_with_maps(
    train_fn: TrainFn, variables: Variables, images: jax.Array, maps: tuple[FeatureMap, ...]
) -> tuple[jax.Array, Any, list[jax.Array]]:
    """Runs the training-mode model and looks at its maps on the way.

    Args:
        train_fn: training-mode model.
        variables: its variables.
        images: `[B, ...]`.
        maps: of the evaluation-mode model.

    Returns:
        Logits, the other collections afterwards (None where there are none), and the maps.

    Raises:
        DefenseError: the layers of the model are others in training mode.
    """

    def outputs(variables: Variables, images: jax.Array) -> Any:
        logits, after = train_fn(variables, images)
        # Keys of random streams are no numbers that could lie beside others; they stay as they are.
        return logits, jax.tree.map(lambda leaf: None if is_key(leaf) else leaf, training.partition(after)[1])

    # A program has one result: everything end to end, taken apart again below.
    shapes = jax.eval_shape(outputs, variables, images)
    # Only the inverse is wanted: zeros of the right shapes give it without running the model.
    _, taken_apart = _end_to_end(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))
    program = trace(lambda *inputs: _end_to_end(outputs(*inputs))[0], variables, images)
    layers = _linear_maps(program)
    values = [_before_pooling(program, _image_side(program, layers, one.order)) for one in maps]
    known = {**dict(zip(program.leaves, jax.tree.leaves(variables), strict=True)), program.images: images}
    found = program.evaluate(known)
    logits, state = taken_apart(found[program.logits])
    if any(map(is_key, known.values())):
        before = training.partition(variables)[1]
        state = jax.tree.map(lambda old, new: old if is_key(old) else new, before, state)
    arrays = [found[value] for value in values]
    for one, array in zip(maps, arrays, strict=True):
        sizes = tuple(size for axis, size in enumerate(array.shape) if axis not in (one.batch, *one.channels))
        if sizes != one.shape or array.shape[one.batch] != len(images):
            raise DefenseError(
                f"expected the layers of apply_fn in train_fn, in the same order, got {array.shape} where "
                f"{one.layer} reads {one.shape} positions; give the same network in both modes"
            )
    return logits, state, arrays


def _end_to_end(tree: Any) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """All leaves as one vector, and what takes it apart again; counters lie beside floats as floats."""
    with jax.numpy_dtype_promotion("standard"):
        return ravel_pytree(tree)


def _image_side(program: Program, layers: list[Equation], order: int) -> Value:
    moving = program.dependents({program.images})
    sides = [value for value in layers[order].inputs if value in moving] if order < len(layers) else []
    if len(sides) != 1:
        raise DefenseError(
            f"expected the layers of apply_fn in train_fn, in the same order, got {len(layers)} convolutions and "
            f"products of which number {order} is no layer; give the same network in both modes"
        )
    return sides[0]


def attention(array: jax.Array, one: FeatureMap, power: float) -> jax.Array:
    """Attention of each image, `sum_c |F|^p` over the positions, of norm 1.

    Where there are no positions, each channel is one: `|F|^p`.

    Args:
        array: the map.
        one: what its axes are.
        power: `p`, >= 1.

    Returns:
        float32 `[B, positions]`, or `[B, C]`; zero for an image whose map is zero.

    Example:
        >>> one = FeatureMap("layer", 0, 0, batch=0, channels=(2,), shape=(2,))
        >>> attention(jnp.array([[[1.0, -1.0], [2.0, 0.0]]]), one, 1).tolist()  # sums 2 and 2
        [[0.7071..., 0.7071...]]
    """
    # In float32: powers of bfloat16 activations would leave few digits for the norm.
    strength = jnp.abs(array.astype(jnp.float32)) ** power
    if one.positions > 1:
        strength = strength.sum(one.channels, keepdims=True)
    rows = jnp.moveaxis(strength, one.batch, 0).reshape(array.shape[one.batch], -1)
    # Added inside the root: the gradient of a plain norm is NaN at an image without any attention.
    return rows / jnp.sqrt(jnp.square(rows).sum(1, keepdims=True) + 1e-12)
