"""Programs: functions that are compiled, in one precision.

Everything that jaxguard compiles is compiled by `jit` of this module, so that one setting, `precision`, holds for all
of it: kernels, scores, the forward passes of models whatever they were traced in, trigger searches.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_args

import jax
import jax.numpy as jnp

from jaxguard import execution, program_cache, rounding
from jaxguard.errors import DeviceMemoryError, OptionError

Result = TypeVar("Result")

Precision = Literal["highest", "default", "bfloat16"]

_chosen: contextvars.ContextVar[Precision | None] = contextvars.ContextVar("jaxguard.precision", default=None)
_is_rewritten: contextvars.ContextVar[bool] = contextvars.ContextVar("jaxguard.is_rewritten", default=False)


@contextlib.contextmanager
def precision(setting: Precision) -> Iterator[None]:
    """Set how exactly convolutions and products of float32 are computed, in this thread and those that it starts.

    Without it everything that becomes a score or a verdict, model forwards included, is computed as by `highest`, and
    networks are trained as JAX is configured.

    Args:
        setting: `highest`: float32 throughout. `default`: what is fastest on the machine: on a TPU one pass of
            bfloat16, on a GPU TF32 where it has it, on a CPU float32. `bfloat16`: as a TPU does by default: operands
            are rounded to bfloat16 and products summed in float32; elsewhere that is emulated, which costs time.

    Yields:
        Nothing; it holds within the context.

    Raises:
        OptionError: another setting.

    Example:
        >>> with precision("bfloat16"):
        ...     jit(jnp.dot)(jnp.float32(1 / 3), jnp.ones(())).item()
        0.333984375
    """
    if setting not in get_args(Precision):
        raise OptionError(
            f"expected a precision among {', '.join(get_args(Precision))}, got {setting!r}; highest is the default"
        )
    # JAX's own setting is part of its key of compiled programs.
    with execution.held(_chosen, setting), jax.default_matmul_precision(setting):
        yield


class Numerics(NamedTuple):
    """What numbers depend on beside the program: they compare where it is the same, or was shown not to matter.

    Attributes:
        backend: `cpu`, `gpu` or `tpu`.
        precision: see `precision`.
    """

    backend: str = "cpu"
    precision: str = "highest"

    def __str__(self) -> str:
        """As in `the highest precision of a cpu`."""
        return f"{self.precision} precision on {self.backend}"


USUAL = Numerics()
"""Of what does not say: the references that ship with the package, older profiles and certificates."""


def numerics() -> Numerics:
    """What scores are computed by, here and now."""
    return Numerics(execution.platform(), _chosen.get() or "highest")


class Jitted(Generic[Result]):
    """A compiled function, in the precision that is in force when it is called; see `jit`."""

    def __init__(self, function: Callable[..., Result], *, trains: bool, options: dict[str, Any]):
        functools.update_wrapper(self, function)
        self._trains = trains
        self._plain: Any = jax.jit(function, **options)
        # Another function than the plain one: JAX would take a trace of the one for the other.
        self._rewritten: Any = jax.jit(functools.wraps(function)(functools.partial(_traced_anew, function)), **options)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """As a method, of which the instance is the first argument."""
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        """What the function returns; what it takes as `jax.Array` may be a NumPy array.

        Raises:
            DeviceMemoryError: the program does not fit the device.
        """
        jitted, precision_in_force = self._in_force()
        try:
            with precision_in_force:
                return jitted(*args, **kwargs)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            room, told = execution.device_bytes() / 1e9, str(error).strip().splitlines()[0][:200]
            raise DeviceMemoryError(
                f"expected a program within the {room:.1f} GB of a device, got one that needs more ({told}) in "
                f"{getattr(self, '__name__', 'a program')}; lower the batch size, or take fewer images"
            ) from error

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """As `jax.jit(function).lower`."""
        jitted, precision_in_force = self._in_force()
        with precision_in_force:
            return jitted.lower(*args, **kwargs)

    def cache_size(self) -> int:
        """Versions that were compiled."""
        return self._plain._cache_size() + self._rewritten._cache_size()

    def clear_cache(self) -> None:
        """Forget them."""
        self._plain.clear_cache()
        self._rewritten.clear_cache()

    def _in_force(self) -> tuple[Any, contextlib.AbstractContextManager[Any]]:
        """What is called, and the context that it is called in."""
        program_cache.keep()
        setting = _chosen.get() or (None if self._trains else "highest")
        if setting is None or _is_rewritten.get():  # all of a program is rewritten at once, after its derivatives
            return self._plain, contextlib.nullcontext()
        jitted = self._plain if _change(setting) is None else self._rewritten
        return jitted, jax.default_matmul_precision(setting)


def jit(function: Callable[..., Result], *, trains: bool = False, **options: Any) -> Jitted[Result]:
    """`jax.jit` under the precision that is in force; all programs of jaxguard are compiled by it.

    Args:
        function: what to compile.
        trains: whether it trains a network, which is left to JAX's own configuration unless `precision` is set.
        **options: of `jax.jit`.

    Returns:
        The compiled function. A program that is compiled within another shares the precision of the other.
    """
    return Jitted(function, trains=trains, options=options)


def _traced_anew(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    change = _change(_chosen.get() or "highest")
    with execution.held(_is_rewritten, True):
        return (function if change is None else rounding.rewritten(function, change))(*args, **kwargs)


def _change(setting: Precision) -> rounding.Change | None:
    """What must be changed in a traced program, which may hold parts that were traced before in another precision."""
    if setting == "bfloat16":
        return rounding.in_passes(jax.lax.Precision.DEFAULT) if execution.platform() == "tpu" else rounding.in_bfloat16
    return rounding.in_passes(jax.lax.Precision.HIGHEST) if setting == "highest" and not execution.is_cpu() else None


einsum, matmul = jit(jnp.einsum, static_argnums=0), jit(jnp.matmul)
"""As those of `jax.numpy`, where no compiled function is around."""
