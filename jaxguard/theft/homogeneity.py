"""Which leaves may be rescaled, channel by channel, without changing the function: dimensional analysis of a program.

Give every channel `c` of a set its own unit `u_c`. If each place where the channels lie in the variables has an
exponent `e`, so that channel `c` is measured in `u_c^e` there, the rules of arithmetic say how all other arrays are
measured: a product adds exponents, a sum or a maximum wants equal ones, a contraction over the channels wants them to
cancel, a ReLU passes any, and whatever is not positively homogeneous, such as `exp`, wants none. Images and logits have
none. These are linear equations in the exponents; each solution is a symmetry: multiplying channel `c` at every place
by `factor_c^e` changes nothing. For `dense -> ReLU -> dense` it is the textbook `(1, 1, -1)`: kernel and bias times c,
the next kernel over c.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from jaxguard.graph import ChannelGraph, Member
from jaxguard.theft.unit_rules import RULES, dimensionless
from jaxguard.theft.units import Units


class Symmetry(NamedTuple):
    """Rescalings of one set of channels that leave a model's function unchanged.

    Attributes:
        name: of the group.
        size: number of channels `C`.
        places: where the channels lie.
        exponents: `[J, places]`, an orthonormal basis of the exponents allowed, J >= 1.
    """

    name: str
    size: int
    places: tuple[Member, ...]
    exponents: np.ndarray


def symmetries(graph: ChannelGraph, pinned: Collection[str] = ()) -> tuple[Symmetry, ...]:
    """All rescalings that the arithmetic of a model allows, one entry per set of channels that has any.

    They hold in exact arithmetic, the epsilon of norms included, for the model in evaluation mode.

    Args:
        graph: the model's channel graph.
        pinned: paths of leaves that are to stay as they are.

    Returns:
        The symmetries.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxguard.graph import channel_graph
        >>> mlp = lambda v, x: jax.nn.relu(x @ v["w1"] + v["b1"]) @ v["w2"]
        >>> v = {"w1": jnp.ones((2, 3)), "b1": jnp.ones(3), "w2": jnp.ones((3, 4))}
        >>> (found,) = symmetries(channel_graph(mlp, v, jnp.ones((1, 2))))
        >>> [place.path for place in found.places], (found.exponents / found.exponents[0, 0]).round(6).tolist()
        (['b1', 'w1', 'w2'], [[1.0, 1.0, -1.0]])
    """
    units = Units(graph.program, pinned)
    for eqn in graph.program.primitive_equations():
        rule = RULES.get(eqn.name, dimensionless)
        rule(units, eqn)
    units.cancel_all(graph.program.logits)
    names = {
        (member.path, member.axis, member.positions.tobytes()): group.name
        for group in graph.groups
        for member in group.members
    }
    found = []
    for atom, places in units.places.items():
        basis = units.solutions(atom)
        if len(basis):
            first = places[0]
            name = names[first.path, first.axis, first.positions.tobytes()]
            found.append(Symmetry(name, atom.size, tuple(places), basis))
    return tuple(found)
