"""The channel graph of a model: what makes its channels, which are permuted together, where they can be gated."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from jaxguard.errors import GraphError, UnscorableError
from jaxguard.graph import axes
from jaxguard.graph.axis_rules import Axes
from jaxguard.graph.channels import Producer, kernel_matrix
from jaxguard.graph.dataflow import find_channels
from jaxguard.graph.groups import find_groups, output_producers
from jaxguard.graph.left_out import find_left_out
from jaxguard.graph.program import ApplyFn, Equation, Program, Value, Variables, leaf_paths, number_expressions
from jaxguard.graph.ties import mixing_equations, tie_program
from jaxguard.graph.tracing import trace
from jaxguard.graph.zeroing import Zeroing


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """The live arrays at a cut: what a suffix needs from its prefix."""

    live: dict[str, jax.Array]
    images: jax.ShapeDtypeStruct = field(metadata={"static": True})


Gates = Mapping[str, jax.Array]
"""Producer name -> factor on its output channels, `[C]` or `[B, C]`."""


class ChannelGraph:
    """Structure of a model, derived from its trace; see `channel_graph`.

    Attributes:
        apply_fn: the model.
        program: its trace at the example's shape.
        producers: convolutions and dense layers, in program order.
        affines: channelwise affines (BatchNorm), in program order.
        groups: sets of channels that are permuted together; spatial axes are not channels and are left out.
        outputs: numbers of the producers whose channels are the model's logits; these are never cut.
        left_out: equations that are evaluated as they are and not analysed, and which layers that concerns.
        batch_axes: value -> its axis that runs over the images, where it has one.
        mixes_images: numbers of the equations whose results are not known to belong to one image each.
    """

    def __init__(self, apply_fn: ApplyFn, variables: Variables, images: jax.ShapeDtypeStruct):
        self.apply_fn = apply_fn
        self.program = trace(apply_fn, variables, images)
        self._variables = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)
        self._programs = {(images.shape, images.dtype): self.program}
        nodes = tie_program(self.program)
        self.producers, self.affines, unread = find_channels(self.program)
        self.groups = find_groups(self.program, nodes, self.producers)
        self.outputs = output_producers(self.program, nodes, self.producers)
        self.left_out = find_left_out(self.program, nodes, self.producers, self.affines, unread)
        self.batch_axes = _batch_axes(self.program, nodes)
        self.mixes_images = mixing_equations(self.program, nodes, self.batch_axes)

    def __repr__(self) -> str:
        permutable = sum(group.permutable for group in self.groups)
        left_out = (
            f"; not analysed: {', '.join(f'`{one.primitive}`' for one in self.left_out)}" if self.left_out else ""
        )
        return (
            f"ChannelGraph({len(self.producers)} producers, {len(self.affines)} affines, "
            f"{len(self.groups)} groups, {permutable} permutable{left_out})"
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """Caveats of the analysis for the reader of a report, in full sentences."""
        dropped = ", ".join(dict.fromkeys(f"`{eqn.name}` at {eqn.where}" for eqn in self.program.effects))
        effects = (f"Left out of every run, since nothing reads what they return: {dropped}.",) if dropped else ()
        meshes = "; ".join(dict.fromkeys(self.program.meshes))
        sharded = (f"Analysed on whole arrays, as if on one device: {meshes}.",) if meshes else ()
        return (*map(str, self.left_out), *effects, *sharded)

    @property
    def logits(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the model's outputs for the example."""
        return jax.ShapeDtypeStruct(*(of[self.program.logits] for of in (self.program.shapes, self.program.dtypes)))

    @functools.cached_property
    def expressions(self) -> dict[Value, int]:
        """Number of each value that does not depend on the images; equal computations have equal numbers."""
        return number_expressions(self.program)

    @functools.cached_property
    def zeroing(self) -> Zeroing:
        """Proposals of how its channels become zero."""
        return Zeroing(self.program, self.producers)

    @functools.cached_property
    def known_cuts(self) -> dict[Any, Any]:
        """What `jaxguard.graph.cuts` found, by layer."""
        return {}

    @functools.cached_property
    def first_uses(self) -> tuple[int, ...]:
        """For each producer, the number of the first one that applies the same kernel, itself in most models.

        A kernel is what is applied, not the leaf that it is computed from: two mixtures of one bank are two kernels,
        and a recurrent layer, whose kernel is computed in every step alike, has one.
        """
        first: dict[Any, int] = {}
        keys = [(self.expressions[one.operand], one.kernel.axes, one.in_axes) for one in self.producers]
        return tuple(first.setdefault(key, k) for k, key in enumerate(keys))

    def producer(self, name: str) -> Producer:
        """The producer of a given name.

        Raises:
            GraphError: there is none.
        """
        for producer in self.producers:
            if producer.name == name:
                return producer
        names = ", ".join(producer.name for producer in self.producers)
        raise GraphError(f"expected the name of a producer, got {name!r}; this model has {names}")

    def kernels(self, variables: Variables) -> list[jax.Array]:
        """Kernel of each producer as it is applied, `[C, T, D]`: output channel, spatial tap, fan-in per group.

        Raises:
            GraphError: the variables are not those the graph was derived from.
        """
        known = self.leaves(self.program, variables)
        cones = ((producer, producer.operand) for producer in self.producers)
        return [
            kernel_matrix(producer, self.program.evaluate(known, self.program.cone(value))[value])
            for producer, value in cones
        ]

    def reads_leaf(self, number: int) -> bool:
        """Whether a producer applies its kernel leaf as it is, its axes in Flax's order: taps, fan-in, channels."""
        producer = self.producers[number]
        rank = len(self.program.shapes[producer.operand])
        out_dims, in_dims, _ = producer.dims(rank)
        is_in_order = out_dims == (rank - 1,) and (in_dims == (rank - 2,) or not producer.is_convolution)
        return is_in_order and producer.operand in self.program.leaves

    def run(self, variables: Variables, images: jax.Array, gates: Gates | None = None) -> jax.Array:
        """The model's logits, with gates multiplied into producers' outputs.

        A producer is gated behind the bias and BatchNorm it has for itself, so a gate of 0 makes the channel exactly 0.

        Args:
            variables: as the graph was derived from.
            images: `[B, ...]`; `B` may differ from the example's.
            gates: producer name -> `[C]`, or `[B, C]` for one gate per image.

        Returns:
            `[B, K]` logits.

        Raises:
            GraphError: unknown producer, wrong gate shape, or other variables.
        """
        program = self.program_at(images)
        known = {**self.leaves(program, variables), program.images: images}
        return program.evaluate(known, after=self._gating(gates or {}))[program.logits]

    def split(self, producer: str) -> tuple[Callable[[Variables, jax.Array], State], Callable[..., jax.Array]]:
        """Cut the model at a producer's gate.

        `suffix(variables, prefix(variables, images), gates)` equals `run(variables, images, gates)` for gates of this
        producer and later ones; the prefix is computed once for any number of suffixes.

        Args:
            producer: its name.

        Returns:
            `prefix(variables, images) -> State` and `suffix(variables, state, gates=None) -> logits`.
        """
        gate = self.producer(producer).gate

        def prefix(variables: Variables, images: jax.Array) -> State:
            program = self.program_at(images)
            before, after = _halves(program, gate)
            known = {**self.leaves(program, variables), program.images: images}
            env = program.evaluate(known, before)
            given = {*program.leaves, *program.constants}
            read = {value for eqn in after for value in eqn.inputs} | {program.logits}
            # Only what the suffix reads has to be kept; leaves and constants are given to it anyway.
            live = sorted((read & env.keys()) - given)
            struct = jax.ShapeDtypeStruct(images.shape, images.dtype)
            return State({str(value): env[value] for value in live}, struct)

        def suffix(variables: Variables, state: State, gates: Gates | None = None) -> jax.Array:
            program = self.program_at(state.images)
            _, after = _halves(program, gate)
            change = self._gating(gates or {})
            known = self.leaves(program, variables)
            known.update({int(value): array for value, array in state.live.items()})
            # The prefix ends with the value to be gated, so its gate is applied here, once per suffix.
            if gate in known:
                known[gate] = change(gate, known[gate])
            return program.evaluate(known, after, after=change)[program.logits]

        return prefix, suffix

    def leaves(self, program: Program, variables: Variables) -> dict[Value, Any]:
        """Value -> array of the variables, for `Program.evaluate`.

        Raises:
            GraphError: the variables are not those the graph was derived from.
        """
        if leaf_paths(variables) != program.paths:
            different = set(leaf_paths(variables)) ^ set(program.paths)
            raise GraphError(
                f"expected the variables this graph was derived from, got ones that differ in {sorted(different)[:5]}; "
                "derive a new graph with channel_graph(apply_fn, variables, images)"
            )
        return dict(zip(program.leaves, jax.tree.leaves(variables), strict=True))

    def program_at(self, images: Any) -> Program:
        """The program at the shape of `images`; values have the same numbers at every batch size.

        Raises:
            GraphError: the program is another one at that shape.
        """
        key = (tuple(images.shape), images.dtype)
        if key not in self._programs:
            program = trace(self.apply_fn, self._variables, jax.ShapeDtypeStruct(*key))
            traced, expected = ([eqn.name for eqn in p.equations] for p in (program, self.program))
            if traced != expected:
                raise GraphError(
                    f"expected the same program at every image shape, got a different one at {key[0]} than at "
                    f"{self.program.shapes[self.program.images]}; derive a graph at the shape you run"
                )
            self._programs[key] = program
        return self._programs[key]

    def _gating(self, gates: Gates) -> Callable[[Value, jax.Array], jax.Array]:
        by_value = {(producer := self.producer(name)).gate: (producer, gate) for name, gate in gates.items()}

        def gate_value(value: Value, array: jax.Array) -> jax.Array:
            if value not in by_value:
                return array
            producer, gate = by_value[value]
            return array * broadcast_gate(producer, self.batch_axes.get(value), jnp.asarray(gate), array)

        return gate_value


def channel_graph(apply_fn: ApplyFn, variables: Variables, images: Any, *, strict: bool = False) -> ChannelGraph:
    """Derive the channel graph of any JAX model from its trace alone.

    An unknown equation, such as a `pallas_call`, is *opaque*: it is evaluated as it is, the channels
    that flow into it are frozen, and `ChannelGraph.left_out` names it. The model is traced and never run, so its
    callbacks are not called; `ChannelGraph.run` calls those whose results it needs, as the model does.

    Args:
        apply_fn: `(variables, images) -> logits`, in evaluation mode.
        variables: pytree of arrays or `jax.ShapeDtypeStruct`s.
        images: an example `[B, ...]`, array or struct; the batch size does not matter.
        strict: refuse a model with opaque equations.

    Returns:
        The graph.

    Raises:
        GraphError: something is left out, and `strict` is set.
        UnscorableError: the model has no convolution or dense layer that could be scored.

    Example:
        >>> def mlp(variables, images):
        ...     hidden = jax.nn.relu(images @ variables["w1"] + variables["b1"])
        ...     return hidden @ variables["w2"]
        >>> struct = lambda *shape: jax.ShapeDtypeStruct(shape, "float32")
        >>> variables = {"w1": struct(4, 8), "b1": struct(8), "w2": struct(8, 3)}
        >>> graph = channel_graph(mlp, variables, struct(2, 4))
        >>> [(member.path, member.axis) for group in graph.groups if group.permutable for member in group.members]
        [('b1', 0), ('w1', 1), ('w2', 0)]
    """
    graph = ChannelGraph(apply_fn, variables, _example(apply_fn, variables, images))
    if strict and graph.left_out:
        first = graph.left_out[0]
        raise GraphError(
            f"expected a model that can be analysed as a whole, got `{first.primitive}` at {first.where}: {first.why}; "
            "express it in primitives with a row in jaxguard.graph.primitives.PRIMITIVES, or leave out strict=True"
        )
    if not graph.producers:
        raise UnscorableError(
            "expected a model with convolutions or dense layers applied to its images, got none in "
            f"{len(graph.program.equations)} equations; "
            f"{' '.join(graph.remarks) or 'is apply_fn using the variables it is given?'}"
        )
    return graph


def _example(apply_fn: ApplyFn, variables: Variables, images: Any) -> jax.ShapeDtypeStruct:
    """A batch that the model takes; one of a single image would hide the batch axis among the unit axes."""
    # Two images: a size that differs from 1 makes the batch axis an axis that ties can follow.
    example = jax.ShapeDtypeStruct((2, *images.shape[1:]), images.dtype)
    try:
        jax.eval_shape(apply_fn, variables, example)
    except ValueError:
        # Where devices share a batch, its size must be divisible by theirs.
        for size in {images.shape[0], 8, 64, 512} - {1, 2}:
            larger = jax.ShapeDtypeStruct((size, *images.shape[1:]), images.dtype)
            with contextlib.suppress(ValueError):
                jax.eval_shape(apply_fn, variables, larger)
                return larger
        raise
    return example


def _batch_axes(program: Program, nodes: dict[Value, Axes]) -> dict[Value, int]:
    batch = axes.find(nodes[program.images][0])
    return {
        value: axis for value, parts in nodes.items() for axis, node in enumerate(parts) if axes.find(node) is batch
    }


def _halves(program: Program, gate: Value) -> tuple[Sequence[Equation], Sequence[Equation]]:
    """Equations up to the one that writes `gate`, and those after it."""
    end = next(k for k, eqn in enumerate(program.equations, start=1) if gate in eqn.outputs)
    return program.equations[:end], program.equations[end:]


def broadcast_gate(producer: Producer, batch_axis: int | None, gate: jax.Array, array: jax.Array) -> jax.Array:
    """Shape a gate `[C]`, or `[B, C]` for one per image, so that it multiplies the producer's gated array.

    Raises:
        GraphError: the gate has another shape.
    """
    sizes = [array.shape[k] for k in producer.gate_axes]
    shape = [1] * array.ndim
    for k, size in zip(producer.gate_axes, sizes, strict=True):
        shape[k] = size
    if gate.shape == (producer.channels,):
        return gate.astype(array.dtype).reshape(shape)
    if batch_axis is not None and gate.shape == (array.shape[batch_axis], producer.channels):
        shape[batch_axis] = array.shape[batch_axis]
        # One gate per image: [B, C] takes the array's own order of batch and channel axes.
        per_image = gate.astype(array.dtype).reshape(gate.shape[0], *sizes)
        axes_in_order = sorted((axis, k) for k, axis in enumerate((batch_axis, *producer.gate_axes)))
        return jnp.transpose(per_image, [k for _, k in axes_in_order]).reshape(shape)
    raise GraphError(
        f"expected a gate of shape ({producer.channels},) or (batch, {producer.channels}) for {producer.name}, "
        f"got {gate.shape}"
    )
