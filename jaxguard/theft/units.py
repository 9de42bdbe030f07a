"""Units of channels through a program: how every array is measured, and what the arithmetic wants of that."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from jaxguard.graph import Member, axes
from jaxguard.graph.axes import Axis
from jaxguard.graph.program import Equation, Program, Value
from jaxguard.graph.ties import tie_program

Exponents = np.ndarray
"""`[places]`, an exponent as a linear form in those of the places in the variables."""

ANY = None
"""The exponent of zeros and infinities, which positive factors do not change."""


class Units:
    """Exponents of every value of a program, to be filled equation by equation.

    Attributes:
        program: a traced model.
        places: per set of channels, everywhere it lies in the variables.
        wanted: per set, linear forms that have to be 0.
        forms: value -> (axis, set) -> exponent; 0 where there is no entry.
        blank: values that are all zeros or infinities.
    """

    def __init__(self, program: Program, pinned: Collection[str]):
        self.program = program
        nodes = tie_program(program)
        self._atoms = {value: [axes.atoms(node) for node in parts] for value, parts in nodes.items()}
        # Channels that lie along one axis more than once, as in x * gate(x), would need an exponent for each time.
        repeated = {
            atom
            for parts in self._atoms.values()
            for found in parts
            for k, (atom, _) in enumerate(found)
            if any(atom is other for other, _ in found[:k])
        }
        self.places: dict[Axis, list[Member]] = defaultdict(list)
        for leaf, path in zip(program.leaves, program.paths, strict=True):
            for axis, found in enumerate(self._atoms[leaf]):
                for atom, positions in found:
                    if atom.size > 1 and atom.frozen is None and atom not in repeated and path not in pinned:
                        self.places[atom].append(Member(path, axis, positions))
        self.wanted: dict[Axis, list[Exponents]] = {atom: [] for atom in self.places}
        self.blank = {value for value, array in program.constants.items() if _is_blank(array)}
        self.forms: dict[Value, dict[tuple[int, Axis], Exponents | None]] = {}
        for leaf, path in zip(program.leaves, program.paths, strict=True):
            self.forms[leaf] = {
                (axis, atom): np.eye(len(self.places[atom]))[k]
                for axis, atom in self.coordinates(leaf)
                for k, place in enumerate(self.places[atom])
                if (place.path, place.axis) == (path, axis)
            }

    def coordinates(self, value: Value) -> list[tuple[int, Axis]]:
        """The axes of a value that run over channels in question, with those channels."""
        return [
            (axis, atom)
            for axis, found in enumerate(self._atoms.get(value, ()))
            for atom, _ in found
            if atom in self.places
        ]

    def form(self, value: Value, axis: int, atom: Axis) -> Exponents | None:
        """Exponent along one axis; 0 where the axis does not run over these channels."""
        if value in self.blank:
            return ANY
        return self.forms.get(value, {}).get((axis, atom), np.zeros(len(self.places[atom])))

    def cancel(self, atom: Axis, form: Exponents | None) -> None:
        """Wants an exponent to be 0."""
        if form is not None and form.any():
            self.wanted[atom].append(form)

    def equal(self, atom: Axis, forms: Iterable[Exponents | None]) -> Exponents | None:
        """Wants exponents to be equal, and returns them."""
        known = [form for form in forms if form is not None]
        for other in known[1:]:
            self.cancel(atom, known[0] - other)
        return known[0] if known else ANY

    def cancel_all(self, value: Value, along: Collection[int] | None = None) -> None:
        """Wants exponents of 0 along some axes of a value, or along all."""
        for axis, atom in self.coordinates(value):
            if along is None or axis in along:
                self.cancel(atom, self.form(value, axis, atom))

    def move(self, eqn: Equation, source: Sequence[int | None]) -> None:
        """Axis `k` of the result is axis `source[k]` of the operand, or has nothing to do with it."""
        operand, (result, *_) = eqn.inputs[0], eqn.outputs
        if operand in self.blank:
            self.blank.add(result)
        self.forms[result] = {
            (k, atom): self.form(operand, axis, atom)
            for k, atom in self.coordinates(result)
            if (axis := source[k]) is not None
        }

    def solutions(self, atom: Axis) -> np.ndarray:
        """Orthonormal basis `[J, places]` of the exponents that meet all that is wanted."""
        size = len(self.places[atom])
        if not self.wanted[atom]:
            return np.eye(size)
        _, singular, right = np.linalg.svd(np.unique(np.stack(self.wanted[atom]), axis=0))
        return right[int((singular > 1e-9 * singular[0]).sum()) :]


def plus(a: Exponents | None, b: Exponents | None, sign: int = 1) -> Exponents | None:
    """Exponent of a product, or with a negative sign of a quotient."""
    return ANY if a is None or b is None else a + sign * b


def times(power: float, form: Exponents | None) -> Exponents | None:
    """Exponent of a power."""
    return ANY if form is None else power * form


def _is_blank(array: object) -> bool:
    values = np.asarray(array)
    return values.dtype.kind == "f" and bool(((values == 0) | np.isinf(values)).all())
