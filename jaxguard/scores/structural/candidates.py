"""The kernels among the leaves of a file, each with what is known of its layout; what the other leaves are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from jaxguard.scores.structural import dialects, norms, stacks
from jaxguard.scores.structural.forms import PLAIN, Form, Leaf, Module, Shape, forms_of
from jaxguard.scores.structural.layout import MOST_TAPS, Axes, Candidate
from jaxguard.scores.structural.roles import role_of

SCORED, NOT_A_LAYER, NOT_UNDERSTOOD = "scored", "not a layer", "not understood"
"""What becomes of a leaf."""

_OF_LIBRARIES = ("weight", "kernel", "w")

Modules = Mapping[tuple[str, ...], Module]


def candidates(
    leaves: Mapping[str, Leaf], modules: Modules, stack: Mapping[str, int]
) -> tuple[list[Candidate], dict[str, tuple[str, str]]]:
    """Find the kernels.

    Args:
        leaves: by name, in the order of their modules.
        modules: the same by module and part.
        stack: axis of stacked layers by name, see `stacks.stacked`.

    Returns:
        The kernels in module order, and `(state, reason)` of leaves that are none, by name.
    """
    forms, accounts = dict[str, Form](), dict[str, tuple[str, str]]()
    parts: set[str] = set()
    for module in modules.values():
        found, refused = forms_of(module)
        forms |= {form.leaves[0]: form for form in found}
        parts |= {name for form in found for name in form.leaves[1:]}
        accounts |= {name: (NOT_UNDERSTOOD, why) for name, why in refused.items()}
    is_haiku = any("~" in name for name in leaves) or not any(
        leaf.words.part in ("kernel", "weight") for leaf in leaves.values()
    )
    is_scratch = not any(leaf.words.module and leaf.words.part in _OF_LIBRARIES for leaf in leaves.values())
    kernels = []
    for name, leaf in leaves.items():
        if name in accounts or name in parts:
            continue
        form = forms.get(name)
        if form is None and (other := _account(leaf, modules, stack)) is not None:
            accounts[name] = other
            continue
        form = form or Form(PLAIN, leaf.words.part, (name,), leaf.shape)
        one = _candidate(leaf, form, modules, stack, is_haiku=is_haiku, is_scratch=is_scratch)
        if isinstance(one, str):
            accounts |= dict.fromkeys(form.leaves, (NOT_UNDERSTOOD, f"layout not known: {one}"))
        else:
            kernels.append(one)
    stems = Counter(one.stem for one in kernels)
    kernels = [one if stems[one.stem] == 1 else replace(one, stem=f"{one.stem}.{one.form.part}") for one in kernels]
    return kernels, accounts


def _account(leaf: Leaf, modules: Modules, stack: Mapping[str, int]) -> tuple[str, str] | None:
    """State and reason of a leaf that is no kernel; None of one that may be."""
    role = _behind_kernel(leaf, modules) or role_of(leaf, modules[leaf.words.module])
    if role is not None:
        return NOT_A_LAYER, role
    if stack.get(leaf.name) == stacks.UNKNOWN:
        why = "layout not known: layers are stacked on one of two axes, sizes do not tell which"
        return NOT_UNDERSTOOD, why
    if leaf.name in stack and len(leaf.shape) == 2:
        return NOT_A_LAYER, "vectors of stacked layers"
    if leaf.is_floating:
        return None
    described = modules.get((*leaf.words.module, leaf.words.part), {})  # weight.absmax beside weight
    why = next(filter(None, map(dialects.packed, described)), "integers without their scales")
    return NOT_UNDERSTOOD, why


def _behind_kernel(leaf: Leaf, modules: Modules) -> str | None:
    """What a leaf is by the kernel before it: a bias in a list, as in stax or Equinox, or a numbered one of Keras."""
    part, module = leaf.words.part, leaf.words.module
    if not part.isdigit():
        return None
    if not leaf.is_keras_variable:
        before = modules[module].get(str(int(part) - 1))
        is_vector = sum(size > 1 for size in leaf.shape) <= 1
        return "bias" if before is not None and is_vector and leaf.numbers in before.shape else None
    first, wrapped = modules[module].get("0"), modules.get((*module, "layer"), {}).get("0")
    if part == "0" and wrapped is not None and wrapped.shape == leaf.shape:
        return "the kernel of the wrapped layer, stored twice"
    if part == "0" or first is None:
        return None
    rank = len(leaf.shape)
    if rank < len(first.shape) and first.shape[-rank:] == leaf.shape:
        return "bias"  # of attention: [heads, dim]
    is_reset_after = part == "2" and leaf.words.last == "cell" and leaf.shape == (2, first.shape[-1])
    return "bias" if is_reset_after else None  # of GRU: input and recurrent


def _candidate(
    leaf: Leaf, form: Form, modules: Modules, stack: Mapping[str, int], *, is_haiku: bool, is_scratch: bool
) -> Candidate | str:
    """A kernel, or why it cannot be said how it lies."""
    axis, words = stack.get(leaf.name), leaf.words.module
    is_fused = any(dialects.EXPERTS.fullmatch(word) for word in words) and len(form.shape) - (axis is not None) == 3
    row = _dialect(leaf, form, is_haiku=is_haiku, is_fused=is_fused)
    row = dialects.DIALECTS[-1] if row is None and is_scratch and not words else row
    if row is None:
        return "no dialect has a kernel of this name"
    shape = tuple(size for k, size in enumerate(form.shape) if k != axis)
    bias = _bias(form, leaf, modules, axis)
    one = Candidate(
        words,
        leaf.words.stem or leaf.name,
        form,
        shape,
        (row.name, re.sub(r"\d+", "", form.part) + _window(shape, row), len(shape)),
        row.name,
        row.out_first,
        row.taps_first,
        bias=max(bias, default=0) if sum(size > 1 for size in bias) <= 1 else bias[-1] if is_fused else 0,
        width=norms.width_behind(words, modules),
        stack=axis,
    )
    if leaf.is_keras_variable:
        one = replace(one, out_first=False, taps_first=True, dialect="Flax or Keras", kind=("Keras 3", "", len(shape)))
    fixed = _of_experts(one, modules) if row.name == "fused experts" else _fixed(one, leaf, bias, modules)
    if isinstance(fixed, str):
        return fixed
    if fixed is not None:
        return replace(one, fixed=fixed)
    if one.dialect == "Haiku" and "~" not in leaf.name and len(shape) == 2 and not _is_haiku_module(leaf.words.last):
        return replace(one, out_first=None)  # `w` is everybody's word
    return one


def _window(shape: Shape, row: dialects.Dialect) -> str:
    """Kernels of even windows are a kind of their own: most transposed convolutions are, few others."""
    is_even = row.taps_first is False and len(shape) > 2 and not any(size % 2 for size in shape[2:])
    return ", even window" if is_even else ""


def _dialect(leaf: Leaf, form: Form, *, is_haiku: bool, is_fused: bool) -> dialects.Dialect | None:
    for one in dialects.DIALECTS:
        if re.fullmatch(one.kernel, form.part) is None:
            continue
        if (one.name == "Haiku" and not is_haiku) or (one.name == "fused experts" and not is_fused):
            continue
        return one
    return None


def _is_haiku_module(last: str) -> bool:
    return (
        re.fullmatch(r"(.*_)?(linear|conv\dd?|conv\d_d|conv\w*|mlp|logits|query|key|value|embed\w*)(_\d+)?", last)
        is not None
    )


def _bias(form: Form, leaf: Leaf, modules: Modules, axis: int | None) -> Shape:
    """Shape of the bias beside a kernel, without a stack's axis; empty without a bias."""
    part, module = form.part, modules[leaf.words.module]
    wanted = [part.replace("weight", "bias"), "bias", "biases", "b"]
    if part.isdigit():
        wanted = [str(int(part) + 1)]
    places = [module.get(one) for one in wanted if one != part]
    places += [modules.get((*leaf.words.module, part), {}).get("bias")]  # gate_up_proj_bias
    bias = next((bias for bias in places if bias is not None and bias.shape), None)
    return () if bias is None else tuple(size for k, size in enumerate(bias.shape) if k != axis)


def _of_experts(one: Candidate, modules: Modules) -> Axes | str:
    """One matrix per expert, `[E, in, out]` or `[E, out, in]`: by a bias, the router, or what the others read.

    The last of them makes what the first read, which is also what the router reads; where all of that has one size,
    Flax has inputs first, and of others it is not known.
    """
    inputs_first, outputs_first = ((0, 2), (1,), ()), ((0, 1), (2,), ())
    _, first, second = one.shape
    if first != second and one.bias in (first, second):
        return outputs_first if one.bias == first else inputs_first
    is_down = dialects.DOWN.fullmatch(one.form.part) is not None
    if (width := _width_of_router(one, modules)) in (first, second) and first != second:
        return inputs_first if (width == second) == is_down else outputs_first
    for part, other in modules[one.module].items():
        if (dialects.DOWN.fullmatch(part) is not None) == is_down or len(other.shape) != len(one.form.shape):
            continue
        shape = tuple(size for k, size in enumerate(other.shape) if k != one.stack)
        (_, a, b), (_, c, d) = (shape, one.shape) if is_down else (one.shape, shape)
        fits = a == d and b in (c, 2 * c), b == c and a in (d, 2 * d)
        if fits[0] != fits[1]:
            return inputs_first if fits[0] else outputs_first
    if any("kernel" in module for module in modules.values()):
        return inputs_first
    return "neither a bias, a router nor sizes tell the inputs of these experts from their outputs"


def _width_of_router(one: Candidate, modules: Modules) -> int:
    """What the layer beside the experts reads that makes one score for each of them; 0 where there is none."""
    experts = one.shape[0]
    near = [module for name, module in modules.items() if name[:-1] in (one.module, one.module[:-1])]
    shapes = [leaf.shape for module in near for leaf in module.values() if len(leaf.shape) == 2]
    widths = {sum(shape) - experts for shape in shapes if experts in shape}
    return widths.pop() if len(widths) == 1 else 0


def _fixed(one: Candidate, leaf: Leaf, bias: Shape, modules: Modules) -> Axes | str | None:  # noqa: PLR0911
    """Axes where names leave nothing to infer; None where sizes must tell, or why nothing can."""
    rank, part, last = len(one.shape), one.form.part, leaf.words.last
    axes = tuple(range(rank))
    in_front = one.taps_first is True and one.out_first is False
    if einsum := dialects.EINSUM.fullmatch(part if part not in ("w", "kernel") else last):
        return ((rank - 1,), axes[:-1], ()) if einsum["back"] else ((*axes[:-2], rank - 1), (rank - 2,), ())
    if part == "weight" and dialects.TRANSPOSED.fullmatch(last) and rank >= 3:
        return (1,), (0,), axes[2:]  # torch
    if part == "weight" and dialects.BILINEAR.fullmatch(last) and rank == 3:
        return "a bilinear form has two inputs"
    if part == "weight" and rank >= 3 and one.shape[0] == one.shape[1] and {size % 2 for size in one.shape[2:]} == {0}:
        is_plain = dialects.NOT_TRANSPOSED.fullmatch(last) is not None or _has_odd_namesake(one, modules)
        return ((0,), (1,), axes[2:]) if is_plain else "a convolution and a transposed one of its sizes look alike"
    if not in_front or rank < 3:
        return None
    if part == "depthwise_kernel" or (dialects.DEPTHWISE.fullmatch(last) and part in ("kernel", "0")):
        return axes[-2:], (), axes[:-2]
    if dialects.ATTENTION.fullmatch(last) and one.bias == 0 and rank == 3:
        return axes[1:], axes[:1], ()
    if dialects.ATTENTION_OUT.fullmatch(last) and rank == 3:
        return axes[2:], axes[:2], ()
    if len(bias) > 1 and sum(size > 1 for size in bias) > 1 and one.shape[-len(bias) :] == bias:
        return axes[-len(bias) :], axes[: -len(bias)], ()  # DenseGeneral: a bias per output axis
    if dialects.DENSE.fullmatch(last):
        return axes[-1:], axes[:-1], ()
    if dialects.TRANSPOSED.fullmatch(last) and last.islower():
        return (rank - 2,), (rank - 1,), axes[:-2]  # Keras; Flax writes ConvTranspose_0
    return _of_three_axes(one, modules) if rank == 3 and dialects.CONVOLUTION.fullmatch(last) is None else None


def _has_odd_namesake(one: Candidate, modules: Modules) -> bool:
    """Whether a kernel with an odd window has the same name, as transposed ones seldom do."""
    others = [
        module["weight"] for name, module in modules.items() if name[-1:] == one.module[-1:] and "weight" in module
    ]
    is_word = not one.module[-1].isdigit() if one.module else False
    return is_word and any(len(leaf.shape) == len(one.shape) and leaf.shape[-1] % 2 for leaf in others)


def _of_three_axes(one: Candidate, modules: Modules) -> Axes | str | None:
    """A kernel of three axes that no name calls convolution or dense: what it reads is `(1,)` or `(0, 1)`."""
    before, after = one.shape[:2], one.shape[1]
    others = [leaf for module in modules.values() for leaf in module.values() if leaf.name != one.form.leaves[0]]
    pairs = [leaf for leaf in others if leaf.shape[-2:] == before]
    is_read = any(leaf.shape[-1:] == (after,) for leaf in others if leaf not in pairs) and before[0] <= MOST_TAPS
    is_pair = any(len(leaf.shape) in (2, 3) for leaf in pairs)
    if is_pair != is_read:
        return ((2,), (0, 1), ()) if is_pair else None
    return "neither names nor sizes tell a convolution along one axis from a dense layer over two"
