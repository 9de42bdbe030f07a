"""Finding producers and affines in a program, from the dataflow alone.

A *producer* is a convolution or product of something that depends on the images with a kernel that does not. From its
result a *stream* is followed through everything that keeps its channels linear and apart: residual sums,
concatenation, padding, pooling by sums. A run of `+ - * /` with channelwise parameters on a stream is a *chain*; a
finished chain is read as a bias, as an *affine* (BatchNorm in evaluation mode), or as the one followed by the other.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax.numpy as jnp

from jaxguard.graph import axis_rules
from jaxguard.graph.channels import Affine, KernelDims, Producer, is_convolution, kernel_dims, result_channel_dims
from jaxguard.graph.primitives import Channels, Form, makes_channels, row
from jaxguard.graph.program import Equation, Program, Value, interpret
from jaxguard.graph.streams import Stream, merged, moved
from jaxguard.graph.views import LeafView, find_view, stem

SHIFTS = (Channels.ADDS, Channels.SUBTRACTS)
SCALES = (Channels.MULTIPLIES, Channels.DIVIDES)
REARRANGES = (Channels.MOVES, Channels.SPREADS, Channels.POOLS)


@dataclass(frozen=True)
class _Chain:
    """A run of channelwise parameter arithmetic: `(equation, what it does, parameter operand)` from `start` on."""

    start: Value
    stream: Stream
    steps: tuple[tuple[Equation, Channels, Value], ...] = ()


class _Fact(NamedTuple):
    """What is known about a value; behind a multiplication it has a chain but no stream."""

    stream: Stream | None = None
    chain: _Chain | None = None


class _Analysis:
    """One pass over a program; `producers`, `affines` and `unread` are its results."""

    def __init__(self, program: Program):
        self.program = program
        self.leaf_paths = dict(zip(program.leaves, program.paths, strict=True))
        self.written_by = {value: eqn for eqn in program.equations for value in eqn.outputs}
        self.positions = {eqn: k for k, eqn in enumerate(program.equations)}
        self.consumers: dict[Value, list[Equation]] = defaultdict(list)
        for eqn in program.equations:
            for value in set(eqn.inputs):
                self.consumers[value].append(eqn)
        self.on_images = program.dependents({program.images})
        self.producers: list[Producer] = []
        self.affines: list[Affine] = []
        self.unread: list[tuple[Equation, str]] = []
        # One pass in execution order: a value's fact depends on those of its operands alone.
        facts = interpret(program.equations, {}, self._follow)
        self.chains = {value: fact.chain for value, fact in facts.items() if fact.chain}
        # A chain is finished at the values behind which nothing prolongs it.
        for value, chain in self.chains.items():
            if not any(self._extends(chain, eqn) for eqn in self.consumers[value]):
                self._close(chain)
        # Chains were closed in the order of their last values; reports and pairings go by the first equation.
        self.affines.sort(key=lambda affine: affine.position)
        self.producers = [self._with_gate(producer) for producer in self.producers]

    def _follow(self, eqn: Equation, operands: list[_Fact | None]) -> list[_Fact | None]:
        if makes_channels(eqn):
            return [self._find_producer(eqn)]
        if any(operands) and len(eqn.outputs) == 1:
            return [self._passed(eqn, operands)]
        return [None] * len(eqn.outputs)

    def _passed(self, eqn: Equation, operands: list[_Fact | None]) -> _Fact | None:
        """What is known about the result of an equation that reads something known."""
        channels = row(eqn).channels
        streams = [fact and fact.stream for fact in operands]
        value, fact = next((value, fact) for value, fact in zip(eqn.inputs, operands, strict=True) if fact)
        if channels is Channels.KEEPS:
            return fact
        if channels in (*SHIFTS, *SCALES) and not self.on_images.issuperset(eqn.inputs):
            return self._step(eqn, channels, value, fact)
        if channels in SHIFTS:
            return _Fact(merged([stream for stream in streams if stream]))
        if channels in REARRANGES and row(eqn).form is Form.LINEAR:
            return _Fact(moved(eqn, streams, self.program.shapes))
        return None

    def _find_producer(self, eqn: Equation) -> _Fact | None:
        from_images = [value in self.on_images for value in eqn.inputs]
        if sum(from_images) != 1:
            return None
        side = from_images.index(False)
        operand, result = eqn.inputs[side], eqn.outputs[0]
        if not self._leaves_under(operand):
            return None
        dims = kernel_dims(eqn, side, len(self.program.shapes[operand]))
        result_dims = result_channel_dims(eqn, side, dims, len(self.program.shapes[result]))
        found = self._kernel(operand, dims)
        if found is None:
            paths = ", ".join(sorted(self.leaf_paths[leaf] for leaf, _ in self._leaves_under(operand)))
            self.unread.append((eqn, f"its kernel lies in no one leaf, but is computed from {paths}"))
            return None
        kernel, in_axes = found
        number = len(self.producers)
        self.producers.append(
            Producer(
                name=stem(kernel.path),
                kernel=kernel,
                in_axes=in_axes,
                channels=math.prod(kernel.shape),
                groups=eqn.params.get("feature_group_count", 1),
                bias=None,
                affine=None,
                is_convolution=is_convolution(eqn),
                position=self.positions[eqn],
                equation=eqn,
                operand=operand,
                result=result,
                gate=result,
                gate_axes=result_dims,
                where=eqn.where,
            )
        )
        return _Fact(Stream(result_dims, ((number, 0),)))

    def _kernel(self, operand: Value, dims: KernelDims) -> tuple[LeafView, tuple[int, ...]] | None:
        """Where the output channels of a kernel lie in its leaf, and the leaf axes of its input channels."""
        leaves = sorted(self._leaves_under(operand))
        size = math.prod(self.program.shapes[operand])
        for leaf, _ in leaves:
            # A kernel may be one layer of a stacked leaf; scales and means of a standardised kernel are smaller.
            if math.prod(self.program.shapes[leaf]) % size == 0:
                outputs, inputs = (find_view(self.program, leaf, operand, axes) for axes in (dims.outputs, dims.inputs))
                if outputs is not None and inputs is not None:
                    return outputs, inputs.axes
        for leaf, _ in leaves:
            # Several inputs may be packed into one integer; they lie along no axis then, but outputs do.
            ratio, rest = divmod(size, math.prod(self.program.shapes[leaf]) or size + 1)
            if 1 < ratio <= 8 and not rest and jnp.issubdtype(self.program.dtypes[leaf], jnp.integer):
                outputs = find_view(self.program, leaf, operand, dims.outputs)
                if outputs is not None:
                    return outputs, ()
        return None

    def _leaves_under(
        self, value: Value, under_root: bool = False, skip: Collection[Channels] = ()
    ) -> set[tuple[Value, bool]]:
        """Leaves a value is computed from, and whether through a root, as a variance is.

        What passes through an operation in `skip` is left out.
        """
        if value in self.leaf_paths:
            return {(value, under_root)}
        eqn = self.written_by.get(value)
        if eqn is None or value in self.on_images or row(eqn).channels in skip:
            return set()
        # A variance reaches the output through a root, a scale does not: that tells the two leaves of a norm apart.
        under_root = under_root or row(eqn).form is Form.ROOT
        return set().union(*(self._leaves_under(v, under_root, skip) for v in eqn.inputs))

    def _step(self, eqn: Equation, channels: Channels, value: Value, fact: _Fact) -> _Fact | None:
        """Arithmetic of a tracked value with one that does not depend on the images."""
        operand = eqn.inputs[1] if eqn.inputs[0] == value else eqn.inputs[0]
        if not self._leaves_under(operand):
            return fact
        chain = fact.chain or (_Chain(value, fact.stream) if fact.stream else None)
        # `c - x` and `c / x` turn the channels around: neither is an affine map of the kind of a BatchNorm.
        is_reversed = value == eqn.inputs[1] and channels in (Channels.SUBTRACTS, Channels.DIVIDES)
        if chain is None or is_reversed or not self._is_channelwise(operand, chain.stream):
            return None
        longer = replace(chain, steps=(*chain.steps, (eqn, channels, operand)))
        return _Fact(fact.stream if channels in SHIFTS else None, longer)

    def _is_channelwise(self, operand: Value, stream: Stream) -> bool:
        rank = len(self.program.shapes[operand])
        return {*range(rank)} <= {*stream.axes} | self._uniform_axes(operand)

    def _uniform_axes(self, value: Value) -> set[int]:
        """Axes along which a value computed from parameters is known to be constant."""
        shapes, eqn = self.program.shapes, self.written_by.get(value)
        # A unit axis broadcasts, and so is constant along whatever axis it meets.
        uniform = {k for k, size in enumerate(shapes[value]) if size == 1}
        if eqn is None:
            return uniform
        if eqn.name == "broadcast_in_dim":
            inner = self._uniform_axes(eqn.inputs[0])
            varying = {k for i, k in enumerate(eqn.params["broadcast_dimensions"]) if i not in inner}
            return uniform | set(range(len(shapes[value]))) - varying
        if row(eqn).ties in (axis_rules.elementwise, axis_rules.identity):
            operands = [self._uniform_axes(v) for v in eqn.inputs if shapes[v]]
            return uniform | (set.intersection(*operands) if operands else set())
        return uniform

    def _extends(self, chain: _Chain, eqn: Equation) -> bool:
        longer = self.chains.get(eqn.outputs[0])
        return longer is not None and longer.start == chain.start

    def _close(self, chain: _Chain) -> None:
        """Read a finished chain as a bias, if it begins with additions, and an affine, if it then multiplies."""
        steps, stream, begin = list(chain.steps), chain.stream, chain.start
        # Leading additions are the producer's bias: BatchNorm begins with a subtraction or a multiplication.
        while steps and steps[0][1] is Channels.ADDS:
            addition, _, operand = steps.pop(0)
            (begin,) = addition.outputs
            source = stream.sources[0][0]
            if self.producers[source].result == chain.start:
                bias = self._parameter(operand, chain, under_root=False)
                self.producers[source] = replace(self.producers[source], bias=bias)
        factors = [k for k, (_, channels, _) in enumerate(steps) if channels in SCALES]
        if not factors:
            return
        parts: dict[str, LeafView | None] = dict.fromkeys(("scale", "var", "mean", "bias"))
        for k, (_, channels, operand) in enumerate(steps):
            if channels in SCALES:
                # `gamma / sqrt(var + eps)` may be one operand; its two leaves differ in having passed a root or not.
                parts["scale"] = parts["scale"] or self._parameter(operand, chain, under_root=False)
                parts["var"] = parts["var"] or self._parameter(operand, chain, under_root=True)
            else:
                # In a folded `x * m + (bias - mean * m)` the bias is the leaf that is not multiplied.
                addend = self._parameter(operand, chain, under_root=False, skip=SCALES)
                addend = addend or self._parameter(operand, chain, under_root=False)
                # What is added before the first factor is the mean, with a minus sign; behind it, the bias.
                parts["mean" if k < factors[0] else "bias"] = addend
        view = parts["scale"] or parts["var"]
        if view is None:
            return
        last = steps[-1][0]
        self.affines.append(
            Affine(
                name=stem(view.path),
                sources=stream.sources,
                channels=math.prod(self.program.shapes[chain.start][k] for k in stream.axes),
                position=self.positions[steps[0][0]],
                begin=begin,
                begin_axes=stream.axes,
                end=last.outputs[0],
                where=last.where,
                **parts,
            )
        )

    def _parameter(
        self, operand: Value, chain: _Chain, *, under_root: bool, skip: Collection[Channels] = ()
    ) -> LeafView | None:
        """The leaf that holds one number per channel; None if there are several, or it is shared by channels."""
        leaves = [leaf for leaf, rooted in self._leaves_under(operand, skip=skip) if rooted == under_root]
        sizes = [self.program.shapes[chain.start][k] for k in chain.stream.axes]
        if len(leaves) != 1 or len(self.program.shapes[operand]) != len(self.program.shapes[chain.start]):
            return None
        view = find_view(self.program, leaves[0], operand, chain.stream.axes)
        return view if view and math.prod(view.shape) == math.prod(sizes) else None

    def _with_gate(self, producer: Producer) -> Producer:
        """The gate goes behind the bias and affine that the producer has for itself."""
        gate = value = producer.result
        is_shifted = False
        while len(self.consumers[value]) == 1 and value != self.program.logits:
            eqn = self.consumers[value][0]
            (output, *_) = eqn.outputs
            chain = self.chains.get(output)
            if chain is None or chain.start != producer.result:
                break
            # A constant that is added last, as in a hard sigmoid, is no bias: a channel of zero is 3 behind it.
            has_leaf = chain is not self.chains.get(value)
            is_shifted = not has_leaf and (is_shifted or row(eqn).channels in SHIFTS)
            value = output
            if not is_shifted:
                gate = value
        own = {affine.end: k for k, affine in enumerate(self.affines)}
        # A norm may come behind a reshape, as in a model of one image that is mapped over a batch.
        number, end = self.producers.index(producer), gate
        while end not in own and len(self.consumers[end]) == 1 and end != self.program.logits:
            eqn = self.consumers[end][0]
            end = eqn.outputs[0]
            if end not in self.chains and not (row(eqn).channels in REARRANGES and row(eqn).form is Form.LINEAR):
                break
        affine = own.get(end)
        if end != gate and affine is not None and self.affines[affine].sources == ((number, 0),):
            return replace(producer, gate=end, gate_axes=self.affines[affine].begin_axes, affine=affine)
        return replace(producer, gate=gate, affine=own.get(gate))


class Found(NamedTuple):
    """What makes and scales a program's channels, each in program order.

    Attributes:
        producers: convolutions and dense layers; a kernel used twice is `name` and `name#2`.
        affines: channelwise affines.
        unread: convolutions and products that are no producers, since their kernel lies in no one leaf, and why.
    """

    producers: tuple[Producer, ...]
    affines: tuple[Affine, ...]
    unread: tuple[tuple[Equation, str], ...]


def find_channels(program: Program) -> Found:
    """Producers and affines of a program."""
    analysis = _Analysis(program)
    uses: dict[str, int] = defaultdict(int)
    producers = []
    for producer in analysis.producers:
        uses[producer.name] += 1
        use = uses[producer.name]
        producers.append(replace(producer, name=f"{producer.name}#{use}") if use > 1 else producer)
    return Found(tuple(producers), tuple(analysis.affines), tuple(analysis.unread))
