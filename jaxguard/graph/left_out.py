"""What of a model is not analysed, and why: opaque equations, and products whose kernel lies in no leaf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxguard.graph import axes
from jaxguard.graph.axis_rules import Axes
from jaxguard.graph.channels import Affine, Producer
from jaxguard.graph.primitives import makes_channels
from jaxguard.graph.program import Equation, Program, Value


@dataclass(frozen=True)
class LeftOut:
    """One equation that is evaluated as it is and not analysed.

    Attributes:
        primitive: its name.
        where: file and line it was traced from.
        why: why it is not analysed.
        leaves: parameter leaves that it reads and no analysed layer does; they have no scores.
        layers: producers whose channels flow into it and are frozen by it.
    """

    primitive: str
    where: str
    why: str
    leaves: tuple[str, ...]
    layers: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"`{self.primitive}` at {self.where} is not analysed: {self.why}"]
        if self.leaves:
            names = ", ".join(leaf or "the variables" for leaf in self.leaves)
            parts.append(f"not scored, since it reads them: {names}")
        if self.layers:
            parts.append(f"channels that flow into it are not permuted: {', '.join(self.layers)}")
        return "; ".join(parts) + "."


def find_left_out(
    program: Program,
    nodes: dict[Value, Axes],
    producers: Sequence[Producer],
    affines: Sequence[Affine],
    unread: Sequence[tuple[Equation, str]],
) -> tuple[LeftOut, ...]:
    """What is not analysed, in program order; equations that depend on neither the images nor a leaf are constants.

    Args:
        program: a traced model.
        nodes: axes of its values.
        producers: its layers.
        affines: its norms.
        unread: convolutions and products that make no layer, and why.

    Returns:
        One entry per equation.
    """
    reasons = {id(eqn): why for eqn, why in unread} | {id(eqn): eqn.opaque for eqn in program.equations if eqn.opaque}
    if not reasons:
        return ()
    on_images = program.dependents({program.images})
    scored = {producer.kernel.path for producer in producers}
    views = [view for one in affines for view in (one.scale, one.var, one.mean, one.bias)]
    scored |= {view.path for view in (*views, *(producer.bias for producer in producers)) if view}
    # The atoms of a producer's output channels: an equation that reads any of them ends their being permuted.
    made = [
        {atom for k in one.gate_axes for atom in axes.factors(nodes[one.gate][k]) if atom.size > 1} for one in producers
    ]
    found = []
    for eqn in program.equations:
        if id(eqn) not in reasons:
            continue
        moving = [value for value in eqn.inputs if value in on_images]
        leaves = set(program.leaves_under(*set(eqn.inputs).difference(moving)))
        if not moving and not leaves:
            continue
        read = {atom for value in moving for node in nodes[value] for atom in axes.factors(node)}
        flowing = (p.name for p, own in zip(producers, made, strict=True) if own & read)
        names = () if makes_channels(eqn) else tuple(dict.fromkeys(flowing))
        # A product left out is not scored even where another part of its leaf is.
        unscored = leaves if makes_channels(eqn) else leaves - scored
        found.append(LeftOut(eqn.name, eqn.where, reasons[id(eqn)], tuple(sorted(unscored)), names))
    return tuple(found)
