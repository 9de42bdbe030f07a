"""A model as data: one flat list of equations that can be analysed, cut and evaluated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core as jex
from jax.extend import source_info_util

Fact = TypeVar("Fact")

Variables = Mapping[str, Any]
"""A pytree of arrays, for Flax `{"params": ..., "batch_stats": ...}`; never modified in place."""

ApplyFn = Callable[[Variables, jax.Array], jax.Array]
"""`(variables, images [B, H, W, C]) -> logits [B, K]`, in evaluation mode."""

Value = int
"""An array of the program, by number."""


@dataclass(frozen=True, eq=False, slots=True)
class Equation:
    """One primitive application, `outputs = primitive(inputs, **params)`.

    Attributes:
        sources: where it was traced from, then the calls it was inlined through, innermost first.
        body: for a custom-derivative call, the equations inside; they read and write the same values.
        opaque: why it is not followed, where what it computes is unknown; otherwise empty.
    """

    primitive: jex.Primitive
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    params: Mapping[str, Any]
    sources: tuple[Any, ...]
    body: tuple[Equation, ...] = ()
    opaque: str = ""

    @property
    def name(self) -> str:
        """Name of the primitive."""
        return self.primitive.name

    @property
    def where(self) -> str:
        """File, line and function that the equation was traced from; its caller's if JAX kept none of its own."""
        return next(filter(None, map(source_info_util.summarize, self.sources)), "an unknown line")


def apply(eqn: Equation, arguments: Sequence[Any]) -> list[Any]:
    """Results of an equation's primitive for other arguments than its own."""
    results = eqn.primitive.bind(*arguments, **eqn.primitive.get_bind_params(eqn.params))
    return results if eqn.primitive.multiple_results else [results]


def interpret(
    equations: Iterable[Equation],
    facts: dict[Value, Fact],
    rule: Callable[[Equation, list[Fact | None]], Iterable[Fact | None]],
) -> dict[Value, Fact]:
    """Walk over equations in execution order and derive a fact about every value from facts about its operands.

    What a fact is (an array, the values it depends on, whether it is linear in the images) is up to the rule; this is
    the only forward walk over a program.

    Args:
        equations: in execution order.
        facts: what is known beforehand, by value; completed in place.
        rule: `(equation, facts of its inputs) -> facts of its outputs`; None where nothing is known.

    Returns:
        `facts`.
    """
    for eqn in equations:
        results = rule(eqn, [facts.get(value) for value in eqn.inputs])
        facts.update((v, fact) for v, fact in zip(eqn.outputs, results, strict=True) if fact is not None)
    return facts


@dataclass(eq=False)
class Program:
    """A traced `apply_fn(variables, images)`.

    Attributes:
        paths: leaf path of each leaf of the variables, in pytree order, such as `params/conv1/kernel`.
        leaves: value of each leaf.
        images: value of the images.
        logits: value of the result.
        equations: in execution order; each value is written once.
        constants: arrays the model closes over, and literals.
        shapes: shape of each value.
        dtypes: dtype of each value.
        effects: equations that were left out: they have effects, such as printing, and no results.
        meshes: what runs over several devices in the model, and where; the program does it on one.
        results: all results; `logits` is the only one of a model.
    """

    paths: tuple[str, ...] = ()
    leaves: tuple[Value, ...] = ()
    images: Value = -1
    logits: Value = -1
    equations: list[Equation] = field(default_factory=list)
    constants: dict[Value, Any] = field(default_factory=dict)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    dtypes: list[Any] = field(default_factory=list)
    effects: list[Equation] = field(default_factory=list)
    meshes: list[str] = field(default_factory=list)
    results: tuple[Value, ...] = ()

    def primitive_equations(self) -> Iterator[Equation]:
        """All equations, custom-derivative calls replaced by their bodies."""
        return open_bodies(self.equations)

    def evaluate(
        self,
        known: Mapping[Value, Any],
        equations: Iterable[Equation] | None = None,
        after: Callable[[Value, Any], Any] | None = None,
        apply_fn: Callable[[Equation, Sequence[Any]], list[Any]] = apply,
    ) -> dict[Value, Any]:
        """Run equations on known values.

        Args:
            known: arrays of the values the equations read, constants excepted.
            equations: which to run, in order; all by default.
            after: `(value, array) -> array`, called on every result before anything reads it.
            apply_fn: computes the results of an equation.

        Returns:
            The known values and all results.
        """

        def bind(eqn: Equation, arguments: list[Any]) -> list[Any]:
            results = apply_fn(eqn, arguments)
            return (
                results if after is None else [after(v, array) for v, array in zip(eqn.outputs, results, strict=True)]
            )

        return interpret(self.equations if equations is None else equations, {**self.constants, **known}, bind)

    def dependents(self, values: Collection[Value]) -> set[Value]:
        """The values, and all that is computed from them."""

        def depends(eqn: Equation, operands: list[bool | None]) -> list[bool | None]:
            return [any(operands) or None] * len(eqn.outputs)

        return set(interpret(self.equations, dict.fromkeys(values, True), depends))

    def cone(self, *values: Value) -> list[Equation]:
        """The equations that any of the values depends on, in execution order."""
        # Backwards: an equation is needed if a later needed one reads what it writes.
        needed, kept = set(values), []
        for equation in reversed(self.equations):
            if needed.intersection(equation.outputs):
                needed.update(equation.inputs)
                kept.append(equation)
        return kept[::-1]

    def leaves_under(self, *values: Value) -> dict[str, Value]:
        """Path -> value of the leaves that any of the values is computed from, or is."""
        read = {value for equation in self.cone(*values) for value in equation.inputs}.union(values)
        return {path: leaf for path, leaf in zip(self.paths, self.leaves, strict=True) if leaf in read}

    def new_value(self, shape: tuple[int, ...], dtype: Any) -> Value:
        """Number a new array."""
        self.shapes.append(tuple(shape))
        self.dtypes.append(dtype)
        return len(self.shapes) - 1

    def new_constant(self, array: Any) -> Value:
        """Number a constant array."""
        value = self.new_value(np.shape(array), jax.dtypes.result_type(array))
        self.constants[value] = array
        return value


def open_bodies(equations: Iterable[Equation]) -> Iterator[Equation]:
    """The equations, custom-derivative calls replaced by their bodies."""
    for equation in equations:
        yield from equation.body or (equation,)


def leaf_paths(variables: Any) -> tuple[str, ...]:
    """Paths of the leaves of a pytree in its order, names joined by `/`.

    >>> leaf_paths({"params": {"conv": {"kernel": 0, "bias": 0}}})
    ('params/conv/bias', 'params/conv/kernel')
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(variables)
    return tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is the key of a random stream, as in the state of an NNX model with dropout."""
    return jnp.issubdtype(getattr(leaf, "dtype", None) or np.result_type(leaf), jax.dtypes.prng_key)


def numeric_leaves(variables: Any) -> dict[str, Any]:
    """Leaves by path, in order; without the keys of random streams, which hold no numbers.

    >>> list(numeric_leaves({"w": np.ones(2), "stream": jax.random.key(0)}))
    ['w']
    """
    pairs = zip(leaf_paths(variables), jax.tree.leaves(variables), strict=True)
    return {path: leaf for path, leaf in pairs if not is_key(leaf)}


def number_expressions(program: Program) -> dict[Value, int]:
    """Numbers the values that do not depend on the images, so that equal numbers mean equal arrays.

    Two values are equal if the same primitive makes them from equal values. A kernel that is recomputed in every
    step of a recurrent layer thus has one number, and kernels that are mixed from one bank in different ways have
    several.

    Args:
        program: a traced model.

    Returns:
        Value -> number; values that depend on the images have none.
    """
    numbers: dict[Any, int] = {}
    moving = program.dependents({program.images})

    def number(key: Any) -> int:
        return numbers.setdefault(key, len(numbers))

    def rule(eqn: Equation, operands: list[int | None]) -> list[int | None]:
        if moving.intersection(eqn.outputs):
            return [None] * len(eqn.outputs)
        # Equations whose results may differ from run to run equal themselves alone.
        parameters = id(eqn) if eqn.opaque else repr(sorted(eqn.params.items()))
        return [number((eqn.name, parameters, tuple(operands), k)) for k in range(len(eqn.outputs))]

    facts = {leaf: number(("leaf", leaf)) for leaf in program.leaves}
    facts |= {value: number(_constant_key(value, array)) for value, array in program.constants.items()}
    return interpret(program.primitive_equations(), facts, rule)


def _constant_key(value: Value, array: Any) -> Any:
    is_plain = isinstance(array, np.ndarray | np.generic | int | float | bool | jax.Array)
    if is_plain and not isinstance(array, Tracer) and np.size(array) < 1024 and not is_key(array):
        array = np.asarray(array)
        return array.dtype.str, array.shape, array.tobytes()
    return id(array)
