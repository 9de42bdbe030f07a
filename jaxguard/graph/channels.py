"""Where channels are made: producers (convolutions, dense layers) and the channelwise affines (BatchNorm) after them.

Found from the dataflow alone. A *producer* is a convolution or product of something that depends on the images with a
kernel that does not. From its result a *stream* is followed through everything that keeps its channels linear and
apart: residual sums, concatenation, padding, pooling by sums. A run of `+ - * /` with channelwise parameters on a
stream is an *affine*: a bias, or BatchNorm in evaluation mode.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxguard.errors import GraphError
from jaxguard.graph.program import LINEAR_MAPS, Equation, Program, Value
from jaxguard.graph.streams import Stream, moved
from jaxguard.graph.views import LeafView, find_view, stem

ROOTS = ("rsqrt", "sqrt", "pow")
ARITHMETIC = ("add", "sub", "mul", "div")
PASSES = ("convert_element_type", "copy", "reduce_precision", "stop_gradient", "name", "sharding_constraint")


@dataclass(frozen=True)
class Producer:
    """A convolution or dense layer, in program order.

    Attributes:
        name: leaf path of the kernel without collection and leaf name, such as `layer1_0/conv1`.
        kernel: where its output channels lie in the kernel leaf.
        in_axes: kernel leaf axes that the input channels run over.
        channels: number of output channels `C`.
        groups: feature groups; more than one for grouped and depthwise convolutions.
        bias: where its bias lies, or None.
        affine: index into `ChannelGraph.affines` of the affine that follows it alone, or None.
        is_convolution: False for dense layers and projections.
        position: number of its equation.
        equation: the convolution or product itself.
        operand: value of the kernel as the equation reads it.
        result: value it writes.
        gate: value to multiply a gate into: the result, after its own bias and affine.
        gate_axes: axes of `gate` that the channels run over.
        where: file and line it was traced from.
    """

    name: str
    kernel: LeafView
    in_axes: tuple[int, ...]
    channels: int
    groups: int
    bias: LeafView | None
    affine: int | None
    is_convolution: bool
    position: int
    equation: Equation
    operand: Value
    result: Value
    gate: Value
    gate_axes: tuple[int, ...]
    where: str


@dataclass(frozen=True)
class Affine:
    """A channelwise affine map `scale * (x - mean) / sqrt(var + eps) + bias`, parts of it possibly absent.

    Attributes:
        name: leaf path of the scale without collection and leaf name, such as `layer1_0/bn1`.
        sources: `(producer index, offset)`: producer channel `c` arrives at affine channel `offset + c`.
        channels: number of channels.
        scale: where the multiplier lies.
        var: where the running variance lies.
        mean: where the running mean lies.
        bias: where the addend lies.
        position: number of its first equation.
        begin: value of `x`, what the mean is the running mean of: after the producer's own bias.
        begin_axes: axes of `begin` that the channels run over.
        end: value of its result.
        where: file and line it was traced from.
    """

    name: str
    sources: tuple[tuple[int, int], ...]
    channels: int
    scale: LeafView | None
    var: LeafView | None
    mean: LeafView | None
    bias: LeafView | None
    position: int
    begin: Value
    begin_axes: tuple[int, ...]
    end: Value
    where: str


@dataclass(frozen=True)
class _Chain:
    """A run of channelwise parameter arithmetic: `(equation number, operation, operand)` from `start` on."""

    start: Value
    stream: Stream
    steps: tuple[tuple[int, str, Value], ...]


class _Analysis:
    """One pass over a program; `producers` and `affines` are its results."""

    def __init__(self, program: Program):
        self.program = program
        self.leaf_paths = dict(zip(program.leaves, program.paths, strict=True))
        self.written_by = {value: eqn for eqn in program.equations for value in eqn.outputs}
        self.consumers: dict[Value, list[Equation]] = defaultdict(list)
        self.on_images = {program.images}
        for eqn in program.equations:
            for value in set(eqn.inputs):
                self.consumers[value].append(eqn)
            if self.on_images.intersection(eqn.inputs):
                self.on_images.update(eqn.outputs)
        self.producers: list[Producer] = []
        self.affines: list[Affine] = []
        self.streams: dict[Value, Stream] = {}
        self.chains: dict[Value, _Chain] = {}
        for position, eqn in enumerate(program.equations):
            if eqn.name in LINEAR_MAPS:
                self._find_producer(position, eqn)
            else:
                self._follow(position, eqn)
        for value, chain in self.chains.items():
            if not any(self._extends(value, eqn) for eqn in self.consumers[value]):
                self._close(chain)
        self.affines.sort(key=lambda affine: affine.position)
        self.producers = [self._with_gate(producer) for producer in self.producers]

    def _find_producer(self, position: int, eqn: Equation) -> None:
        from_images = [value in self.on_images for value in eqn.inputs]
        if sum(from_images) != 1:
            return
        side = from_images.index(False)
        operand, result = eqn.inputs[side], eqn.outputs[0]
        if not self._leaves_under(operand):
            return
        if eqn.name == "conv_general_dilated":
            numbers = eqn.params["dimension_numbers"]
            out_dims, in_dims, result_dims = (
                numbers.rhs_spec[:1],
                numbers.rhs_spec[1:2],
                numbers.out_spec[1:2],
            )
        else:
            out_dims, in_dims = dot_dims(eqn, side, len(self.program.shapes[operand]))
            batch, free = len(eqn.params["dimension_numbers"][1][0]), len(out_dims)
            first = batch if side == 0 else len(self.program.shapes[result]) - (free - batch)
            result_dims = (*range(batch), *range(first, first + free - batch))
        kernel, in_axes = self._kernel(eqn, operand, out_dims, in_dims)
        self.streams[result] = Stream(tuple(result_dims), ((len(self.producers), 0),))
        self.producers.append(
            Producer(
                name=stem(kernel.path),
                kernel=kernel,
                in_axes=in_axes,
                channels=math.prod(kernel.shape),
                groups=eqn.params.get("feature_group_count", 1),
                bias=None,
                affine=None,
                is_convolution=eqn.name == "conv_general_dilated",
                position=position,
                equation=eqn,
                operand=operand,
                result=result,
                gate=result,
                gate_axes=tuple(result_dims),
                where=eqn.where,
            )
        )

    def _kernel(
        self, eqn: Equation, operand: Value, out_dims: Sequence[int], in_dims: Sequence[int]
    ) -> tuple[LeafView, tuple[int, ...]]:
        leaves = sorted(self._leaves_under(operand))
        size = math.prod(self.program.shapes[operand])
        for leaf, _ in leaves:
            if math.prod(self.program.shapes[leaf]) % size == 0:
                outputs, inputs = (find_view(self.program, leaf, operand, dims) for dims in (out_dims, in_dims))
                if outputs is not None and inputs is not None:
                    return outputs, inputs.axes
        paths = ", ".join(self.leaf_paths[leaf] for leaf, _ in leaves)
        raise GraphError(
            f"expected the kernel of `{eqn.name}` at {eqn.where} to lie in one parameter leaf, got one computed "
            f"from {paths}; apply the leaves one by one, so that their channels can be told apart"
        )

    def _leaves_under(
        self, value: Value, under_root: bool = False, skip: Sequence[str] = ()
    ) -> set[tuple[Value, bool]]:
        """Leaves a value is computed from, and whether through a square root, as a variance is.

        What passes through an operation in `skip` is left out.
        """
        if value in self.leaf_paths:
            return {(value, under_root)}
        eqn = self.written_by.get(value)
        if eqn is None or value in self.on_images or eqn.name in skip:
            return set()
        under_root = under_root or eqn.name in ROOTS
        return set().union(*(self._leaves_under(v, under_root, skip) for v in eqn.inputs))

    def _follow(self, position: int, eqn: Equation) -> None:
        tracked = [v for v in eqn.inputs if v in self.streams or v in self.chains]
        if not tracked or len(eqn.outputs) != 1:
            return
        if eqn.name in ARITHMETIC and self.on_images.issuperset(eqn.inputs):
            self._add_streams(eqn)
        elif eqn.name in ARITHMETIC:
            self._step(position, eqn, tracked[0])
        elif eqn.name in PASSES:
            self._pass_on(eqn, tracked[0])
        elif stream := moved(eqn, self.streams, self.program.shapes):
            self.streams[eqn.outputs[0]] = stream

    def _pass_on(self, eqn: Equation, value: Value) -> None:
        if value in self.streams:
            self.streams[eqn.outputs[0]] = self.streams[value]
        if value in self.chains:
            self.chains[eqn.outputs[0]] = self.chains[value]

    def _add_streams(self, eqn: Equation) -> None:
        streams = [self.streams[v] for v in eqn.inputs if v in self.streams]
        if eqn.name in ("add", "sub") and len({stream.axes for stream in streams}) == 1:
            sources = dict.fromkeys(source for stream in streams for source in stream.sources)
            self.streams[eqn.outputs[0]] = Stream(streams[0].axes, tuple(sources))

    def _step(self, position: int, eqn: Equation, value: Value) -> None:
        operand = eqn.inputs[1] if eqn.inputs[0] == value else eqn.inputs[0]
        if not self._leaves_under(operand):
            self._pass_on(eqn, value)
            return
        chain = self.chains.get(value) or _Chain(value, self.streams[value], ())
        shape = self.program.shapes[operand]
        uniform = self._uniform_axes(operand)
        if (value == eqn.inputs[1] and eqn.name in ("sub", "div")) or not all(
            k in chain.stream.axes or k in uniform for k in range(len(shape))
        ):
            return
        self.chains[eqn.outputs[0]] = replace(chain, steps=(*chain.steps, (position, eqn.name, operand)))
        if value in self.streams and eqn.name in ("add", "sub"):
            self.streams[eqn.outputs[0]] = self.streams[value]

    def _uniform_axes(self, value: Value) -> set[int]:
        """Axes along which a value computed from parameters is known to be constant."""
        shapes, eqn = self.program.shapes, self.written_by.get(value)
        uniform = {k for k, size in enumerate(shapes[value]) if size == 1}
        if eqn is None:
            return uniform
        if eqn.name == "broadcast_in_dim":
            inner = self._uniform_axes(eqn.inputs[0])
            varying = {k for i, k in enumerate(eqn.params["broadcast_dimensions"]) if i not in inner}
            return uniform | set(range(len(shapes[value]))) - varying
        if eqn.name in (*ARITHMETIC, *PASSES, *ROOTS):
            operands = [self._uniform_axes(v) for v in eqn.inputs if shapes[v]]
            return uniform | (set.intersection(*operands) if operands else set())
        return uniform

    def _extends(self, value: Value, eqn: Equation) -> bool:
        longer = self.chains.get(eqn.outputs[0])
        return longer is not None and longer.start == self.chains[value].start

    def _close(self, chain: _Chain) -> None:
        """Read a finished chain as a bias, if it begins with additions, and an affine, if it then multiplies."""
        steps, stream, begin = list(chain.steps), chain.stream, chain.start
        while steps and steps[0][1] == "add":
            position, _, operand = steps.pop(0)
            (begin,) = self.program.equations[position].outputs
            source = stream.sources[0][0]
            if self.producers[source].result == chain.start:
                bias = self._parameter(operand, chain, under_root=False)
                self.producers[source] = replace(self.producers[source], bias=bias)
        factors = [k for k, (_, name, _) in enumerate(steps) if name in ("mul", "div")]
        if not factors:
            return
        parts: dict[str, LeafView | None] = dict.fromkeys(("scale", "var", "mean", "bias"))
        for k, (_, name, operand) in enumerate(steps):
            if name in ("mul", "div"):
                parts["scale"] = parts["scale"] or self._parameter(operand, chain, under_root=False)
                parts["var"] = parts["var"] or self._parameter(operand, chain, under_root=True)
            else:
                # In a folded `x * m + (bias - mean * m)` the bias is the leaf that is not multiplied.
                addend = self._parameter(operand, chain, under_root=False, skip=("mul", "div"))
                addend = addend or self._parameter(operand, chain, under_root=False)
                parts["mean" if k < factors[0] else "bias"] = addend
        view = parts["scale"] or parts["var"]
        if view is None:
            return
        eqn = self.program.equations[steps[-1][0]]
        self.affines.append(
            Affine(
                name=stem(view.path),
                sources=stream.sources,
                channels=math.prod(self.program.shapes[chain.start][k] for k in stream.axes),
                position=steps[0][0],
                begin=begin,
                begin_axes=stream.axes,
                end=eqn.outputs[0],
                where=eqn.where,
                **parts,
            )
        )

    def _parameter(
        self, operand: Value, chain: _Chain, *, under_root: bool, skip: Sequence[str] = ()
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
        gate = producer.result
        while len(self.consumers[gate]) == 1 and gate != self.program.logits:
            (output, *_) = self.consumers[gate][0].outputs
            chain = self.chains.get(output)
            if chain is None or chain.start != producer.result:
                break
            gate = output
        own = [k for k, affine in enumerate(self.affines) if affine.end == gate]
        return replace(producer, gate=gate, affine=own[0] if own else None)


def dot_dims(eqn: Equation, side: int, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Output and input dimensions of the kernel operand of a `dot_general`: `(batch + free, contracting)`."""
    contract, batch = (tuple(dims[side]) for dims in eqn.params["dimension_numbers"])
    free = tuple(k for k in range(rank) if k not in (*contract, *batch))
    return (*batch, *free), contract


def find_channels(program: Program) -> tuple[tuple[Producer, ...], tuple[Affine, ...]]:
    """Producers and affines of a program, each in program order; a kernel used twice is `name` and `name#2`."""
    analysis = _Analysis(program)
    uses: dict[str, int] = defaultdict(int)
    producers = []
    for producer in analysis.producers:
        uses[producer.name] += 1
        use = uses[producer.name]
        producers.append(replace(producer, name=f"{producer.name}#{use}") if use > 1 else producer)
    return tuple(producers), tuple(analysis.affines)
