"""Binding checkpoints to models: flat leaves to variables, and back.

If leaves do not fit, one CheckpointError lists the first mismatches and, if found, the specification that would fit.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jax import tree_util

from jaxguard.errors import CheckpointError
from jaxguard.models import identification, layouts
from jaxguard.models.layouts import Layout
from jaxguard.models.model import Model
from jaxguard.types import Variables


def bind(model: Model, leaves: Mapping[str, np.ndarray], source: str = "") -> tuple[Variables, Layout]:
    """Converts a checkpoint's leaves to the variables of `model`.

    Args:
        model: the model.
        leaves: arrays by name, in any layout of `jaxguard.models.layouts`.
        source: file name for messages.

    Returns:
        Variables with float32 leaves, and the layout of `leaves`, for `unbind`. On CPU they may share memory with
        `leaves`, which must not be modified afterwards.

    Raises:
        CheckpointError: leaves are missing, unexpected, of another shape, not floating point, or not finite.

    >>> from jaxguard.models import architecture
    >>> model = architecture.build("mlp:hidden=2", num_classes=1, input_shape=(1, 2, 1))
    >>> leaves = {"fc1.weight": np.eye(2), "fc1.bias": np.ones(2)}
    >>> leaves |= {"linear.weight": np.ones((1, 2)), "linear.bias": np.zeros(1)}
    >>> variables, layout = bind(model, leaves)
    >>> layout, variables["params"]["fc1"]["bias"]
    ('torch', Array([1., 1.], dtype=float32))
    """
    place = f"{source}: " if source else ""
    layout, found = layouts.recognize(leaves, model.module)
    expected = layouts.expected(model, layout)
    identification.require_fit(model, expected, found, place)
    bound = {
        leaf.path: layouts.decode(_float32(name, found[name], place), layout, leaf) for name, leaf in expected.items()
    }
    return jax.device_put(_arranged(model, bound)), layout


class Binding(NamedTuple):
    """`bind` for programs that are compiled around it.

    Attributes:
        bind_fn: `leaves, arrays or tracers by name -> float32 variables`.
        paths: leaf of the checkpoint -> path in the variables.
        channels_first: those of the paths whose kernels the checkpoint holds `[C, fan-in, ...]`.
    """

    bind_fn: Callable[[Mapping[str, jax.Array]], Variables]
    paths: Mapping[str, str]
    channels_first: frozenset[str]


def binding_of(model: Model, specs: Mapping[str, identification.HasShape], source: str = "") -> Binding:
    """The binding of a checkpoint to `model`; checks names and shapes, not values.

    Args:
        model: the model.
        specs: shapes by leaf name.
        source: file name for messages.

    Raises:
        CheckpointError: leaves are missing, unexpected, or of another shape.
    """
    layout, found = layouts.recognize(specs, model.module)
    expected = layouts.expected(model, layout)
    identification.require_fit(model, expected, found, f"{source}: " if source else "")
    given = identification.original_names(model, specs)

    def bind_fn(leaves: Mapping[str, jax.Array]) -> Variables:
        decoded = {leaf.path: layouts.decode(leaves[given[name]], layout, leaf) for name, leaf in expected.items()}
        return _arranged(model, decoded)

    turned = frozenset(leaf.path for leaf in expected.values() if leaf.is_kernel and layout != "flax")
    return Binding(bind_fn, {given[name]: leaf.path for name, leaf in expected.items()}, turned)


def unbind(model: Model, variables: Variables, layout: Layout) -> dict[str, np.ndarray]:
    """Converts variables to a checkpoint's leaves, C-contiguous arrays by name; the exact inverse of `bind`.

    Args:
        model: the model of the variables.
        variables: as returned by `bind` or `model.init`.
        layout: `flax`, or one of the model's dialects such as `torch`.

    Raises:
        CheckpointError: the variables are not the model's, or the layout is unknown.
    """
    known = layouts.layouts_of(model.module)
    if layout not in known:
        raise CheckpointError(
            f"expected layout {' or '.join(known)} for {model.spec}, got {layout!r} in unbind(); pass one of them"
        )
    flat = {path: np.asarray(leaf) for path, leaf in layouts.by_path(variables).items()}
    identification.require_fit(model, layouts.expected(model, "flax"), flat, "variables: ")
    return {
        name: np.ascontiguousarray(layouts.encode(flat[leaf.path], layout, leaf))
        for name, leaf in layouts.expected(model, layout).items()
    }


def _arranged(model: Model, flat: Mapping[str, Any]) -> dict[str, Any]:
    def pick(path: tree_util.KeyPath, _: jax.ShapeDtypeStruct) -> Any:
        return flat[tree_util.keystr(path, simple=True, separator="/")]

    return tree_util.tree_map_with_path(pick, model.shapes())


def _float32(name: str, array: np.ndarray, place: str) -> np.ndarray:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise CheckpointError(
            f"{place}expected floating point, got {array.dtype} for leaf {name!r}; "
            "dequantise the checkpoint before auditing it"
        )
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    finite = np.isfinite(array)
    if not finite.all():
        raise CheckpointError(
            f"{place}expected finite values, got {int((~finite).sum())} of {array.size} that are not in leaf {name!r}, "
            "as float32; the file is damaged or training diverged, export it again from a good step"
        )
    return array
