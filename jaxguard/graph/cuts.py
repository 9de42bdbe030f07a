"""Cuts: edits of the leaves that do what a gate of 0 does, and how they are made sure of.

A layer's kernel may be computed from several leaves (low-rank adapters, weight norm, quantised weights, masks), so that
zero in one of them is not zero in the kernel. A cut is a set of leaf slices. Where a leaf is only moved and multiplied
on its way into the layer, the program itself proves the cut; anything else is tried out on random leaves: the terms
have to be exactly zero in the channels that are cut, and all that the images meet the same as before elsewhere. This
depends on the program alone, so it is done once per layer, under a trace too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard.errors import GraphError
from jaxguard.graph.channel_graph import ChannelGraph
from jaxguard.graph.pairing import Layer
from jaxguard.graph.primitives import Channels, Form, row
from jaxguard.graph.program import Equation, Program, Value
from jaxguard.graph.views import LeafView, find_view, laid_out
from jaxguard.graph.zeroing import Proposal, Term, Way

MAX_TRIALS = 24


class Part(NamedTuple):
    """Channels of a leaf, and the value of the program that they are set to; None for zero."""

    view: LeafView
    fill: Value | None = None


@dataclass(frozen=True)
class Cut:
    """What a gate of 0 is in the leaves.

    Attributes:
        parts: what is set, and to what.
        is_linear: whether multiplying the channels of all parts by a number multiplies the layer's output by it.
    """

    parts: tuple[Part, ...]
    is_linear: bool


def find_cut(graph: ChannelGraph, layer: Layer) -> Cut:
    """How the channels of a layer are cut; found once per layer.

    Args:
        graph: the model's channel graph.
        layer: of `jaxguard.graph.pairing`.

    Returns:
        The cut.

    Raises:
        GraphError: no edit of the leaves does what a gate of 0 does.
    """
    return known(graph, layer, lambda: _search(graph, layer))


def known(graph: ChannelGraph, key: Any, search: Callable[[], Cut | str]) -> Cut:
    """What a search found when it was first asked for.

    Raises:
        GraphError: nothing; the search says why.
    """
    if key not in graph.known_cuts:
        graph.known_cuts[key] = search()
    found = graph.known_cuts[key]
    if isinstance(found, str):
        raise GraphError(found)
    return found


def why_uncuttable(graph: ChannelGraph, layer: Layer) -> str | None:
    """Why the channels of a layer cannot be cut; None if they can."""
    try:
        find_cut(graph, layer)
    except GraphError as error:
        return str(error)
    return None


def _search(graph: ChannelGraph, layer: Layer) -> Cut | str:
    zeroing = graph.zeroing
    if layer.affine is None:
        uses = [graph.producers[number] for number in layer.uses]
        ends = [(use.gate, use.gate_axes) for use in uses]
    else:
        uses = [graph.affines[number] for number in layer.uses]
        ends = [(use.end, use.begin_axes) for use in uses]
    # All uses apply the same weights, so that a way for one is a way for the others.
    for ways in zip(*(zeroing.ways(*end) for end in ends), strict=False):
        found = of_ways(graph, ways)
        if found is not None:
            return found
    ways = [way for end in ends for way in zeroing.ways(*end)]
    wanted = f"a layer whose channels can be set to zero in its leaves, got {layer.name} at {uses[0].where}"
    return refusal(graph, wanted, ways, "gate them with ChannelGraph.run, or ")


def refusal(graph: ChannelGraph, wanted: str, ways: Sequence[Way], otherwise: str = "") -> str:
    """Why there is no cut, for an error."""
    functions = {name for way in ways for name in _between(graph, way)}
    uses = set() if functions else _other_uses(graph, ways)
    why = (
        f"where {', '.join(sorted(functions)) or 'the arithmetic behind it'} stands between the leaves and the channels"
    )
    if uses:
        why = f"whose leaves are read elsewhere too: {', '.join(sorted(uses))}"
    return f"expected {wanted}, {why}; {otherwise}store the kernel as it is applied"


def _between(graph: ChannelGraph, way: Way) -> set[str]:
    """The functions that stand between leaves and terms."""
    cone = graph.program.cone(*(term.value for term in way.terms))
    ends = (eqn for eqn in cone if row(eqn).channels in (Channels.ENDS, Channels.POOLS))
    return {f"`{eqn.params.get('name', eqn.name)}` at {eqn.where}" for eqn in ends}


def _other_uses(graph: ChannelGraph, ways: Sequence[Way]) -> set[str]:
    """Who else meets the images with the leaves, such as the first step of a recurrent layer, whose state is zero."""
    program, zeroing = graph.program, graph.zeroing
    readers = frozenset().union(*(way.readers for way in ways))
    leaves = program.leaves_under(*(term.value for way in ways for term in way.terms))
    met = [eqn for eqn in program.equations if eqn not in readers and zeroing.moving.intersection(eqn.outputs)]
    found = set[str]()
    for path, leaf in leaves.items():
        derived = program.dependents({leaf}) - zeroing.moving
        others = (eqn for eqn in met if derived.intersection(eqn.inputs))
        found |= {f"{path} by `{eqn.name}` at {eqn.where}" for eqn in others}
    return found


def of_ways(graph: ChannelGraph, ways: Sequence[Way]) -> Cut | None:
    """The cut that takes one way for every use of a layer; None if no edit of the leaves does."""
    terms = {term for way in ways for term in way.terms}
    readers = frozenset().union(*(way.readers for way in ways))
    # Equal computations have equal proposals: every step of a loop reads the same kernel.
    groups = {(graph.expressions[term.value], term.axes): term for term in terms}
    proposed = [graph.zeroing.proposals(term.value) for term in groups.values()]
    if any(np.prod([graph.program.shapes[term.value][k] for k in term.axes]) < 1 for term in groups.values()):
        return None
    choices = itertools.islice(itertools.product(*proposed), 256)
    tried: dict[Proposal, tuple[Part, ...]] = {}
    for choice in sorted(choices, key=lambda choice: _preference(graph.program, frozenset().union(*choice))):
        union: Proposal = frozenset().union(*choice)
        if union in tried:
            continue
        tried[union] = _parts(graph, list(groups.values()), choice) or ()
        if len(tried) == MAX_TRIALS:
            break
    candidates = list(filter(None, tried.values()))
    # What the program proves comes first: a trial evaluates, and may compile, the equations before the layer.
    for check in (_proved, _tried):
        for parts in candidates:
            found = check(graph, parts, terms, readers)
            if found is not None:
                return found
    return None


def _preference(program: Program, proposal: Proposal) -> tuple[Any, ...]:
    """Zeros before other values, numbers that a method may descend before quantised ones, few leaves before many."""
    dtypes = [program.dtypes[setting.leaf] for setting in proposal]
    is_quantised = not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes)
    return any(setting.fill is not None for setting in proposal), is_quantised, len(proposal)


def _parts(graph: ChannelGraph, terms: Sequence[Term], choice: Sequence[Proposal]) -> tuple[Part, ...] | None:
    """Where the channels of the terms lie in the leaves; None if that is no one run of each."""
    found: dict[Value, Part] = {}
    for term, proposal in zip(terms, choice, strict=True):
        for leaf, fill in proposal:
            view = find_view(graph.program, leaf, term.value, term.axes)
            if view is None or found.setdefault(leaf, Part(view, fill)) != Part(view, fill):
                return None
    return tuple(found[leaf] for leaf in sorted(found))


def _by_leaf(program: Program, parts: Sequence[Part]) -> dict[Value, Part]:
    return {program.leaves[program.paths.index(part.view.path)]: part for part in parts}


def _is_floating(program: Program, leaves: Iterable[Value]) -> bool:
    return all(jnp.issubdtype(program.dtypes[leaf], jnp.floating) for leaf in leaves)


def _proved(
    graph: ChannelGraph, parts: tuple[Part, ...], terms: Collection[Term], readers: frozenset[Equation]
) -> Cut | None:
    leaves = _by_leaf(graph.program, parts)
    if not _is_proved(graph, leaves, {term.value for term in terms}, readers):
        return None
    return Cut(parts, _is_floating(graph.program, leaves))


def _tried(
    graph: ChannelGraph, parts: tuple[Part, ...], terms: Collection[Term], readers: frozenset[Equation]
) -> Cut | None:
    leaves = _by_leaf(graph.program, parts)
    trial = _Trial(graph, leaves, terms, readers)
    if not trial.holds(0.0):
        return None
    return Cut(parts, _is_floating(graph.program, leaves) and trial.holds(0.5))


def _is_proved(
    graph: ChannelGraph, leaves: Mapping[Value, Part], terms: set[Value], readers: frozenset[Equation]
) -> bool:
    """Whether the leaves are only moved and multiplied by what does not depend on them, and nothing else reads them."""
    if any(part.fill is not None for part in leaves.values()):
        return False
    derived, reached = set(leaves), set[Value]()
    for eqn in graph.program.equations:
        read = derived.intersection(eqn.inputs)
        if not read:
            continue
        if eqn in readers:
            if not read <= terms:
                return False
            reached |= read
            continue
        channels, form = row(eqn).channels, row(eqn).form
        if graph.zeroing.moving.intersection(eqn.outputs) or sum(v in derived for v in eqn.inputs) != 1 or eqn.body:
            return False
        (value,) = read
        if value in leaves and _reads_elsewhere(eqn, leaves[value].view):
            continue
        is_move = channels is Channels.KEEPS or (channels in (Channels.MOVES, Channels.SPREADS) and form is Form.LINEAR)
        is_factor = channels is Channels.MULTIPLIES or (channels is Channels.DIVIDES and value == eqn.inputs[0])
        if not (is_move or is_factor):
            return False
        derived.update(eqn.outputs)
    return reached == terms


def _reads_elsewhere(eqn: Equation, view: LeafView) -> bool:
    """Whether an equation takes a slice of a leaf beside the run that a cut changes."""
    if "start_indices" not in eqn.params or len(eqn.inputs) != 1:
        return False
    runs = zip(eqn.params["start_indices"], eqn.params["limit_indices"], view.index, strict=True)
    return any(stop <= run.start or start >= run.stop for start, stop, run in runs)


class _Trial:
    """A cut of random leaves, and all values that do not depend on the images and are read with what does."""

    def __init__(
        self,
        graph: ChannelGraph,
        leaves: Mapping[Value, Part],
        terms: Collection[Term],
        readers: frozenset[Equation],
    ):
        program, zeroing = graph.program, graph.zeroing
        self.program, self.parts = program, leaves
        affected = program.dependents(leaves) - zeroing.moving

        def met_by(value: Value) -> list[Equation]:
            return [eqn for eqn in zeroing.consumers[value] if zeroing.moving.intersection(eqn.outputs)]

        met = {value for value in affected if met_by(value)}
        # A term that something else meets the images with has to stay as it was.
        self.terms = {term.value: term for term in terms if readers.issuperset(met_by(term.value))}
        self.met = sorted(met | {term.value for term in terms})
        self.is_complete = len(self.terms) == len({term.value for term in terms})
        fills = {part.fill for part in leaves.values() if part.fill is not None}
        self.equations = program.cone(*self.met, *fills)
        self.fill_equations = program.cone(*fills)
        read = {v for eqn in self.equations for v in eqn.inputs} | set(leaves) | fills
        exact = {v for eqn in self.fill_equations for v in eqn.inputs} | fills
        with jax.ensure_compile_time_eval():
            self.known = {v: draw(program, v, is_whole=v in exact) for v in program.leaves if v in read}
            self.before = program.evaluate(self.known, self.equations)

    def holds(self, factor: float) -> bool:
        """Whether the terms are multiplied by a factor in every other channel, and nothing else changes."""
        sizes = [part.view.shape for part in self.parts.values()]
        channels = int(np.prod(sizes[0]))
        even = np.arange(channels) % 2 == 0
        with jax.ensure_compile_time_eval():
            return self.is_complete and all(self._holds(mask, factor) for mask in (even, ~even) if mask.any())

    def _holds(self, mask: np.ndarray, factor: float) -> bool:
        factors = jnp.where(mask, factor, 1.0)
        edited = dict(self.known)
        for leaf, (view, fill) in self.parts.items():
            run = self.known[leaf][view.index]
            other = run * factor if fill is None else self.before[fill].reshape(())
            chosen = laid_out(jnp.asarray(mask), view.axes, view.shape, run.ndim)
            edited[leaf] = self.known[leaf].at[view.index].set(jnp.where(chosen, other, run).astype(run.dtype))
        after = self.program.evaluate(edited, self.equations)
        for value in self.met:
            is_complex = jnp.issubdtype(self.program.dtypes[value], jnp.complexfloating)
            wide = np.complex128 if is_complex else np.float64
            expected, got = (np.asarray(array[value]).astype(wide) for array in (self.before, after))
            if value in self.terms:
                axes = self.terms[value].axes
                expected = expected * np.asarray(
                    laid_out(factors, axes, [expected.shape[k] for k in axes], expected.ndim), np.float64
                )
            is_zero = expected == 0
            if not np.isfinite(got).all() or (got[is_zero] != 0).any() or not np.allclose(got, expected, rtol=1e-4):
                return False
        return True


def draw(program: Program, leaf: Value, *, is_whole: bool = False) -> jax.Array:
    """A random leaf, positive, since some are variances; whole numbers where others are set to them."""
    shape, dtype = program.shapes[leaf], program.dtypes[leaf]
    rng = np.random.default_rng(leaf)
    if jnp.issubdtype(dtype, jnp.floating) and not is_whole:
        return jnp.asarray(rng.uniform(0.5, 1.5, shape), dtype)
    return jnp.asarray(rng.integers(1, 2 if dtype == jnp.bool_ else 6, shape), dtype)
