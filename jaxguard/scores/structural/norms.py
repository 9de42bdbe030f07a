"""BatchNorms, and which kernel each of them scales: the one of its width before it, among modules of one parent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jaxguard.scores.structural import dialects
from jaxguard.scores.structural.forms import Leaf, Module

if TYPE_CHECKING:
    from jaxguard.scores.structural.reading import Producer

NEAR = (1, 2)
"""How far behind its kernel a norm may stand in a numbered sequence: at once, or behind an activation."""


@dataclass(frozen=True)
class Norm:
    """A BatchNorm: it has a running variance.

    Attributes:
        module: words of its path.
        stem: its name, for reports.
        width: channels.
        scale: leaf, or None.
        var: leaf.
    """

    module: tuple[str, ...]
    stem: str
    width: int
    scale: str | None
    var: str


def found(modules: Mapping[tuple[str, ...], Module]) -> list[Norm]:
    """All BatchNorms, in module order."""
    norms = (_norm(module) for module in modules.values())
    return [norm for norm in norms if norm is not None]


def _norm(module: Module) -> Norm | None:
    parts = {part: leaf for part, leaf in module.items() if leaf.shape and max(leaf.shape) == leaf.numbers}
    if len(parts) == 4 and {"0", "1", "2", "3"} == parts.keys():  # Keras 3: gamma, beta, mean, variance
        parts = {"gamma": parts["0"], "moving_variance": parts["3"]}
    var = next((leaf for part, leaf in parts.items() if dialects.VARIANCE.fullmatch(part)), None)
    if var is None:
        return None
    scale = next((parts[part] for part in ("weight", "scale", "gamma") if part in parts), None)
    words = var.words
    return Norm(words.module, words.stem, var.numbers, scale.name if scale else None, var.name)


def paired(producers: Sequence[Producer], norms: Sequence[Norm]) -> list[Producer]:
    """Each norm with the first kernel of its width that is still free.

    In a sequence whose modules are numbered a norm follows its kernel at once or behind an activation, with no other
    kernel between.
    """
    waiting: dict[tuple[str, ...], list[Norm]] = {}
    for norm in norms:
        waiting.setdefault(norm.module[:-1], []).append(norm)
    modules = {one.module for one in producers}
    result = []
    for one in producers:
        module = one.module
        queue = waiting.get(module[:-1], [])
        norm = _behind(module, queue, modules)
        if norm is not None and norm.width == one.channels and one.stack is None:
            queue.remove(norm)
            one = replace(one, scale=norm.scale, var=norm.var, norm=norm.stem)  # noqa: PLW2901
        result.append(one)
    return result


def _behind(module: tuple[str, ...], queue: Sequence[Norm], modules: set[tuple[str, ...]]) -> Norm | None:
    if not queue:
        return None
    if not (module and module[-1].isdigit()):
        return None if _is_numbered(queue[0]) else queue[0]
    numbered = {norm.module[-1]: norm for norm in queue if norm.module}
    for step in NEAR:
        number = str(int(module[-1]) + step)
        if number in numbered:
            return numbered[number]
        if (*module[:-1], number) in modules:
            return None
    return None if any(map(_is_numbered, queue)) else queue[0]


def _is_numbered(norm: Norm) -> bool:
    return bool(norm.module) and norm.module[-1].isdigit()


def width_behind(module: tuple[str, ...], modules: Mapping[tuple[str, ...], Module]) -> int:
    """Channels of the norm right behind a numbered module; 0 without."""
    if not (module and module[-1].isdigit()):
        return 0
    behind = modules.get((*module[:-1], str(int(module[-1]) + 1)), {})
    var = next((leaf for part, leaf in behind.items() if dialects.VARIANCE.fullmatch(part)), None)
    return 0 if var is None else var.numbers


def leaves_of(producer: Producer) -> tuple[str, ...]:
    """Names of all leaves that a producer's scores depend on."""
    return (*producer.form.leaves, *(name for name in (producer.scale, producer.var) if name is not None))


__all__ = ["Leaf", "Norm", "found", "leaves_of", "paired", "width_behind"]
