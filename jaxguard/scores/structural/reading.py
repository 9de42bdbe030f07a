"""From the leaves of a file to its layers, and to what every other leaf is."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxguard.scores.structural import candidates, heads, layout, norms, stacks
from jaxguard.scores.structural.candidates import NOT_A_LAYER, NOT_UNDERSTOOD, SCORED
from jaxguard.scores.structural.forms import PLAIN, Form, Leaf, Shape
from jaxguard.scores.structural.layout import Axes, Candidate
from jaxguard.scores.structural.names import in_order, spelled


@dataclass(frozen=True)
class Producer:
    """A weight that makes channels, and the BatchNorm taken to scale them; one layer.

    Attributes:
        stem: name of the module.
        kernel: name of the leaf that holds the weight, or most of it.
        axes: output channels, fan-in, and spatial taps of the effective weight, by axis of the leaf.
        form: how the effective weight is formed.
        evidence: what says how the axes lie.
        scale: leaf of the BatchNorm's scale, or None.
        var: leaf of its running variance, or None.
        norm: name of the BatchNorm, or None.
        stack: axis of stacked layers, or None.
        index: which of the stacked layers this is.
    """

    stem: str
    kernel: str
    axes: Axes
    form: Form
    evidence: str = ""
    scale: str | None = None
    var: str | None = None
    norm: str | None = None
    stack: int | None = None
    index: int = 0

    @property
    def is_channels_first(self) -> bool:
        """Whether the axes lie in this order: output channel, fan-in, taps."""
        order = sum(self.axes, ())
        return self.stack is None and order == tuple(range(len(order)))

    @property
    def module(self) -> tuple[str, ...]:
        """Words of the module's path."""
        return tuple(self.stem.split("."))

    @property
    def is_plain(self) -> bool:
        """Whether the weight is one whole leaf."""
        return self.form.kind == PLAIN and self.stack is None

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return math.prod(self.form.shape[axis] for axis in self.axes[0])


@dataclass(frozen=True)
class Reading:
    """What a file holds.

    Attributes:
        producers: the hidden layers, in module order.
        accounts: `(leaf name, state, reason)` of every leaf, in file order; states are `SCORED`, `NOT_A_LAYER`,
            `NOT_UNDERSTOOD`.
    """

    producers: tuple[Producer, ...]
    accounts: tuple[tuple[str, str, str], ...]


def read(specs: Mapping[str, Any]) -> Reading:
    """Read the layers of a network from the names, shapes and element types of its leaves.

    Args:
        specs: `{name: what has a shape and a dtype}`, names joined with `.` or `/`. The order of the modules is the
            mapping's, or that of the names where these are sorted, as in a safetensors file.

    Returns:
        The layers without the one that gives the logits, and an account of every leaf.

    Example:
        >>> found = read({"fc1.weight": np.ones((8, 4)), "fc1.bias": np.ones(8), "fc2.weight": np.ones((2, 8))})
        >>> [(one.stem, one.axes) for one in found.producers]
        [('fc1', ((0,), (1,), ()))]
        >>> [(name, state) for name, state, _ in found.accounts]
        [('fc1.weight', 'scored'), ('fc1.bias', 'not a layer'), ('fc2.weight', 'not a layer')]
    """
    return _read(tuple((name, tuple(spec.shape), np.dtype(spec.dtype).name) for name, spec in specs.items()))


@functools.lru_cache(maxsize=256)
def _read(specs: tuple[tuple[str, Shape, str], ...]) -> Reading:
    given = {name: Leaf(name, shape, dtype, spelled(name)) for name, shape, dtype in specs}
    leaves = {name: given[name] for name in in_order(given)}
    modules: dict[tuple[str, ...], dict[str, Leaf]] = {}
    for leaf in leaves.values():
        modules.setdefault(leaf.words.module, {})[leaf.words.part] = leaf
    stack = stacks.stacked({name: leaf for name, leaf in leaves.items() if leaf.is_floating})
    kernels, accounts = candidates.candidates(leaves, modules, stack)
    widths = frozenset(max(leaf.shape) for leaf in leaves.values() if leaf.shape and leaf.numbers == max(leaf.shape))
    made = []
    for one, found in zip(kernels, layout.layouts(kernels, widths), strict=True):
        if found.axes is None:
            accounts |= dict.fromkeys(one.form.leaves, (NOT_UNDERSTOOD, found.evidence))
        else:
            made += _producers(one, found.axes, found.evidence)
    paired = norms.paired(made, norms.found(modules))
    outputs = heads.outputs(paired)
    for producer in paired:
        is_output = producer in outputs
        for name in producer.form.leaves:
            accounts[name] = (
                (NOT_A_LAYER, "gives the logits: only hidden layers are scored")
                if is_output
                else (SCORED, _told(producer))
            )
        for name in () if is_output else (producer.scale, producer.var):
            if name is not None:
                accounts[name] = (SCORED, f"norm of {producer.stem}")
    listed = tuple((name, *accounts.get(name, (NOT_UNDERSTOOD, "no rule for this name"))) for name, *_ in specs)
    return Reading(tuple(one for one in paired if one not in outputs), listed)


def _told(producer: Producer) -> str:
    kind = "" if producer.form.kind == PLAIN else f"as the effective weight ({producer.form.kind}); "
    if producer.form.kind.startswith("low rank") and not producer.form.kind.endswith("alpha"):
        kind += "its scaling is not in the file and counts as 1; "
    stack = "" if producer.stack is None else f"layers stacked on axis {producer.stack}; "
    return f"{kind}{stack}{producer.evidence}"


def _producers(one: Candidate, axes: Axes, evidence: str) -> Sequence[Producer]:
    """A layer, or the layers of a stack; axes are then those of the leaf."""
    if one.stack is None:
        return [Producer(one.stem, one.form.leaves[0], axes, one.form, evidence)]
    kept = [axis for axis in range(len(one.form.shape)) if axis != one.stack]
    out, fan_in, taps = (tuple(kept[axis] for axis in group) for group in axes)
    return [
        Producer(
            f"{one.stem}[{k}]", one.form.leaves[0], (out, fan_in, taps), one.form, evidence, stack=one.stack, index=k
        )
        for k in range(one.form.shape[one.stack])
    ]
