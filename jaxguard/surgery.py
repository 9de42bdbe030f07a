"""Edits of a model's variables by channel: permute a group, cut channels. Pure; other leaves are passed on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard.errors import GraphError
from jaxguard.graph import ChannelGraph, Group, LeafView, cuts, kernel_cuts
from jaxguard.graph.channels import kernel_matrix
from jaxguard.graph.pairing import Layer
from jaxguard.graph.program import leaf_paths
from jaxguard.graph.views import laid_out
from jaxguard.types import Variables

Edit = Callable[[jax.Array], jax.Array]


def edit(variables: Variables, edits: Mapping[str, Edit]) -> Any:
    """Apply functions to leaves by path, keeping shapes and dtypes.

    Args:
        variables: pytree of arrays; not modified.
        edits: leaf path -> `leaf -> leaf`.

    Returns:
        A tree of the same structure.

    Raises:
        GraphError: a path is not in the tree.
    """
    paths = leaf_paths(variables)
    missing = sorted(edits.keys() - set(paths))
    if missing:
        raise GraphError(f"expected leaves {missing[:3]} among the variables, got {list(paths)[:3]}, ...")
    leaves, structure = jax.tree.flatten(variables)
    edited = [edits[path](leaf) if path in edits else leaf for path, leaf in zip(paths, leaves, strict=True)]
    return jax.tree.unflatten(structure, edited)


def permute(variables: Variables, group: Group, permutation: np.ndarray) -> Any:
    """Reorder a group's channels wherever they lie; the model's function is unchanged if the group is permutable.

    Args:
        variables: pytree of arrays.
        group: of the model's channel graph.
        permutation: `[C]` int; new channel `c` is old channel `permutation[c]`.

    Returns:
        The permuted variables.

    Raises:
        GraphError: the group's order matters, or `permutation` is none of its channels.

    Example:
        >>> from jaxguard.graph import channel_graph
        >>> mlp = lambda v, x: jax.nn.relu(x @ v["w1"]) @ v["w2"]
        >>> v = {"w1": jnp.arange(6.0).reshape(2, 3), "w2": jnp.ones((3, 2))}
        >>> graph = channel_graph(mlp, v, jnp.ones((1, 2)))
        >>> (group,) = [group for group in graph.groups if group.permutable]
        >>> permute(v, group, np.array([2, 0, 1]))["w1"][0].tolist()
        [2.0, 0.0, 1.0]
    """
    if not group.permutable:
        raise GraphError(f"expected a permutable group, got {group.name}, whose order matters: {group.frozen}")
    permutation = np.asarray(permutation)
    if permutation.shape != (group.size,) or not np.array_equal(np.sort(permutation), np.arange(group.size)):
        raise GraphError(f"expected a permutation of the {group.size} channels of {group.name}, got {permutation}")
    for member in group.members:
        positions, axis = member.positions, member.axis

        def reorder(leaf: jax.Array, positions: np.ndarray = positions, axis: int = axis) -> jax.Array:
            order = np.arange(leaf.shape[axis])
            order[positions] = positions[:, permutation]
            return jnp.take(leaf, order, axis=axis)

        variables = edit(variables, {member.path: reorder})
    return variables


def zero(view: LeafView, mask: jax.Array) -> Edit:
    """Edit that sets the masked channels of a leaf to zero.

    Args:
        view: where the channels lie.
        mask: `[C]` bool, True where the channel is zeroed.

    Returns:
        `leaf -> leaf`, for `edit`.
    """
    return _edited(view, mask, lambda run, masked: jnp.where(masked, 0, run))


def scale(view: LeafView, factor: jax.Array) -> Edit:
    """Edit that multiplies the channels of a leaf.

    Args:
        view: where the channels lie.
        factor: `[C]`.

    Returns:
        `leaf -> leaf`, for `edit`.
    """
    return _edited(view, factor, lambda run, factors: run * factors.astype(run.dtype))


def _edited(view: LeafView, per_channel: jax.Array, change: Callable[[jax.Array, jax.Array], jax.Array]) -> Edit:
    """Edit that changes a leaf's channels by one value each, `[C]`, laid out as the channels are."""

    def apply(leaf: jax.Array) -> jax.Array:
        leaf = jnp.asarray(leaf)
        in_leaf_order = laid_out(jnp.asarray(per_channel), view.axes, view.shape, leaf.ndim)
        return leaf.at[view.index].set(change(leaf[view.index], in_leaf_order).astype(leaf.dtype))

    return apply


def cut(graph: ChannelGraph, variables: Variables, layer: Layer, mask: np.ndarray | jax.Array) -> Any:
    """Make the masked channels of a layer zero, as a gate of 0 behind its bias and norm does.

    The leaves are those of `jaxguard.graph.cuts`: the BatchNorm's scale and bias, or else the kernel's and its bias,
    and whatever else the kernel is computed from.

    Args:
        graph: the model's channel graph.
        variables: its variables; not modified.
        layer: of `jaxguard.graph.pairing.layers`.
        mask: `[C]` bool.

    Returns:
        The edited variables.

    Raises:
        GraphError: no edit of the leaves does what a gate of 0 does.
    """
    return _cut(graph, variables, cuts.find_cut(graph, layer), mask)


def cut_kernel(graph: ChannelGraph, variables: Variables, number: int, mask: np.ndarray | jax.Array) -> Any:
    """Make the kernel of the masked channels zero, as the layer applies it; its bias and norm stay.

    Args:
        graph: the model's channel graph.
        variables: its variables; not modified.
        number: of the producer.
        mask: `[C]` bool.

    Returns:
        The edited variables.

    Raises:
        GraphError: no edit of the leaves does that, and nothing else.
    """
    return _cut(graph, variables, kernel_cuts.find_kernel_cut(graph, number), mask)


def zero_weights(graph: ChannelGraph, variables: Variables, number: int, mask: np.ndarray) -> Any:
    """Make single weights of a kernel zero, as the layer applies it.

    Args:
        graph: the model's channel graph.
        variables: its variables; not modified.
        number: of the producer.
        mask: `[C, T * D]` bool, the weights of a channel as `ChannelGraph.kernels` gives them.

    Returns:
        The edited variables.

    Raises:
        GraphError: no edit of the leaves does that, and nothing else.
    """
    found, producer = kernel_cuts.find_kernel_cut(graph, number, "weights"), graph.producers[number]
    shape = graph.program.shapes[producer.operand]
    # Where each weight of [C, T, D] lies in the kernel as it is applied, whose order the cut knows.
    places = np.asarray(kernel_matrix(producer, jnp.arange(mask.size).reshape(shape)))
    chosen = np.zeros(mask.size, bool)
    chosen[places.reshape(-1)] = mask.reshape(-1)
    return _cut(graph, variables, found, chosen)


def _cut(graph: ChannelGraph, variables: Variables, found: cuts.Cut, mask: np.ndarray | jax.Array) -> Any:
    mask = jnp.asarray(mask)
    edits = {part.view.path: zero(part.view, mask) for part in found.parts if part.fill is None}
    known = graph.leaves(graph.program, variables)
    for part in found.parts:
        if part.fill is not None:
            point = graph.program.evaluate(known, graph.program.cone(part.fill))[part.fill].reshape(())
            edits[part.view.path] = _edited(part.view, mask, functools.partial(_replace, point))
    return edit(variables, edits)


def _replace(point: jax.Array, run: jax.Array, masked: jax.Array) -> jax.Array:
    return jnp.where(masked, point.astype(run.dtype), run)
