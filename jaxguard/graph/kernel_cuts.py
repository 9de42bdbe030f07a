"""Zeros in a kernel as the layer applies it, whatever leaves it is computed from; its bias and norm stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np

from jaxguard.errors import GraphError
from jaxguard.graph.channel_graph import ChannelGraph
from jaxguard.graph.cuts import Cut, draw, known, of_ways, refusal
from jaxguard.graph.groups import Member
from jaxguard.graph.primitives import Channels, row
from jaxguard.graph.zeroing import Term, Way

Scope = Literal["channels", "weights"]


def find_kernel_cut(graph: ChannelGraph, number: int, scope: Scope = "channels") -> Cut:
    """How parts of a kernel are set to zero; found once per kernel.

    Args:
        graph: the model's channel graph.
        number: of the producer.
        scope: whether the parts are whole output channels, or single weights in the order of `Producer.operand`.

    Returns:
        The cut.

    Raises:
        GraphError: no edit of the leaves sets these parts to zero, and nothing else.
    """
    return known(graph, (graph.first_uses[number], scope), lambda: _search(graph, number, scope))


def why_uncuttable(graph: ChannelGraph, number: int, scope: Scope = "channels") -> str | None:
    """Why parts of a kernel cannot be set to zero; None if they can."""
    try:
        find_kernel_cut(graph, number, scope)
    except GraphError as error:
        return str(error)
    return None


def is_zero_where_leaves_are(graph: ChannelGraph, number: int, places: Sequence[Member]) -> bool:
    """Whether zeros for channels of a group in the leaves are zeros in a kernel, and change nothing else in it.

    It is, where leaves are added, multiplied and moved; it is not behind zero points and norms of weights. Kernels
    that are computed are tried out on random leaves.

    Args:
        graph: the model's channel graph.
        number: of the producer.
        places: where the channels lie.
    """
    program, operand = graph.program, graph.producers[number].operand
    cone = program.cone(operand)
    if all(row(eqn).channels in (Channels.KEEPS, Channels.MOVES) for eqn in cone):
        return True
    leaves = program.leaves_under(operand)
    if leaves.keys().isdisjoint(place.path for place in places):
        return True
    with jax.ensure_compile_time_eval():
        known = {leaf: draw(program, leaf) for leaf in leaves.values()}
        edited = dict(known)
        for place in places:
            if place.path in leaves:
                leaf, half = leaves[place.path], place.positions[:, ::2].reshape(-1)
                edited[leaf] = edited[leaf].at[(slice(None),) * place.axis + (half,)].set(0)
        before, after = (np.asarray(program.evaluate(given, cone)[operand], np.float64) for given in (known, edited))
    return bool(np.all((after == 0) | np.isclose(after, before, rtol=1e-4, atol=0)))


def _search(graph: ChannelGraph, number: int, scope: Scope) -> Cut | str:
    producer = graph.producers[number]
    uses = [one for k, one in enumerate(graph.producers) if graph.first_uses[k] == graph.first_uses[number]]
    ways = [way for one in uses for way in graph.zeroing.ways(one.result, ())]
    if scope == "weights":
        every = tuple(range(len(graph.program.shapes[producer.operand])))
        ways = [Way(tuple(Term(term.value, every) for term in way.terms), way.readers) for way in ways]
    wanted = f"a kernel whose {scope} can be set to zero in its leaves, got {producer.name} at {producer.where}"
    return of_ways(graph, ways) or refusal(graph, wanted, ways)
