"""Channels of a network nobody described: producers and norms told from the names and shapes of a checkpoint's leaves.

Names say which leaf is a kernel and how its axes lie; a BatchNorm belongs to the kernel of the same width before it,
in the order of the modules. That is a reading of conventions, not of the network: where a BatchNorm precedes its
convolution, or two branches interleave, a kernel may be scored with a neighbour's norm. Whoever knows the architecture
should say so; the channel graph then takes this module's place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard.errors import UnscorableError
from jaxguard.graph.pairing import Layer
from jaxguard.kernels import lipschitz

Shape = tuple[int, ...]

_SCALES = ("weight", "scale", "gamma")
_VARIANCES = ("running_var", "var", "moving_variance", "moving_var")
_INPUT_FIRST = ("kernel", "depthwise_kernel", "pointwise_kernel", "depthwise_weight")
_ATTENTION = ("query", "key", "value")
_TABLES = re.compile(r"embed(?!\.proj)|position|pos_|token|relative|lm_head")
_OUTPUTS = re.compile(r"head|fc|classifier|linear|logits|out|softmax|predictions", re.IGNORECASE)


@dataclass(frozen=True)
class Producer:
    """A kernel that makes channels, and the BatchNorm taken to scale them.

    Attributes:
        stem: name of the module, the kernel's name without its last part.
        kernel: name of the leaf.
        axes: output channel, fan-in, and spatial taps of the kernel, by axis.
        scale: leaf of the BatchNorm's scale, or None.
        var: leaf of its running variance, or None.
        norm: name of the BatchNorm, or None.
    """

    stem: str
    kernel: str
    axes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    scale: str | None = None
    var: str | None = None
    norm: str | None = None

    @property
    def is_channels_first(self) -> bool:
        """Whether the axes lie in this order: output channel, fan-in, taps."""
        order = sum(self.axes, ())
        return order == tuple(range(len(order)))

    def channels(self, shapes: Mapping[str, Shape]) -> int:
        """Number of output channels, from the shapes of the leaves."""
        return math.prod(shapes[self.kernel][axis] for axis in self.axes[0])


@dataclass(frozen=True)
class _Norm:
    stem: str
    width: int
    scale: str | None
    var: str


def find_producers(shapes: Mapping[str, Shape]) -> tuple[Producer, ...]:
    """Kernels and their norms, from names and shapes alone.

    Args:
        shapes: leaf name -> shape, names joined with `.` or `/`. The order of the modules is the mapping's, or that of
            the names where these are sorted, as in a safetensors file.

    Returns:
        The producers, without the layer that gives the logits.

    Raises:
        UnscorableError: there is no kernel but that one.

    Example:
        >>> shapes = {"conv1.weight": (8, 3, 3, 3), "bn1.weight": (8,), "bn1.running_var": (8,), "fc.weight": (2, 8)}
        >>> [(producer.stem, producer.norm) for producer in find_producers(shapes)]
        [('conv1', 'bn1')]
    """
    names = list(shapes)
    if names == sorted(names):
        names.sort(key=_natural)
    parts = {name: _split(name) for name in names}
    norms = [norm for norm in (_norm(stem, names, parts, shapes) for stem in _stems(parts)) if norm]
    kernels = [
        Producer(parts[name][0] or name, name, _axes(name, parts[name], shapes))
        for name in names
        if len(shapes[name]) >= 2 and min(shapes[name]) > 0 and not _TABLES.search(name)
    ]
    paired = _paired(kernels, norms, shapes)
    output = _output(paired, shapes)
    found = tuple(producer for producer in paired if producer is not output)
    if not found:
        raise UnscorableError(
            f"expected hidden kernels (leaves of two or more axes) to score, got none among {len(shapes)} leaves; "
            "is this a model's checkpoint, or its optimizer's or a table of embeddings?"
        )
    return found


def channel_bounds(leaves: Mapping[str, np.ndarray]) -> tuple[tuple[Layer, ...], list[np.ndarray]]:
    """Lipschitz bounds of every channel, `|gamma| / sqrt(var) * sigma_max(M)`, with structural pairs.

    Args:
        leaves: arrays by name, as a checkpoint holds them.

    Returns:
        Layers in module order, and `[C]` scores of each.

    Raises:
        UnscorableError: nothing can be scored.
    """
    numbers = {name: leaf for name, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.floating)}
    producers = find_producers({name: leaf.shape for name, leaf in numbers.items()})
    used = {name: numbers[name] for p in producers for name in (p.kernel, p.scale, p.var) if name is not None}
    scores = [np.asarray(score) for score in _compiled_bounds(producers, used)]
    return layers_of(producers, {name: leaf.shape for name, leaf in used.items()}), scores


def layers_of(producers: Sequence[Producer], shapes: Mapping[str, Shape]) -> tuple[Layer, ...]:
    """The layers of channels that producers and their norms are, in module order."""
    return tuple(
        Layer(p.stem if p.norm is None else f"{p.stem} -> {p.norm}", (), None, p.channels(shapes)) for p in producers
    )


def bounds_of(
    producers: tuple[Producer, ...],
    leaves: Mapping[str, jax.Array],
    norms: Mapping[str, jax.Array] = MappingProxyType({}),
) -> list[jax.Array]:
    """Lipschitz bounds of the producers' channels, for programs that are compiled around it.

    Args:
        producers: of `find_producers`.
        leaves: arrays or tracers by name, those of the producers at least.
        norms: spectral norms `[C]` of kernels by name, where they are known; those kernels are not read.

    Returns:
        `[C]` scores of each producer.
    """

    def read(name: str | None) -> jax.Array | None:
        return None if name is None else leaves[name].astype(jnp.float32)

    unknown, kernels = [producer for producer in producers if producer.kernel not in norms], []
    for producer in unknown:
        out, fan_in, taps = producer.axes
        order = (out, fan_in, taps) if producer.is_channels_first else (out, taps, fan_in)
        kernel = leaves[producer.kernel].astype(jnp.float32)
        sizes = [math.prod(kernel.shape[axis] for axis in axes) for axes in order]
        kernels.append(jnp.transpose(kernel, sum(order, ())).reshape(sizes))
    lying = {number for number, producer in enumerate(unknown) if producer.is_channels_first}
    computed = lipschitz.spectral_norms(kernels, channels_first=lying)
    norms = {**norms, **{producer.kernel: norm for producer, norm in zip(unknown, computed, strict=True)}}
    return [
        norms[producer.kernel] * lipschitz.affine_scales(read(producer.scale), read(producer.var))
        for producer in producers
    ]


_compiled_bounds = jax.jit(bounds_of, static_argnums=0)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key by which `conv10` follows `conv9`."""
    pieces = re.findall(r"(\d+)|(\D+)", name)
    return [(0, int(number), "") if number else (1, 0, text) for number, text in pieces]


def _split(name: str) -> tuple[str, str]:
    """Module and leaf: `layer1.0.conv1`, `weight`."""
    stem, _, leaf = name.replace("/", ".").rpartition(".")
    for collection in ("params.", "batch_stats."):
        stem = stem.removeprefix(collection)
    return stem, leaf


def _stems(parts: Mapping[str, tuple[str, str]]) -> Iterable[str]:
    return dict.fromkeys(stem for stem, _ in parts.values())


def _norm(
    stem: str, names: Sequence[str], parts: Mapping[str, tuple[str, str]], shapes: Mapping[str, Shape]
) -> _Norm | None:
    """The BatchNorm called `stem`, if that is one: it has a running variance."""
    found = {parts[name][1]: name for name in names if parts[name][0] == stem and len(shapes[name]) == 1}
    if stem.endswith("vars") and len(found) == 4:  # Keras 3: gamma, beta, mean, variance
        found = {"gamma": found["0"], "moving_variance": found["3"]} if {"0", "3"} <= found.keys() else {}
    var = next((found[leaf] for leaf in _VARIANCES if leaf in found), None)
    if var is None:
        return None
    scale = next((found[leaf] for leaf in _SCALES if leaf in found), None)
    return _Norm(stem, shapes[var][0], scale, var)


def _axes(
    name: str, parts: tuple[str, str], shapes: Mapping[str, Shape]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Output, fan-in and tap axes of a kernel: torch's `OI...`, or `...IO` as in Flax and Keras."""
    stem, leaf = parts
    rank = len(shapes[name])
    axes = tuple(range(rank))
    if leaf == "depthwise_kernel":
        return axes[-2:], (), axes[:-2]
    if leaf in _INPUT_FIRST or (leaf.isdigit() and stem.endswith("vars")) or _ends_in_bias(name, stem, shapes):
        module = stem.rpartition(".")[-1]
        if rank == 3 and module in _ATTENTION:  # [D, heads, dim]
            return axes[1:], axes[:1], ()
        if rank == 3 and module in ("out", "attn_out"):  # [heads, dim, D]
            return axes[2:], axes[:2], ()
        return axes[-1:], axes[-2:-1], axes[:-2]
    return axes[:1], axes[1:2], axes[2:]


def _ends_in_bias(name: str, stem: str, shapes: Mapping[str, Shape]) -> bool:
    """Whether a vector beside the kernel has the size of its last axis and of no other."""
    shape = shapes[name]
    separator = name[len(stem)] if name.startswith(stem) and stem else "."
    beside = {shapes[other] for other in (f"{stem}{separator}bias", f"{stem}{separator}b") if other in shapes}
    return shape[0] != shape[-1] and (shape[-1],) in beside and (shape[0],) not in beside


def _paired(kernels: Sequence[Producer], norms: Sequence[_Norm], shapes: Mapping[str, Shape]) -> list[Producer]:
    """Each norm with the first kernel of its width that is still free, among modules of one parent."""
    waiting: dict[str, list[_Norm]] = {}
    for norm in norms:
        waiting.setdefault(_parent(norm.stem), []).append(norm)
    found = []
    for kernel in kernels:
        queue = waiting.get(_parent(kernel.stem), [])
        if queue and queue[0].width == kernel.channels(shapes) and _may_follow(kernel.stem, queue[0].stem):
            norm = queue.pop(0)
            found.append(replace(kernel, scale=norm.scale, var=norm.var, norm=norm.stem))
        else:
            found.append(kernel)
    return found


def _parent(stem: str) -> str:
    return stem.removesuffix(".vars").rpartition(".")[0]


def _may_follow(kernel: str, norm: str) -> bool:
    """In a sequence whose modules are numbered, a norm follows its kernel at once."""
    first, second = kernel.rpartition(".")[-1], norm.rpartition(".")[-1]
    return int(second) == int(first) + 1 if first.isdigit() and second.isdigit() else True


def _output(producers: Sequence[Producer], shapes: Mapping[str, Shape]) -> Producer | None:
    """The dense layer that gives the logits: it feeds no other, is called like one, and is the narrowest."""
    fed = {math.prod(shapes[p.kernel][axis] for axis in p.axes[1]) for p in producers}
    last = [p for p in producers if len(shapes[p.kernel]) == 2 and p.channels(shapes) not in fed and p.norm is None]
    return min(last, key=lambda p: (not _OUTPUTS.search(p.stem), p.channels(shapes)), default=None)
