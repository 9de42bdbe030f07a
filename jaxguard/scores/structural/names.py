"""What the name of a leaf says: the module it belongs to, and which part of it the leaf is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from jaxguard.scores.structural.dialects import TABLE_PART

_WRAPPERS = frozenset({"value", "_raw_value", "raw_value", "_value", "default", "base_layer"})
_COLLECTIONS = ("params", "batch_stats", "_mapping", "state", "model_state")
_PARAMETRISATION = {"original0": "_g", "original1": "_v", "original": "_orig", "_u": "_u", "_v": "_v"}
_NUMBERED = re.compile(r"(W|w|weights?|kernel|b|bias|biases|gamma|beta)_?(\d+)")
_TAILED = re.compile(r"(.+)_(w|W|weights?|kernel|b|bias|biases)")
_LORA = re.compile(r"lora_(A|B|a|b|down|up|embedding_A|embedding_B)")
_LOW_RANK = {"A": "lora_A", "B": "lora_B", "down": "lora_A", "up": "lora_B", "a": "lora_a", "b": "lora_b"}
_ADAPTER = re.compile(
    r"ia3_l|hada_\w+|lokr_\w+|vera_\w+|boft_\w+|oft_\w+|lora_magnitude_vector|randlora_\w+|fourierft_\w+"
)
_FLAX_NORM = {("SpectralNorm", "sigma"): "_sigma", ("SpectralNorm", "u"): "_u", ("WeightNorm", "scale"): "_gain"}
_WHOLE = ("in_proj", "q_proj", "k_proj", "v_proj", "recurrent", "pointwise", "depthwise")
_EMA = re.compile(r"(mean|var)_ema")


class Spelled(NamedTuple):
    """A leaf's name in one spelling.

    Attributes:
        module: words of the module's path, without wrappers.
        part: which part of the module the leaf is: `weight`, `kernel`, `bias`, `weight_g`, ...
        stem: the module as the file names it, for reports.
    """

    module: tuple[str, ...]
    part: str
    stem: str

    @property
    def last(self) -> str:
        """Last word of the module; empty at the top."""
        return self.module[-1] if self.module else ""

    @property
    def parent(self) -> tuple[str, ...]:
        """The module around the module."""
        return self.module[:-1]


def spelled(name: str) -> Spelled:  # noqa: PLR0911, PLR0912  # one return per spelling
    """Spell a leaf's name out.

    Args:
        name: as in the file, joined with `.` or `/`.

    Returns:
        Its module and part.

    Example:
        >>> spelled("conv.parametrizations.weight.original0")
        Spelled(module=('conv',), part='weight_g', stem='conv')
        >>> spelled("params/net/~/bn/~/var_ema/average")[:2]
        (('net', 'bn'), 'var')
        >>> spelled("head/kernel/value")[:2], spelled("W1")[:2]
        ((('head',), 'kernel'), (('1',), 'W'))
    """
    words = [word for word in re.split(r"[./]", name.removesuffix(":0")) if word and word != "~"]
    while len(words) > 1 and words[-1] in _WRAPPERS:
        words.pop()
    while len(words) > 1 and words[0] in _COLLECTIONS:
        words.pop(0)
    words = [word for word in words if word != "base_layer"]
    *module, part = words or [name]
    if len(module) >= 2 and module[-2] == "parametrizations":  # parametrizations.weight.original1
        return _made(module[:-2], module[-1] + _PARAMETRISATION.get(part, "_other"))
    if len(module) >= 3 and module[-3] == "parametrizations":  # parametrizations.weight.0._u
        return _made(module[:-3], module[-2] + _PARAMETRISATION.get(part, "_other"))
    for place in range(len(words) - 1, max(len(words) - 4, -1), -1):  # q_proj.lora_A.default.weight
        if (found := _LORA.fullmatch(words[place])) is not None and set(words[place + 1 :]) <= {"default", "weight"}:
            before = words[:place]
            return _made(before[:-1] if before[-1:] == ["lora"] else before, _LOW_RANK.get(found[1], "lora_other"))
    for place in range(len(words) - 1, max(len(words) - 4, -1), -1):  # query.ia3_l.default
        if _ADAPTER.fullmatch(words[place]) and set(words[place + 1 :]) <= {"default", "weight"}:
            return _made(words[:place], words[place])
    if len(module) >= 3 and (tail := _FLAX_NORM.get((module[-3].split("_")[0], part))):
        return _made([*module[:-3], module[-2]], module[-1] + tail)  # WeightNorm_0/Dense_0/kernel/scale
    if module and (found := _EMA.fullmatch(module[-1])) is not None:  # bn/~/var_ema/average
        return _made(module[:-1], found[1] if part == "average" else f"{module[-1]}_{part}")
    if len(module) >= 1 and module[-1] == "vars" and part.isdigit():  # Keras 3
        return _made(module[:-1], part)
    if (found := _NUMBERED.fullmatch(part)) is not None:  # W1, b1
        return Spelled((*module, found[2]), found[1], ".".join([*module, part]))
    if (
        (found := _TAILED.fullmatch(part)) is not None
        and not part.startswith(_WHOLE)
        and not TABLE_PART.fullmatch(part)
    ):
        return Spelled((*module, found[1]), found[2], ".".join([*module, found[1]]))
    return _made(module, part)


def _made(module: list[str], part: str) -> Spelled:
    return Spelled(tuple(module), part, ".".join(module))


def in_order(names: Iterable[str]) -> list[str]:
    """Names in the order of the modules: that of the file, or natural order where the file is sorted.

    >>> in_order(["conv10", "conv9"]), in_order(["stem", "conv10", "conv9"])
    (['conv9', 'conv10'], ['stem', 'conv10', 'conv9'])
    """
    listed = list(names)
    return sorted(listed, key=_natural) if listed == sorted(listed) else listed


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key by which `conv10` follows `conv9`."""
    pieces = re.findall(r"(\d+)|(\D+)", name)
    return [(0, int(number), "") if number else (1, 0, text) for number, text in pieces]
