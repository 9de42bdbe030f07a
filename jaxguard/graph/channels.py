"""Where a model's channels are: producers (convolutions, dense layers) and channelwise affines (BatchNorm)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxguard.graph.program import Equation, Value
from jaxguard.graph.views import LeafView


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

    def dims(self, rank: int) -> KernelDims:
        """Dimensions of its kernel, an operand of so many dimensions."""
        return kernel_dims(self.equation, self.equation.inputs.index(self.operand), rank)


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


class KernelDims(NamedTuple):
    """Dimensions of a kernel operand.

    Attributes:
        outputs: output channels; for a product of matrices, batch dimensions first.
        inputs: fan-in.
        taps: spatial positions of a convolution.
    """

    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    taps: tuple[int, ...]


def is_convolution(eqn: Equation) -> bool:
    """Whether an equation is a convolution."""
    return eqn.name == "conv_general_dilated"


def kernel_dims(eqn: Equation, side: int, rank: int) -> KernelDims:
    """Dimensions of the kernel of a convolution or product of matrices.

    Args:
        eqn: the convolution or product.
        side: which of its operands is the kernel.
        rank: number of the kernel's dimensions.
    """
    numbers = eqn.params["dimension_numbers"]
    if is_convolution(eqn):
        out_dim, in_dim, *taps = numbers.rhs_spec
        return KernelDims((out_dim,), (in_dim,), tuple(taps))
    contract, batch = (tuple(dims[side]) for dims in numbers)
    free = tuple(k for k in range(rank) if k not in (*contract, *batch))
    return KernelDims((*batch, *free), contract, ())


def result_channel_dims(eqn: Equation, side: int, dims: KernelDims, rank: int) -> tuple[int, ...]:
    """Dimensions of the result that the kernel's output channels run over.

    Args:
        eqn: the convolution or product.
        side: which of its operands is the kernel.
        dims: of the kernel.
        rank: number of the result's dimensions.
    """
    numbers = eqn.params["dimension_numbers"]
    if is_convolution(eqn):
        return (numbers.out_spec[1],)
    # A product has its batch dimensions first, then the free ones of the left operand, then those of the right.
    batch = len(numbers[1][0])
    free = len(dims.outputs) - batch
    first = batch if side == 0 else rank - free
    return (*range(batch), *range(first, first + free))


def kernel_matrix(producer: Producer, kernel: jax.Array) -> jax.Array:
    """A producer's kernel as its equation reads it, laid out as `[C, T, D]`: channel, tap, fan-in per group."""
    out_dims, in_dims, taps = producer.dims(kernel.ndim)
    if producer.is_convolution:
        # [taps..., D, C] -> [T, D, C] -> [C, T, D]
        kernel = jnp.transpose(kernel, (*taps, *in_dims, *out_dims))
        return jnp.moveaxis(kernel.reshape(-1, *kernel.shape[-2:]), -1, 0)
    return jnp.transpose(kernel, (*out_dims, *in_dims)).reshape(producer.channels, 1, -1)
