"""A program cut into segments, one behind each gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxguard.graph.program import Equation, Program, Value

Place = tuple[int, Value]
"""A value as a segment left it; segment -1 is what comes before the first gate."""


class Segment(NamedTuple):
    """The program from one cut to the next.

    Attributes:
        equations: numbers of those that depend on the images, run for every version.
        reads: values from earlier cuts that they read, the gated one among them, and the segment that wrote each last.
        writes: values of this segment that later ones read; the gated one may be among them, now gated.
    """

    equations: tuple[int, ...]
    reads: tuple[Place, ...]
    writes: tuple[Value, ...]


def image_free(program: Program) -> list[Equation]:
    """Equations that do not depend on the images."""
    moving = program.dependents({program.images})
    return [eqn for eqn in program.equations if not moving.intersection(eqn.inputs)]


def cut(program: Program, starts: Sequence[int]) -> tuple[Segment, ...]:
    """Cut a program behind each gate.

    Args:
        program: the program.
        starts: numbers of the equations that come right after the gated values, ascending.

    Returns:
        What runs behind each gate, up to the next one or to the logits.
    """
    moving = program.dependents({program.images})
    # Segment k runs from behind gate k to gate k + 1, or to the end.
    bounds = list(zip(starts, (*starts[1:], len(program.equations)), strict=True))
    numbers = [[k for k in range(*bound) if moving.intersection(program.equations[k].inputs)] for bound in bounds]
    origin: dict[Value, int] = {}
    reads: list[tuple[Place, ...]] = []
    for segment, (start, _) in enumerate(bounds):
        (gate,) = program.equations[start - 1].outputs
        made = {value for k in numbers[segment] for value in program.equations[k].outputs}
        read = {value for k in numbers[segment] for value in program.equations[k].inputs} & moving
        reads.append(tuple(sorted((origin.get(value, -1), value) for value in (read - made) | {gate})))
        # From here on the gated value is this segment's: later ones must not read it as it was before its gate.
        origin.update(dict.fromkeys((*made, gate), segment))
    wanted = {place for own in reads for place in own} | {(origin[program.logits], program.logits)}
    return tuple(
        Segment(tuple(own), reads[k], tuple(sorted(value for segment, value in wanted if segment == k)))
        for k, own in enumerate(numbers)
    )
