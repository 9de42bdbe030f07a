"""What a leaf is that is no kernel: bias, norm, statistic, table, counter, key; each with the words a report says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxguard.scores.structural import dialects
from jaxguard.scores.structural.forms import Leaf, Module
from jaxguard.scores.structural.names import spelled

_KERAS_NORMS = ("batch_normalization", "layer_normalization", "group_normalization", "unit_normalization")


def role_of(leaf: Leaf, module: Module) -> str | None:  # noqa: PLR0911, PLR0912  # one return per role
    """What a leaf is, in words.

    Args:
        leaf: no part of a form.
        module: the leaves of its module by part.

    Returns:
        Why it is not a layer; None for a leaf that may be a kernel.
    """
    part, last = leaf.words.part, leaf.words.last
    if dialects.TRAINING.intersection(leaf.words.module):
        return "state of an optimizer"
    if "original_module" in leaf.words.module:
        return "replaced by the trained copy of its module"
    if part.startswith("lora_embedding_"):
        return "low-rank factor of a table"
    if any(word == "rngs" or dialects.RANDOM.fullmatch(word) for word in (*leaf.words.module, part)) and (
        not leaf.is_floating
    ):
        return "key or counter of a random number generator"
    if leaf.dtype == "bool":
        return "mask or flag"
    if not leaf.is_floating and not (leaf.dtype in ("int8", "uint8") and len(leaf.shape) >= 2):
        return "counter" if leaf.numbers <= 1 else "whole numbers: indices or counters"
    if leaf.numbers == 0:
        return "empty"
    if leaf.numbers == 1 and len(leaf.shape) == 0:
        return "one number"
    if any(word.startswith("seed_generator") for word in leaf.words.module):
        return "key or counter of a random number generator"
    is_vector = sum(size > 1 for size in leaf.shape) <= 1
    if part.isdigit() and (keras := _keras_norm(leaf, module)):
        return keras
    if dialects.STATE_SPACE.fullmatch(part):
        return "parameter of a state space"
    if dialects.SLOPE.fullmatch(last):
        return "slope of an activation"
    if dialects.STATISTIC.fullmatch(part):
        return "running statistics"
    if dialects.COUNTER.fullmatch(part) and is_vector:
        return "counter"
    if part in ("weight_u", "weight_v", "kernel_u") and is_vector:
        return "vector of spectral norm"
    if len(leaf.shape) <= 1:
        return _vector(part, module)
    if dialects.BIAS.fullmatch(part):
        return "bias"
    if part == "weight" and len(leaf.shape) == 2 and dialects.NORM.fullmatch(last):
        return "scale of a norm or of a branch"
    if part in dialects.SCALES[:4] and ("weight" in module or "kernel" in module):
        return "scales of weights that are not used"
    if dialects.SCALE.fullmatch(part) and (part != "weight" and not part.isdigit()):
        return "scale of a norm or of a branch"
    return _table(leaf, module, is_vector, last)


def roles_of(specs: Mapping[str, Any]) -> dict[str, str | None]:
    """What all leaves of a file are that are no kernels, where something else says which kernels there are.

    Args:
        specs: `{name: what has a shape and a dtype}`.

    Returns:
        As `role_of`, by name.
    """
    modules: dict[tuple[str, ...], dict[str, Leaf]] = {}
    for name, spec in specs.items():
        leaf = Leaf(name, tuple(spec.shape), np.dtype(spec.dtype).name, spelled(name))
        modules.setdefault(leaf.words.module, {})[leaf.words.part] = leaf
    found = {leaf.name: role_of(leaf, module) for module in modules.values() for leaf in module.values()}
    return {name: found.get(name) for name in specs}


def _vector(part: str, module: Module) -> str:
    if dialects.BIAS.fullmatch(part):
        return "bias"
    if dialects.SCALE.fullmatch(part):
        if any(dialects.VARIANCE.fullmatch(one) for one in module):
            return "scale of a norm"
        return "scale of a norm or of a branch"
    return "vector"


def _table(leaf: Leaf, module: Module, is_vector: bool, last: str) -> str | None:
    part = leaf.words.part
    dialect = next((row for row in dialects.DIALECTS[:3] if _names_kernel(row, part)), None)
    if dialect is None and dialects.TABLE_PART.fullmatch(part):
        return "table: embeddings, positions or tokens"
    has_bias = any(dialects.BIAS.fullmatch(one) for one in module)
    if len(leaf.shape) == 2 and part in ("weight", "w", "0") and not has_bias and dialects.TABLE_MODULE.fullmatch(last):
        return "table: embeddings, positions or tokens"
    if dialect is None and is_vector:
        return "vector"
    return None


def _names_kernel(row: dialects.Dialect, part: str) -> bool:
    return re.fullmatch(row.kernel, part) is not None


def _keras_norm(leaf: Leaf, module: Module) -> str | None:
    """Of Keras 3, whose variables are numbered: gamma, beta, mean, variance; what a norm lacks is left out."""
    if not leaf.words.last.startswith(_KERAS_NORMS):
        return None
    if leaf.words.last.startswith("batch") and len(module) == 4:
        return ("scale of a norm", "bias", "running statistics", "running statistics")[int(leaf.words.part)]
    return "scale of a norm or bias"
