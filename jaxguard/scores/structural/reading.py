"""From the leaves of a file to its layers, and to what every other leaf is."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxguard.scores.structural import dialects, layout, norms, stacks
from jaxguard.scores.structural.forms import PLAIN, Form, Leaf, Module, Shape, forms_of
from jaxguard.scores.structural.layout import Axes, Candidate
from jaxguard.scores.structural.names import in_order, spelled
from jaxguard.scores.structural.roles import role_of

SCORED, NOT_A_LAYER, NOT_UNDERSTOOD = "scored", "not a layer", "not understood"
"""What becomes of a leaf."""


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
    accounts: dict[str, tuple[str, str]] = {}
    stack = stacks.stacked({name: leaf for name, leaf in leaves.items() if leaf.is_floating})
    candidates = _candidates(leaves, modules, stack, accounts)
    widths = frozenset(max(leaf.shape) for leaf in leaves.values() if leaf.shape and leaf.numbers == max(leaf.shape))
    made = []
    for one, found in zip(candidates, layout.layouts(candidates, widths), strict=True):
        if found.axes is None:
            accounts |= dict.fromkeys(one.form.leaves, (NOT_UNDERSTOOD, found.evidence))
        else:
            made += _producers(one, found.axes, found.evidence)
    paired = norms.paired(made, norms.found(modules))
    output = _output(paired)
    for producer in paired:
        is_output = producer is output
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
    return Reading(tuple(one for one in paired if one is not output), listed)


def _told(producer: Producer) -> str:
    kind = "" if producer.form.kind == PLAIN else f"as the effective weight ({producer.form.kind}); "
    if producer.form.kind.startswith("low rank") and not producer.form.kind.endswith("alpha"):
        kind += "its scaling is not in the file and counts as 1; "
    stack = "" if producer.stack is None else f"layers stacked on axis {producer.stack}; "
    return f"{kind}{stack}{producer.evidence}"


def _candidates(
    leaves: Mapping[str, Leaf],
    modules: Mapping[tuple[str, ...], Module],
    stack: Mapping[str, int],
    accounts: dict[str, tuple[str, str]],
) -> list[Candidate]:
    """Kernels in module order; what the other leaves are goes into `accounts`."""
    forms: dict[str, Form] = {}
    parts: set[str] = set()
    for module in modules.values():
        found, refused = forms_of(module)
        forms |= {form.leaves[0]: form for form in found}
        parts |= {name for form in found for name in form.leaves[1:]}
        accounts |= {name: (NOT_UNDERSTOOD, why) for name, why in refused.items()}
    candidates = []
    is_haiku = any("~" in name for name in leaves) or not any(
        leaf.words.part in ("kernel", "weight") for leaf in leaves.values()
    )
    for name, leaf in leaves.items():
        if name in accounts or name in parts:
            continue
        if name in forms:
            one = _candidate(leaf, forms[name], modules, stack, is_haiku)
            candidates += [] if one is None else [one]
            continue
        role = role_of(leaf, modules[leaf.words.module]) or _bias_of_list(leaf, modules)
        if role is not None:
            accounts[name] = (NOT_A_LAYER, role)
        elif stack.get(name) == stacks.UNKNOWN:
            accounts[name] = (
                NOT_UNDERSTOOD,
                "layout not known: layers are stacked on one of two axes, sizes do not tell which",
            )
        elif name in stack and len(leaf.shape) == 2:
            accounts[name] = (NOT_A_LAYER, "vectors of stacked layers")
        elif not leaf.is_floating:
            accounts[name] = (NOT_UNDERSTOOD, "integers without their scales")
        elif one := _candidate(leaf, Form(PLAIN, leaf.words.part, (name,), leaf.shape), modules, stack, is_haiku):
            candidates.append(one)
        else:
            accounts[name] = (NOT_UNDERSTOOD, "layout not known: no dialect has a kernel of this name")
    stems = Counter(one.stem for one in candidates)
    return [one if stems[one.stem] == 1 else replace(one, stem=f"{one.stem}.{one.form.part}") for one in candidates]


def _bias_of_list(leaf: Leaf, modules: Mapping[tuple[str, ...], Module]) -> str | None:
    """A vector with as many axes as its kernel, behind it in a list: stax, Equinox."""
    part = leaf.words.part
    if part.isdigit() and sum(size > 1 for size in leaf.shape) <= 1:
        before = modules[leaf.words.module].get(str(int(part) - 1))
        if before is not None and leaf.numbers in before.shape:
            return "bias"
    return None


def _candidate(
    leaf: Leaf, form: Form, modules: Mapping[tuple[str, ...], Module], stack: Mapping[str, int], is_haiku: bool
) -> Candidate | None:
    module, axis = modules[leaf.words.module], stack.get(leaf.name)
    words = leaf.words.module
    is_fused = any(dialects.EXPERTS.fullmatch(word) for word in words) and len(form.shape) - (axis is not None) == 3
    row = None
    for one in dialects.DIALECTS:
        if re.fullmatch(one.kernel, form.part) is None:
            continue
        if (one.name == "Haiku" and not is_haiku) or (one.name == "fused experts" and not is_fused):
            continue
        row = one
        break
    if row is None:
        row = dialects.DIALECTS[-1] if not words else None
        if row is None:
            return None
    shape = tuple(size for k, size in enumerate(form.shape) if k != axis)
    one = Candidate(
        words,
        leaf.words.stem or leaf.name,
        form,
        shape,
        (row.name, re.sub(r"\d+", "", form.part), len(shape)),
        row.name,
        row.out_first,
        row.taps_first,
        bias=_bias(form, leaf, modules, axis),
        width=norms.width_behind(words, modules),
        stack=axis,
    )
    if _keras_number(leaf, module):
        one = replace(one, out_first=False, taps_first=True, dialect="Flax or Keras", kind=("Keras 3", "", len(shape)))
    if fixed := _fixed(one, leaf, is_fused):
        one = replace(one, fixed=fixed)
    if one.dialect == "Haiku" and "~" not in leaf.name and len(shape) == 2 and not _is_haiku_module(leaf.words.last):
        one = replace(one, out_first=None)  # `w` is everybody's word
    return one


def _is_haiku_module(last: str) -> bool:
    return (
        re.fullmatch(r"(.*_)?(linear|conv\dd?|conv\d_d|conv\w*|mlp|logits|query|key|value|embed\w*)(_\d+)?", last)
        is not None
    )


def _keras_number(leaf: Leaf, module: Module) -> bool:
    """Whether it is a numbered variable of Keras 3."""
    return leaf.words.part.isdigit() and f"vars/{leaf.words.part}" in leaf.name.replace(".", "/")


def _bias(form: Form, leaf: Leaf, modules: Mapping[tuple[str, ...], Module], axis: int | None) -> int:
    """Length of the bias beside a kernel, 0 without."""
    part, module = form.part, modules[leaf.words.module]
    wanted = [part.replace("weight", "bias"), "bias", "biases", "b"]
    if part.isdigit():
        wanted = [str(int(part) + 1)]
    places = [module.get(one) for one in wanted if one != part]
    places += [modules.get((*leaf.words.module, part), {}).get("bias")]  # gate_up_proj_bias
    for bias in places:
        if bias is not None and bias.shape:
            shape = tuple(size for k, size in enumerate(bias.shape) if k != axis)
            if sum(size > 1 for size in shape) <= 1 or len(shape) == 1:
                return max(shape, default=0)
            return 0
    return 0


def _fixed(one: Candidate, leaf: Leaf, is_fused: bool) -> Axes | None:
    """Axes where a module's or part's name leaves nothing to infer."""
    rank, part, last = len(one.shape), one.form.part, leaf.words.last
    axes = tuple(range(rank))
    in_front = one.dialect in ("Flax or Keras", "Keras 3")
    is_depthwise = part == "depthwise_kernel" or (
        part == "0" and re.match(r"(.*_)?(depthwise_conv|separable_conv)", last) is not None
    )
    if is_depthwise and rank >= 3:
        return axes[-2:], (), axes[:-2]
    if is_fused and rank == 3:
        first = one.bias and one.bias == one.shape[1] != one.shape[2]
        return ((0, 1), (2,), ()) if first else ((0, 2), (1,), ())
    if in_front and rank == 3 and dialects.ATTENTION.fullmatch(last) and one.bias == 0:
        return axes[1:], axes[:1], ()
    if in_front and rank == 3 and dialects.ATTENTION_OUT.fullmatch(last):
        return axes[2:], axes[:2], ()
    if in_front and rank >= 3 and dialects.TRANSPOSED.fullmatch(last) and leaf.words.last.islower():
        return (rank - 2,), (rank - 1,), axes[:-2]  # Keras; Flax writes ConvTranspose_0
    return None


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


def _output(producers: Sequence[Producer]) -> Producer | None:
    """The dense layer that gives the logits: it feeds no other, and is called like one, or is the last of the file."""
    fed = {math.prod(p.form.shape[axis] for axis in p.axes[1]) for p in producers}
    last = [
        p for p in producers if len(p.form.shape) == 2 and p.channels not in fed and p.norm is None and p.stack is None
    ]
    named = [p for p in last if dialects.OUTPUT.fullmatch(_word(p.stem))]
    return min(named or [p for p in last if p is producers[-1]], key=lambda p: p.channels, default=None)


def _word(stem: str) -> str:
    """Last word of a module that is no number: `classifier` of `classifier.1`."""
    return next((word for word in reversed(stem.split(".")) if not word.isdigit()), "")
