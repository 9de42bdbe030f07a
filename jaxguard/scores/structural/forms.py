"""How a module's weight is formed from its leaves: as it is, or weight norm, spectral norm, masks, low rank, scales.

What a network multiplies with is the effective weight, so that is what is scored. Forms are found from names and
shapes; `effective` then computes them and can be traced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard.scores.structural import dialects
from jaxguard.scores.structural.dialects import ADAPTER, SCALES
from jaxguard.scores.structural.names import Spelled

Shape = tuple[int, ...]

PLAIN = "as stored"


@dataclass(frozen=True)
class Leaf:
    """One leaf of a file.

    Attributes:
        name: in the file.
        shape: its own.
        dtype: name of its element type.
        words: what its name says.
    """

    name: str
    shape: Shape
    dtype: str
    words: Spelled

    @property
    def numbers(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def is_keras_variable(self) -> bool:
        """Whether it is a numbered variable of Keras 3."""
        return self.words.part.isdigit() and f"vars/{self.words.part}" in self.name.replace(".", "/")

    @property
    def is_floating(self) -> bool:
        """Whether it holds floating-point numbers."""
        return bool(jnp.issubdtype(np.dtype(self.dtype), jnp.floating))


Module = Mapping[str, Leaf]
"""Leaves of a module by part."""


@dataclass(frozen=True)
class Form:
    """A weight, and the leaves it is formed from.

    Attributes:
        kind: `as stored`, `weight norm`, `spectral norm`, `mask`, `low rank`, `scaled`.
        part: which part of its module it is, `weight` for all parametrisations of torch.
        leaves: names, in the order that `effective` takes them; the main one first.
        shape: of the effective weight.
    """

    kind: str
    part: str
    leaves: tuple[str, ...]
    shape: Shape


def forms_of(module: Module) -> tuple[list[Form], dict[str, str]]:
    """Weights of a module that are formed from several leaves.

    Args:
        module: its leaves by part.

    Returns:
        The forms, and why other leaves cannot be used, by name.
    """
    forms, refused = list[Form](), dict[str, str]()
    for part, leaf in module.items():
        base, _, tail = part.rpartition("_")
        if tail == "v" and f"{base}_g" in module and len(leaf.shape) >= 2:
            forms.append(Form("weight norm", base, (leaf.name, module[f"{base}_g"].name), leaf.shape))
        elif tail == "orig":
            _of_original(module, base, leaf, forms, refused)
        elif tail in ("sigma", "gain") and base in module:
            kind = "spectral norm of Flax" if tail == "sigma" else "weight norm of Flax"
            forms.append(Form(kind, base, (module[base].name, leaf.name), module[base].shape))
    if packed := next((part for part in module if dialects.packed(part) and not _is_int8(part, module)), None):
        why = f"{dialects.packed(packed)}; dequantise the checkpoint to have them scored"
        parts = (part for part in module if dialects.packed(part) or part in SCALES or _is_zero_point(part))
        return forms, refused | {module[part].name: why for part in parts}
    _of_adapters(module, forms, refused)
    taken = {name for form in forms for name in form.leaves}
    for part in ("weight", "kernel", "w"):
        leaf = module.get(part)
        if leaf is None or leaf.name in taken or len(leaf.shape) < 2 or leaf.dtype not in ("int8", *_FLOAT8):
            continue
        scale = next((module[one] for one in SCALES if one in module and module[one].is_floating), None)
        if any(_is_zero_point(one) for one in module):
            refused[leaf.name] = "integers with zero points; dequantise the checkpoint to have them scored"
        elif scale is not None and _fits(scale.shape, leaf.shape, part):
            kind = "scaled by 1/127" if scale.words.part == "SCB" else "scaled"
            forms.append(Form(kind, part, (leaf.name, scale.name), leaf.shape))
        elif leaf.dtype == "int8":
            refused[leaf.name] = "integers without their scales"
    return forms, refused


def _is_int8(part: str, module: Module) -> bool:
    """Whether it is the scale of an int8 weight of bitsandbytes, which is not packed."""
    return part == "SCB" and "weight" in module


def _of_adapters(module: Module, forms: list[Form], refused: dict[str, str]) -> None:
    """Adapters of the module's weight; one whose product is not formed here leaves the weight unknown."""
    low_rank = _low_rank(module)
    factors = [leaf for part, leaf in module.items() if part.startswith("lora_")]
    others = [leaf for part, leaf in module.items() if ADAPTER.fullmatch(part)]
    bases = [module[part] for part in ("weight", "kernel", "w") if part in module]
    if others:
        why = f"changed by an adapter ({others[0].words.part}) whose product is not formed; merge it into the weights"
        refused |= {leaf.name: why for leaf in (*bases, *factors, *others)}
    elif low_rank is not None:
        forms.append(low_rank)
    elif factors:
        why = "low-rank factors that do not fit together; merge them into the weights"
        refused |= {leaf.name: why for leaf in (*bases, *factors)}


_FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3", "float8_e4m3fnuz", "float8_e5m2fnuz")


def _is_zero_point(part: str) -> bool:
    return "zero_point" in part or part.endswith("zeros")


def _of_original(module: Module, base: str, leaf: Leaf, forms: list[Form], refused: dict[str, str]) -> None:
    left, right, mask = (module.get(f"{base}_{tail}") for tail in ("u", "v", "mask"))
    if mask is not None and mask.shape == leaf.shape:
        forms.append(Form("mask", base, (leaf.name, mask.name), leaf.shape))
    elif left is not None and right is not None and len(leaf.shape) >= 2:
        # u is as long as the axis that was taken for the rows, which is 1 for transposed convolutions.
        if left.numbers in leaf.shape[:2] and left.numbers * right.numbers == leaf.numbers:
            forms.append(Form("spectral norm", base, (leaf.name, left.name, right.name), leaf.shape))
        else:
            refused[leaf.name] = "spectral norm whose vectors do not fit the weight"
    elif len(leaf.shape) >= 2:
        refused[leaf.name] = "a parametrisation whose function the file does not hold"


def _low_rank(module: Module) -> Form | None:
    torch, flax = (module.get("lora_A"), module.get("lora_B")), (module.get("lora_a"), module.get("lora_b"))
    for (down, up), part, parts in ((torch, "weight", ("weight",)), (flax, "kernel", ("kernel", "w"))):
        if down is None or up is None or min(len(down.shape), len(up.shape)) < 2:
            continue
        is_torch = part == "weight"
        if is_torch:  # of a convolution: [r, in, k, k] and [out, r, 1, 1]
            rank, shape = down.shape[0], (up.shape[0], *down.shape[1:])
            fits = up.numbers == up.shape[0] * rank and len(up.shape) == len(down.shape)
        else:
            rank, shape = down.shape[-1], (*down.shape[:-1], up.shape[-1])
            fits = up.shape[0] == rank and len(down.shape) == len(up.shape) == 2
        base = next((module[one] for one in parts if one in module), None)
        if not fits or (base is not None and base.shape != shape):
            continue
        alpha, length = module.get("alpha"), module.get("lora_magnitude_vector")
        if length is not None and (base is None or length.numbers != shape[0]):
            continue
        names = [one.name for one in (down, up, base, length, alpha) if one is not None]
        kind = "low rank" + (" of torch" if is_torch else "") + (" on a base" if base else "")
        kind += (", magnitude" if length else "") + (", alpha" if alpha else "")
        return Form(kind, base.words.part if base else part, tuple(names), shape)
    return None


def _fits(scale: Shape, weight: Shape, part: str) -> bool:
    """Whether scales are one number, one per output channel, or one per block of the weight."""
    if math.prod(scale) in (1, weight[_scaled_axis(part)]) and len(scale) != len(weight):
        return True
    return len(scale) == len(weight) and all(0 < small <= size for small, size in zip(scale, weight, strict=True))


def _scaled_axis(part: str) -> int:
    """The output axis, along which a vector of scales lies: torch's first, the others' last."""
    return 0 if part == "weight" else -1


def effective(form: Form, leaves: Mapping[str, jax.Array]) -> jax.Array:  # noqa: PLR0911  # one return per form
    """The effective weight in float32; traceable.

    Args:
        form: how it is formed.
        leaves: arrays or tracers by name.

    Returns:
        Of shape `form.shape`.
    """
    arrays = [leaves[name].astype(jnp.float32) for name in form.leaves]
    main, rest = arrays[0], arrays[1:]
    if form.kind == "weight norm":
        # g has a 1 for every axis over which v is normalised.
        axes = (
            tuple(axis for axis, size in enumerate(rest[0].shape) if size == 1) if rest[0].ndim == main.ndim else None
        )
        length = jnp.sqrt(jnp.sum(jnp.square(main), axis=axes, keepdims=True))
        return main * (rest[0].reshape(rest[0].shape or (1,) * main.ndim) / jnp.where(length == 0, 1, length))
    if form.kind == "weight norm of Flax":  # one length per feature, which is the last axis
        length = jnp.sqrt(jnp.sum(jnp.square(main), axis=tuple(range(main.ndim - 1)), keepdims=True))
        return main * (rest[0].reshape((1,) * (main.ndim - 1) + (-1,)) / jnp.where(length == 0, 1, length))
    if form.kind == "spectral norm of Flax":
        return main / jnp.where(rest[0] == 0, 1, rest[0]).reshape((1,) * main.ndim)
    if form.kind == "spectral norm":
        rows = 0 if rest[0].size == main.shape[0] else 1
        matrix = jnp.moveaxis(main, rows, 0).reshape(main.shape[rows], -1)
        sigma = rest[0].reshape(-1) @ jnp.matmul(matrix, rest[1].reshape(-1))
        return main / jnp.where(sigma == 0, 1, sigma)
    if form.kind == "mask":
        return main * rest[0]
    if form.kind.startswith("scaled"):
        scale = _spread(rest[0], main.shape, _scaled_axis(form.part))
        return main * scale / (127 if form.kind == "scaled by 1/127" else 1)
    if form.kind.startswith("low rank"):
        return _product(form, main, rest)
    return main


def _product(form: Form, down: jax.Array, rest: Sequence[jax.Array]) -> jax.Array:
    """`base + alpha / r * B A`; without alpha in the file its factor counts as 1. DoRA gives its rows their lengths."""
    is_torch = "of torch" in form.kind
    left, right = (rest[0], down) if is_torch else (down, rest[0])
    rank = down.shape[0] if is_torch else down.shape[1]
    change = jnp.matmul(left.reshape(-1, rank), right.reshape(rank, -1)).reshape(form.shape)
    if form.kind.endswith("alpha"):
        change = change * (rest[-1].reshape((1,) * change.ndim) / rank)
    whole = rest[1] + change if "on a base" in form.kind else change
    if "magnitude" not in form.kind:
        return whole
    rows = whole.reshape(whole.shape[0], -1)
    length = jnp.sqrt(jnp.sum(jnp.square(rows), axis=1, keepdims=True))
    return (rows * (rest[2].reshape(-1, 1) / jnp.where(length == 0, 1, length))).reshape(whole.shape)


def _spread(scale: jax.Array, shape: Shape, axis: int) -> jax.Array:
    """Scales beside the weight they belong to."""
    if scale.size == 1:
        return scale.reshape((1,) * len(shape))
    if scale.ndim != len(shape):
        return jnp.expand_dims(scale.reshape(-1), tuple(k for k in range(len(shape)) if k != axis % len(shape)))
    for k, size in enumerate(shape):  # one scale per block; the last block may be cut short
        if scale.shape[k] not in (1, size):
            block = -(-size // scale.shape[k])
            scale = jnp.repeat(scale, block, axis=k)[(slice(None),) * k + (slice(0, size),)]
    return scale
