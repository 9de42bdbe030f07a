"""Fusion of two models into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import programs
from jaxguard.errors import GraphError
from jaxguard.fusion.alignment import Alignment, align, transported
from jaxguard.fusion.channels import Chain, Channels, find_channels, masses_of
from jaxguard.graph import ChannelGraph
from jaxguard.graph.program import leaf_paths
from jaxguard.kernels.transport import Solver
from jaxguard.types import Network, Variables


class Fused(NamedTuple):
    """A fused model.

    Attributes:
        network: with the second one's structure, shapes and dtypes.
        alignments: of the first one's channels, in program order.
    """

    network: Network
    alignments: tuple[Alignment, ...]


def fuse(
    a: Network,
    b: Network,
    *,
    weight: float = 0.5,
    source: Mapping[str, np.ndarray] | None = None,
    target: Mapping[str, np.ndarray] | None = None,
    chain: Chain = "dataflow",
    layers: Sequence[str] | None = None,
    cost_on_transported: bool = True,
    canonical: bool = True,
    sweeps: int = 3,
    solver: Solver = "exact",
    **settings: Any,
) -> Fused:
    """Transports the channels of network `a` to those of `b` and averages: `weight a' + (1 - weight) b`.

    Args:
        a: the network to transport.
        b: the network whose order of channels is kept, of the same architecture.
        weight: of `a`, in [0, 1].
        source: producer name -> `[C]` masses of `a`'s channels; uniform by default.
        target: producer name -> `[C]` masses of `b`'s channels; a channel of large mass becomes a mixture of many.
        chain: `dataflow`: one map per group of the graph, applied in all its places, biases and norms included, and
            every leaf is averaged. `parameter_order`: maps pass from each layer to the next in a list; only the
            kernels of the list are averaged, and all else is `b`'s, as in the OTBR reference.
        layers: names of the list's layers, by default all convolutions except shortcuts, by name.
        cost_on_transported: whether to transport a layer's inputs before comparing its channels. The OTBR reference
            does not: the channels of its two models are in one order.
        canonical: whether equal channels get equal treatment; otherwise the optimal plan is not unique.
        sweeps: over the sets of channels, if residual sums leave layers out in the first one.
        solver: see `jaxguard.kernels.transport.solve`.
        **settings: of the solver.

    Returns:
        The fused model, and the alignment of each set of channels.

    Raises:
        GraphError: the models differ in leaves or shapes, masses do not fit, or the chain is unknown.
        ValueError: a setting of the solver, or a weight outside [0, 1].

    Example:
        >>> mlp = lambda v, x: jax.nn.relu(x @ v["w1"]) @ v["w2"]
        >>> v = {"w1": jnp.array([[1.0, 0.0], [0.0, 2.0]]), "w2": jnp.array([[3.0], [4.0]])}
        >>> a = Network(v, mlp, (2,))
        >>> b = a.with_variables({"w1": v["w1"][:, ::-1], "w2": v["w2"][::-1]})  # its channels swapped
        >>> fuse(a, b).network.variables["w1"].tolist()
        [[0.0, 1.0], [2.0, 0.0]]
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"expected a weight in [0, 1], got {weight} in fuse(); 0.5 averages")
    graph = b.graph
    channels = find_channels(graph, chain, layers)
    leaves = [leaves_by_path(graph, network.variables) for network in (a, b)]
    for path, leaf in leaves[0].items():
        if np.shape(leaf) != np.shape(leaves[1][path]):
            raise GraphError(
                f"expected two models of one architecture, got shapes {np.shape(leaf)} and "
                f"{np.shape(leaves[1][path])} for leaf '{path}'"
            )
    masses = [[masses_of(graph, one, given or {}) for one in channels] for given in (source, target)]
    (alignments,) = align(
        channels,
        leaves[:1],
        leaves[1],
        source_masses=masses[0],
        target_masses=masses[1],
        cost_on_transported=cost_on_transported,
        canonical=canonical,
        sweeps=sweeps,
        solver=solver,
        **settings,
    )
    kept = None if chain == "dataflow" else {one.rows[0].kernel.path for one in channels}
    fused = blend(channels, alignments, a.variables, b.variables, weight=weight, paths=kept)
    return Fused(b.with_variables(fused), tuple(alignments[number] for number in range(len(channels))))


def blend(
    channels: Sequence[Channels],
    alignments: Mapping[int, Alignment],
    variables_a: Variables,
    variables_b: Variables,
    *,
    weight: float,
    paths: set[str] | None = None,
) -> Any:
    """Transports `a` and averages it with `b`, leaf by leaf; integers, such as step counters, remain `b`'s.

    Args:
        channels: sets of channels.
        alignments: index of the set -> its alignment.
        variables_a: the model to transport.
        variables_b: the other model.
        weight: of `a`.
        paths: of the leaves to average, None for all; the others remain `b`'s.

    Returns:
        Variables with `b`'s structure, shapes and dtypes.
    """
    places: dict[str, list[Any]] = {}
    for number, alignment in alignments.items():
        for member in channels[number].members:
            places.setdefault(member.path, []).append((member, alignment))
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, variables_b))
    fused = []
    for path, a, b in zip(leaf_paths(variables_b), jax.tree.leaves(variables_a), leaves, strict=True):
        if (paths is not None and path not in paths) or not jnp.issubdtype(b.dtype, jnp.inexact):
            fused.append(b)
            continue
        fused.append(_average(transported(jnp.asarray(a), places.get(path, ())), b, weight))
    return jax.tree.unflatten(structure, fused)


@programs.jit
def _average(a: jax.Array, b: jax.Array, weight: float) -> jax.Array:
    return (weight * a.astype(jnp.float32) + (1 - weight) * b.astype(jnp.float32)).astype(b.dtype)


def leaves_by_path(graph: ChannelGraph, variables: Variables) -> dict[str, jax.Array]:
    """Leaf path -> array, as `align` takes it.

    Raises:
        GraphError: the variables do not have the structure that the graph was derived from.
    """
    known = graph.leaves(graph.program, variables)
    return {path: known[leaf] for path, leaf in zip(graph.program.paths, graph.program.leaves, strict=True)}
