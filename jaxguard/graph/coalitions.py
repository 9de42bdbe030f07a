"""A model under many sets of gates at once, each computed only where it differs from the one before.

Removing one channel leaves everything in front of it as it was. `Coalitions` cuts the program behind every gated
producer; in a stack of gate vectors, those that agree with their predecessor up to a cut share its activations there.
A cut thus has as many *versions* as there are different beginnings, and only these are computed: a channel of the last
layer costs a pooling and a product, not a forward pass. Gates multiply activations, so `fold` versions go through a
segment as one batch, one large convolution; weights are never stacked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import execution
from jaxguard.errors import GraphError
from jaxguard.graph import native_layout
from jaxguard.graph.channel_graph import ChannelGraph, State, broadcast_gate
from jaxguard.graph.channels import Producer
from jaxguard.graph.program import Value, Variables
from jaxguard.graph.segments import Place, Segment, cut, image_free


class _Versions(NamedTuple):
    """Which of `B` coalitions share their activations at a cut.

    Attributes:
        of: `[B]` version of each coalition.
        first: `[B]` the first coalition of each version, the last one repeated behind them.
        total: number of versions.
        new: `[B]` bool, whether a coalition is the first of its version.
    """

    of: jax.Array
    first: jax.Array
    total: jax.Array
    new: jax.Array


class _Stack(NamedTuple):
    """An array in all its versions.

    Attributes:
        array: `[V, ...]`.
        versions: which of them each coalition has; None if there is one for all.
    """

    array: jax.Array
    versions: _Versions | None = None

    def merged(self, rows: jax.Array, axis: int) -> jax.Array:
        """The arrays of some coalitions, side by side along the batch axis."""
        chosen = self.array[jnp.zeros_like(rows) if self.versions is None else self.versions.of[rows]]
        # [rows, ..., M, ...] with rows moved beside the batch axis M becomes [..., rows * M, ...].
        shape = [size * len(rows) if k == axis else size for k, size in enumerate(self.array.shape[1:])]
        return jnp.moveaxis(chosen, 0, axis).reshape(shape)


_Stacks = dict[Place, _Stack]


class _Run:
    """Runs segments for `fold` versions at a time."""

    def __init__(self, graph: ChannelGraph, variables: Variables, images: jax.ShapeDtypeStruct, fold: int):
        self.fold, self.num_images = fold, images.shape[0]
        self.shapes = graph.program_at(images).shapes
        self.program = graph.program_at(jax.ShapeDtypeStruct((fold * images.shape[0], *images.shape[1:]), images.dtype))
        # What does not depend on the images, such as a standardised kernel, is the same in every coalition.
        self.known = self.program.evaluate(graph.leaves(self.program, variables), image_free(self.program))
        self.batch_axes = graph.batch_axes

    def __call__(
        self, producer: Producer, segment: Segment, inputs: Mapping[Value, jax.Array], gate: jax.Array
    ) -> Mapping[Value, jax.Array]:
        """All values of a segment; `gate` is `[C]`, or `[fold * M, C]`."""
        opened = inputs[producer.gate]
        gated = opened * broadcast_gate(producer, self.batch_axes.get(producer.gate), gate, opened)
        equations = [self.program.equations[k] for k in segment.equations]
        # Segments run in loops, where XLA would compute convolutions of other layouts slowly.
        return self.program.evaluate(
            {**self.known, **inputs, producer.gate: gated}, equations, apply_fn=native_layout.apply_in_loop
        )


class Coalitions:
    """A model's producers as players of one game; see the module.

    Players are numbered producer by producer, in the order of `producers`, and within a producer by channel.

    Args:
        graph: of the model.
        producers: names of the producers whose channels play, in any order; by default all but those that make the
            logits.
        fold: versions that go through a segment together, one number for each of `producers` in program order, or one
            for all; by default as many as are worth it, see `folds`. Where an array has no axis for the images alone,
            or an equation mixes images or may do so, versions go one by one in any case.

    Attributes:
        graph: as given.
        producers: in the order of their gates.
        players: number of channels `N`.
        offsets: first player of each producer, and `N`.

    Raises:
        GraphError: no producer, an unknown one, or one that makes the logits.

    Example:
        >>> from jaxguard.graph import channel_graph
        >>> mlp = lambda v, x: jax.nn.relu(x @ v["w1"]) @ v["w2"]
        >>> v = {"w1": jnp.array([[1.0, 2.0, 3.0]]), "w2": jnp.ones((3, 1))}
        >>> game = Coalitions(channel_graph(mlp, v, jnp.ones((1, 1))))
        >>> start = game.start(v, jnp.ones((1, 1)))
        >>> game.logits(v, start, jnp.array([[1, 1, 1], [0, 1, 1], [0, 1, 0]]))[:, 0, 0].tolist()
        [6.0, 5.0, 2.0]
    """

    def __init__(
        self, graph: ChannelGraph, producers: Sequence[str] | None = None, *, fold: int | Sequence[int] | None = None
    ):
        outputs = [graph.producers[k].name for k in sorted(graph.outputs)]
        if producers is None:
            chosen = [producer for producer in graph.producers if producer.name not in outputs]
        else:
            chosen = [graph.producer(name) for name in dict.fromkeys(producers)]
        if not chosen or any(producer.name in outputs for producer in chosen):
            raise GraphError(
                f"expected producers whose channels can be gated, got {list(producers or ())}; those of the logits, "
                f"{', '.join(outputs)}, cannot"
            )
        written = {value: k for k, eqn in enumerate(graph.program.equations) for value in eqn.outputs}
        self.graph = graph
        # In program order: a cut behind an earlier gate must come before one behind a later gate.
        self.producers = tuple(sorted(chosen, key=lambda producer: written[producer.gate]))
        self.offsets = tuple(np.cumsum([0, *(producer.channels for producer in self.producers)]).tolist())
        self.players = self.offsets[-1]
        starts = [written[producer.gate] + 1 for producer in self.producers]
        self._first = starts[0]
        self._segments = cut(graph.program, starts)
        self._logits = next(
            (k, graph.program.logits) for k, own in enumerate(self._segments) if graph.program.logits in own.writes
        )
        # Decided here, not while `logits` is traced.
        self._most, self._room = execution.coalitions_abreast(), execution.search_bytes()
        self._fold = None if fold is None else (fold,) * len(starts) if isinstance(fold, int) else tuple(fold)
        if self._fold is not None and (len(self._fold) != len(starts) or min(self._fold) < 1):
            raise GraphError(f"expected a fold >= 1 for each of {len(starts)} producers, got {self._fold}")

    def __repr__(self) -> str:
        return f"Coalitions({self.players} players in {len(self.producers)} producers)"

    def name(self, player: int) -> str:
        """Producer and channel of a player, such as `layer2_0/conv1[17]`."""
        k = int(np.searchsorted(self.offsets, player, side="right")) - 1
        return f"{self.producers[k].name}[{player - self.offsets[k]}]"

    def split(self, per_player: Any) -> list[Any]:
        """Cut `[..., N]` into `[..., C]` for each of `producers`."""
        return [per_player[..., a:b] for a, b in zip(self.offsets[:-1], self.offsets[1:], strict=True)]

    def start(self, variables: Variables, images: jax.Array) -> State:
        """Run the model up to the first gate.

        Args:
            variables: as the graph was derived from.
            images: `[M, ...]`.

        Returns:
            What `logits` starts from.

        Raises:
            GraphError: other variables, or a program that depends on the number of images.
        """
        program = self.graph.program_at(images)
        known = {**self.graph.leaves(program, variables), program.images: jnp.asarray(images)}
        env = program.evaluate(known, program.equations[: self._first])
        reads = sorted(value for origin, value in {read for s in self._segments for read in s.reads} if origin < 0)
        struct = jax.ShapeDtypeStruct(images.shape, images.dtype)
        return State({str(value): env[value] for value in reads}, struct)

    def logits(self, variables: Variables, start: State, gates: jax.Array) -> jax.Array:
        """The model's logits under each set of gates.

        The order of the coalitions changes the amount of work and nothing else: neighbours should differ late in the
        model.

        Args:
            variables: as the graph was derived from.
            start: of the same variables.
            gates: `[B, N]` factors on the players' channels.

        Returns:
            `[B, M, K]`.

        Raises:
            GraphError: gates of another shape, or other variables.
        """
        gates = jnp.asarray(gates)
        if gates.ndim != 2 or gates.shape[1] != self.players:
            raise GraphError(f"expected gates of shape [B, {self.players}], got {gates.shape}")
        own = self.split(gates)
        versions = _versions(own)
        folds = self.folds(len(gates), start.images)
        # Up to the last segment with a fold of 1 the coalitions go one by one; the rest is swept in batches.
        walked = max((k + 1 for k, fold in enumerate(folds) if fold == 1), default=0)
        # One traced program for each number of versions that go abreast: folded versions lie along the batch axis.
        runs = {fold: _Run(self.graph, variables, start.images, fold) for fold in {1, *folds}}
        stacks = {(-1, int(value)): _Stack(array[None]) for value, array in start.live.items()}
        if walked:
            stacks |= self._walk(runs[1], walked, stacks, own, versions)
        for k in range(walked, len(self.producers)):
            stacks |= self._sweep(runs[folds[k]], k, stacks, own[k], versions[k])
        logits = stacks[self._logits]
        return logits.array if logits.versions is None else logits.array[logits.versions.of]

    def _walk(
        self, run: _Run, walked: int, stacks: _Stacks, gates: Sequence[jax.Array], versions: Sequence[_Versions]
    ) -> _Stacks:
        """Coalition by coalition through the first segments, one version of everything in memory."""
        # What later segments read has to be kept for every version; everything else is overwritten by the next one.
        later = {read for segment in self._segments[walked:] for read in segment.reads} | {self._logits}
        fresh = {
            (k, value): jnp.zeros(run.shapes[value], run.program.dtypes[value])
            for k, segment in enumerate(self._segments[:walked])
            for value in segment.writes
        }
        last = versions[walked - 1]
        kept = {
            place: jnp.zeros((len(gates[0]), *fresh[place].shape), fresh[place].dtype) for place in later & {*fresh}
        }

        def step(row: jax.Array, carry: tuple[dict[Place, jax.Array], dict[Place, jax.Array]]):
            held, kept = carry
            # `held` has each segment's results for the newest version; a segment is run only where a version begins.
            for k, segment in enumerate(self._segments[:walked]):
                inputs = {read[1]: held[read] if read in held else stacks[read].array[0] for read in segment.reads}
                # Without a turn of the loop below, the results of the version before stay as they are.
                own = {(k, value): held[k, value] for value in segment.writes}

                def compute(turn: jax.Array, own: Any, k: int = k, inputs: Any = inputs) -> Any:
                    # Without the barrier XLA hoists this out of the loop and runs it for every coalition.
                    inputs, _ = jax.lax.optimization_barrier((inputs, turn))
                    written = run(self.producers[k], self._segments[k], inputs, gates[k][row])
                    return {place: written[place[1]] for place in own}

                # A loop of no turn or one: a conditional would copy whatever it passes on.
                held |= jax.lax.fori_loop(0, versions[k].new[row].astype(int), compute, own)
            return held, {
                place: jax.lax.dynamic_update_index_in_dim(array, held[place], last.of[row], 0)
                for place, array in kept.items()
            }

        _, kept = jax.lax.fori_loop(0, len(gates[0]), step, (fresh, kept))
        return {place: _Stack(array, last) for place, array in kept.items()}

    def _sweep(self, run: _Run, k: int, stacks: _Stacks, gates: jax.Array, versions: _Versions) -> _Stacks:
        """All versions of one segment, `fold` at a time."""
        segment, fold = self._segments[k], run.fold
        # Shapes are static: there is room for as many versions as coalitions, but only `total` of them are computed.
        rounds = -(-len(gates) // fold)
        axes = {value: self.graph.batch_axes[value] for value in (*segment.writes, *(v for _, v in segment.reads))}
        # The last round is filled up with copies of the last version.
        first = jnp.pad(versions.first, (0, rounds * fold - len(gates)), mode="edge")

        def step(turn: jax.Array, written: dict[Value, jax.Array]) -> dict[Value, jax.Array]:
            rows = jax.lax.dynamic_slice_in_dim(first, turn * fold, fold)
            inputs = {read[1]: stacks[read].merged(rows, axes[read[1]]) for read in segment.reads}
            found = run(self.producers[k], segment, inputs, jnp.repeat(gates[rows], run.num_images, axis=0))
            return {
                value: jax.lax.dynamic_update_slice_in_dim(
                    array, _separated(found[value], fold, axes[value]), turn * fold, axis=0
                )
                for value, array in written.items()
            }

        dtypes = run.program.dtypes
        empty = {value: jnp.zeros((rounds * fold, *run.shapes[value]), dtypes[value]) for value in segment.writes}
        written = jax.lax.fori_loop(0, -(-versions.total // fold), step, empty)
        return {(k, value): _Stack(array, versions) for value, array in written.items()}

    def folds(self, size: int, images: jax.ShapeDtypeStruct) -> tuple[int, ...]:
        """Versions that go through each segment together.

        Unless it was given: as many as leave four fifths of the work useful, where each coalition differs from the one
        before by a channel drawn at random, and as their intermediate arrays have memory. Early segments thus take few
        or single versions, which are whole batches of large images anyway.

        Args:
            size: number of coalitions `B`.
            images: of `start`.

        Returns:
            One for each of `producers`, at most `B`.
        """
        program = self.graph.program_at(images)
        folds = []
        for k, segment in enumerate(self._segments):
            keeps_axis = self.graph.batch_axes.keys() >= {*segment.writes, *(v for _, v in segment.reads)}
            can_fold = keeps_axis and self.graph.mixes_images.isdisjoint(segment.equations)
            if not can_fold:
                folds.append(1)
            elif self._fold is not None:
                folds.append(min(self._fold[k], size))
            else:
                versions = 1 + (size - 1) * self.offsets[k + 1] / self.players
                # The last round is filled up with half a fold on average: a fifth of all at `1 + versions / 2`.
                made = {value for number in segment.equations for value in program.equations[number].outputs}
                needed = sum(math.prod(program.shapes[value]) * program.dtypes[value].itemsize for value in made)
                most = max(1, min(self._most, int(1 + versions / 2), self._room // max(needed, 1), size))
                # Powers of two: the model is traced once for each number.
                folds.append(1 << (most.bit_length() - 1))
        return tuple(folds)


def _versions(gates: Sequence[jax.Array]) -> list[_Versions]:
    """Versions at each cut, from the gates `[B, C]` of the producers up to there."""
    size = len(gates[0])
    new = jnp.arange(size) == 0
    found = []
    # A version begins where a coalition differs from its predecessor here or at any earlier cut.
    for own in gates:
        new = new | jnp.concatenate([jnp.ones(1, bool), (own[1:] != own[:-1]).any(axis=1)])
        # A fixed size for jit: beyond the last version stands the last coalition, whose result is written again.
        first = jnp.nonzero(new, size=size, fill_value=size - 1)[0]
        # The running count of beginnings is each coalition's version, from 0 on.
        found.append(_Versions(jnp.cumsum(new) - 1, first, new.sum(), new))
    return found


def _separated(array: jax.Array, fold: int, axis: int) -> jax.Array:
    """Undoes `_Stack.merged`: `[fold, ...]`."""
    shape = (*array.shape[:axis], fold, array.shape[axis] // fold, *array.shape[axis + 1 :])
    return jnp.moveaxis(array.reshape(shape), axis, 0)
