"""A published method as one table row, whose options are read off its signature and checked here, once.

A method is a function with keyword-only hyper-parameters. Their annotations state type and range:

    @methods.checked
    def prune(x, *, share: Annotated[float, Interval(ge=0, le=1)] = 0.5, order: Literal["up", "down"] = "up"): ...

Neither the function nor its callers check, parse or copy them again; `Method` is what tables, the command line, reports
and the documentation read. Options that a method hands on to another are stated by that one alone, see `options_of`.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar, get_type_hints

from jaxguard.errors import OptionError
from jaxguard.methods.annotations import converted, expects, plain

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Option:
    """One hyper-parameter of a method.

    Attributes:
        name: keyword.
        default: value where none is given.
        expects: what a value looks like, such as `a whole number >= 1`.
        help: its description, from the docstring's `Args`.
        annotation: type and range.
    """

    name: str
    default: Any
    expects: str
    help: str
    annotation: Any


@dataclass(frozen=True)
class Method(Generic[P, R]):
    """One row of a table of methods; calling it calls the function.

    Attributes:
        function: the method; its keyword-only parameters are its options. Decorated with `checked`.
        title: the method in a few words.
        needs: what it cannot do without, such as `clean images`.
        paper: where it was published; empty for a baseline.

    Example:
        >>> from jaxguard.methods import Count
        >>> @checked
        ... def half(x: float, *, times: Count = 1) -> float:
        ...     return x / 2**times
        >>> row = Method(half, "Halving")
        >>> row(8.0, times=2), row.options({"times": "3"})
        (2.0, {'times': 3})
    """

    function: Callable[P, R]
    title: str
    needs: frozenset[str] = frozenset()
    paper: str = ""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the function."""
        return self.function(*args, **kwargs)

    @property
    def name(self) -> str:
        """Name on the command line: the function's, with dashes."""
        return _name(self.function)

    @property
    def parameters(self) -> Mapping[str, Option]:
        """The method's options by name."""
        return _parameters(self.function)

    def options(self, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """All options as the method will use them: those given, checked, and the defaults of the rest.

        Args:
            given: name -> value, or its text as on the command line.

        Returns:
            Name -> value, in the order of the signature.

        Raises:
            OptionError: an unknown name, or a value of the wrong type or out of range.
        """
        found = check(self.function, given or {})
        return {name: found.get(name, option.default) for name, option in self.parameters.items()}

    def record(self, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The same as plain data for a report: functions by name, sequences as lists, arrays by their shape.

        Raises:
            OptionError: as `options`.
        """
        return {name: plain(value, self.parameters[name].annotation) for name, value in self.options(given).items()}


def table(*rows: Method[..., R]) -> dict[str, Method[..., R]]:
    """Name -> row.

    Args:
        rows: methods of one kind.

    Returns:
        The table.
    """
    return {row.name: row for row in rows}


def find(rows: Mapping[str, Method[..., R]], name: str, kind: str) -> Method[..., R]:
    """The row of a name.

    Args:
        rows: a table.
        name: on the command line.
        kind: what the table holds, such as `defense`, for the message.

    Returns:
        The row.

    Raises:
        OptionError: there is none.
    """
    if name not in rows:
        raise OptionError(f"expected a {kind} ({', '.join(rows)}), got {name!r}{_guess(name, rows)}")
    return rows[name]


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function so that its keyword-only arguments are checked and converted by their annotations.

    Args:
        function: with annotated keyword-only parameters.

    Returns:
        The function; it raises OptionError for an argument that is unknown, of the wrong type or out of range.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        # Arguments that can be passed by position as well are the function's own affair.
        named = {name: value for name, value in kwargs.items() if name not in _positional(function)}
        return function(*args, **{**kwargs, **check(function, named)})  # pyright: ignore[reportCallIssue]

    return call


def options_of(source: Callable[..., Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function whose `**options` are those of another: names, defaults, types, ranges and descriptions.

    Args:
        source: with annotated keyword-only parameters; those that the function has itself are the function's.

    Returns:
        The decorator; `checked` goes above it.

    Example:
        >>> from jaxguard.methods import Count
        >>> def train(*, epochs: Count = 9): ...
        >>> @checked
        ... @options_of(train)
        ... def train_twice(*, pause: float = 0.0, **options): return options
        >>> train_twice(epochs="3"), list(Method(train_twice, "").options())
        ({'epochs': 3}, ['pause', 'epochs'])
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        own = inspect.signature(function)
        kept = [one for one in own.parameters.values() if one.kind is not one.VAR_KEYWORD]
        handed = [
            one.replace(annotation=one.empty)
            for one in inspect.signature(source).parameters.values()
            if one.kind is one.KEYWORD_ONLY and one.name not in own.parameters
        ]
        vars(function).update(__signature__=own.replace(parameters=[*kept, *handed]), options_of=source)
        return function

    return decorate


def check(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The given options of a function, converted by their annotations.

    Args:
        function: with annotated keyword-only parameters.
        given: name -> value or text.

    Returns:
        Name -> value, of the given options alone.

    Raises:
        OptionError: an unknown name, or a value of the wrong type or out of range.
    """
    known, name = _parameters(function), _name(function)
    for key in given:
        if key not in known:
            raise OptionError(
                f"expected an option of {name} ({', '.join(known) or 'none'}), got {key!r}{_guess(key, known)}"
            )
    found = {}
    for key, value in given.items():
        try:
            found[key] = converted(value, known[key].annotation)
        except (TypeError, ValueError):
            default = plain(known[key].default, known[key].annotation)
            raise OptionError(
                f"expected {known[key].expects} for {key} of {name}, got {value!r}; "
                f"leave it out for the default, {_text(default)}"
            ) from None
    return found


def _guess(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _name(function: Callable[..., Any]) -> str:
    return function.__name__.replace("_", "-")


@functools.cache
def _parameters(function: Callable[..., Any]) -> Mapping[str, Option]:
    hints = get_type_hints(function, include_extras=True)
    described = _described(inspect.getdoc(function) or "")
    source = getattr(function, "options_of", None)
    handed = _parameters(source) if source else {}
    return {
        name: Option(name, parameter.default, expects(hints[name]), described.get(name, ""), hints[name])
        if name in hints
        else handed[name]
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


@functools.cache
def _positional(function: Callable[..., Any]) -> frozenset[str]:
    parameters = inspect.signature(function).parameters.items()
    return frozenset(name for name, parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY)


def _described(docstring: str) -> dict[str, str]:
    """Argument -> description, of a Google-style docstring: names are indented by 4, continued lines by 8."""
    _, _, section = docstring.partition("\nArgs:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        indent = len(line) - len(line.lstrip())
        if not line.strip() or indent < 4:
            break
        if indent == 4:
            name, _, text = line.strip().partition(": ")
            found[name] = text
        else:
            found[name] += f" {line.strip()}"
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)
