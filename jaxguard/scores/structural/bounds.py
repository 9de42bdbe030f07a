"""Lipschitz bounds of the channels of layers that were read from names and shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import programs
from jaxguard.errors import UnscorableError
from jaxguard.graph.pairing import Layer
from jaxguard.kernels import lipschitz
from jaxguard.scores.structural import norms as batch_norms
from jaxguard.scores.structural.forms import effective
from jaxguard.scores.structural.reading import NOT_UNDERSTOOD, Producer, Reading, read


def require_producers(reading: Reading) -> tuple[Producer, ...]:
    """The hidden layers of a reading.

    Raises:
        UnscorableError: there are none.
    """
    if reading.producers:
        return reading.producers
    unclear = [(name, why) for name, state, why in reading.accounts if state == NOT_UNDERSTOOD]
    told = f"; {len(unclear)} are not understood, such as {unclear[0][0]!r}: {unclear[0][1]}" if unclear else ""
    raise UnscorableError(
        f"expected hidden kernels (leaves of two or more axes) to score, got none among {len(reading.accounts)} "
        f"leaves{told}; is this a model's checkpoint, or its optimizer's or a table of embeddings?"
    )


def channel_bounds(leaves: Mapping[str, np.ndarray]) -> tuple[tuple[Layer, ...], list[np.ndarray]]:
    """Lipschitz bounds of every channel, `|gamma| / sqrt(var) * sigma_max(M)`, with structural pairs.

    Args:
        leaves: arrays by name, as a checkpoint holds them.

    Returns:
        Layers in module order, and `[C]` scores of each.

    Raises:
        UnscorableError: nothing can be scored.
    """
    producers = require_producers(read(leaves))
    used = {name: leaves[name] for producer in producers for name in batch_norms.leaves_of(producer)}
    return layers_of(producers), [np.asarray(score) for score in _compiled_bounds(producers, used)]


def layers_of(producers: Sequence[Producer]) -> tuple[Layer, ...]:
    """The layers of channels that producers and their norms are, in module order."""
    return tuple(Layer(p.stem if p.norm is None else f"{p.stem} -> {p.norm}", (), None, p.channels) for p in producers)


def kernels_of(producers: Sequence[Producer], leaves: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Effective weights by the name of their main leaf, one array for all layers of a stack; traceable.

    Args:
        producers: of a reading.
        leaves: arrays or tracers by name.

    Returns:
        `[C, fan-in, taps]` where the channels lie first in memory, else `[C, taps, fan-in]`; the layers of a stack
        follow one another in `C`.
    """
    found: dict[str, jax.Array] = {}
    for producer in producers:
        if producer.kernel in found:
            continue
        out, fan_in, taps = producer.axes
        stack = () if producer.stack is None else (producer.stack,)
        order = ((*stack, *out), fan_in, taps) if producer.is_channels_first else ((*stack, *out), taps, fan_in)
        kernel = effective(producer.form, leaves)
        sizes = [math.prod(kernel.shape[axis] for axis in axes) for axes in order]
        found[producer.kernel] = jnp.transpose(kernel, sum(order, ())).reshape(sizes)
    return found


def bounds_of(
    producers: tuple[Producer, ...],
    leaves: Mapping[str, jax.Array],
    norms: Mapping[str, jax.Array] = MappingProxyType({}),
) -> list[jax.Array]:
    """Lipschitz bounds of the producers' channels, for programs that are compiled around it.

    Args:
        producers: of a reading.
        leaves: arrays or tracers by name, those of the producers at least.
        norms: spectral norms `[C]` of kernels by name, where they are known; those kernels are not read.

    Returns:
        `[C]` scores of each producer.
    """

    def vector(name: str | None) -> jax.Array | None:
        return None if name is None else leaves[name].astype(jnp.float32).reshape(-1)

    unknown = [producer for producer in producers if producer.kernel not in norms]
    kernels = kernels_of(unknown, leaves)
    by_kernel = {producer.kernel: producer for producer in unknown}
    lying = {k for k, name in enumerate(kernels) if by_kernel[name].is_channels_first}
    computed = lipschitz.spectral_norms(list(kernels.values()), channels_first=lying)
    norms = {**norms, **dict(zip(kernels, computed, strict=True))}
    return [
        _own(norms[producer.kernel], producer) * lipschitz.affine_scales(vector(producer.scale), vector(producer.var))
        for producer in producers
    ]


def _own(norms: jax.Array, producer: Producer) -> jax.Array:
    """The norms of one layer of a stack."""
    if producer.stack is None:
        return norms
    return norms.reshape(producer.form.shape[producer.stack], -1)[producer.index]


_compiled_bounds = programs.jit(bounds_of, static_argnums=0)
