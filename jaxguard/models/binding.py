"""Checkpoints bound to models: flat leaves in, variables out, and back.

Whatever does not fit is one CheckpointError that lists the first misfits and, where it can be found, the
specification that would fit.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax import tree_util

from jaxguard.errors import CheckpointError, DataError
from jaxguard.models import architecture, layouts
from jaxguard.models.dialects import Shape
from jaxguard.models.layouts import Layout, Leaf
from jaxguard.models.model import Model
from jaxguard.types import Variables

LISTED = 4  # leaves a message lists
DEFAULT_SIZE = (32, 32)


def bind(model: Model, leaves: Mapping[str, np.ndarray], source: str = "") -> tuple[Variables, Layout]:
    """Turn a checkpoint's leaves into the variables of `model`.

    Args:
        model: what the checkpoint should fit.
        leaves: arrays by name, in either layout of `jaxguard.models.layouts`.
        source: file name for messages.

    Returns:
        Variables with float32 leaves, and the layout the leaves were in, for `unbind`. On CPU they may share memory
        with `leaves`, which must not be written to afterwards.

    Raises:
        CheckpointError: if leaves are missing, unexpected, of another shape, not floating point, or not finite.

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
    _require_fit(model, expected, found, place)
    bound = {
        leaf.path: layouts.decode(_float32(name, found[name], place), layout, leaf) for name, leaf in expected.items()
    }
    return _tree(model, bound), layout


def unbind(model: Model, variables: Variables, layout: Layout) -> dict[str, np.ndarray]:
    """Turn variables into a checkpoint's leaves; the inverse of `bind`, bit by bit.

    Args:
        model: what the variables belong to.
        variables: as `bind` or `model.init` gave them.
        layout: `flax`, or one of the model's dialects such as `torch`.

    Returns:
        C-contiguous arrays by name.

    Raises:
        CheckpointError: if the variables are not the model's, or there is no such layout.
    """
    known = layouts.layouts_of(model.module)
    if layout not in known:
        raise CheckpointError(
            f"layout is {layout!r}, unbind of {model.spec} expects {' or '.join(known)}; pass one of them"
        )
    flat = {path: np.asarray(leaf) for path, leaf in layouts.by_path(variables).items()}
    _require_fit(model, layouts.expected(model, "flax"), flat, "variables: ")
    return {
        name: np.ascontiguousarray(layouts.encode(flat[leaf.path], layout, leaf))
        for name, leaf in layouts.expected(model, layout).items()
    }


def infer(
    spec: str,
    leaves: Mapping[str, np.ndarray],
    *,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Model:
    """Build the model of a checkpoint: classes are read from its head, image channels from its stem.

    Args:
        spec: architecture, see `jaxguard.models.build`.
        leaves: arrays by name, in either layout.
        input_shape: `(H, W, C)` of one image; 32x32 with the stem's channels where not given.
        mean: see `jaxguard.models.build`.
        std: see `jaxguard.models.build`.

    Returns:
        A model to `bind` the leaves to; whether all of them fit is checked there.

    Raises:
        ArchitectureError: for a bad specification.
        CheckpointError: if head or stem are missing or cannot be read.
        DataError: for an impossible `input_shape`, `mean` or `std`.
    """
    probe = architecture.build(spec, num_classes=1, input_shape=input_shape or (*DEFAULT_SIZE, 1))
    layout, found = layouts.recognize(leaves, probe.module)
    num_classes, channels = _classes_and_channels(probe, found, layout)
    shape = input_shape or (*DEFAULT_SIZE, channels)
    return architecture.build(spec, num_classes=num_classes, input_shape=shape, mean=mean, std=std)


def _tree(model: Model, flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    def pick(path: tree_util.KeyPath, _: jax.ShapeDtypeStruct) -> np.ndarray:
        return flat[tree_util.keystr(path, simple=True, separator="/")]

    return jax.device_put(tree_util.tree_map_with_path(pick, model.shapes()))


def _float32(name: str, array: np.ndarray, place: str) -> np.ndarray:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise CheckpointError(
            f"{place}leaf {name!r} is {array.dtype}, expected floating point; "
            "de-quantise the checkpoint before auditing it"
        )
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    finite = np.isfinite(array)
    if not finite.all():
        raise CheckpointError(
            f"{place}leaf {name!r} has {int((~finite).sum())} non-finite values of {array.size} in float32, expected "
            "none; the file is damaged or training diverged, export it again from a good step"
        )
    return array


def _require_fit(model: Model, expected: Mapping[str, Leaf], found: Mapping[str, np.ndarray], place: str) -> None:
    telling = sorted(expected.items(), key=lambda item: -len(item[1].shape))  # kernels before vectors
    misfits = [
        f"leaf {name!r} is {found[name].shape}, {model.spec} expects {leaf.shape}"
        for name, leaf in telling
        if name in found and found[name].shape != leaf.shape
    ]
    misfits += [f"leaf {name!r} {leaf.shape} is missing" for name, leaf in telling if name not in found]
    misfits += [
        f"leaf {name[:80]!r} {leaf.shape} is not part of {model.spec}"
        for name, leaf in found.items()
        if name not in expected
    ]
    if not misfits:
        return
    listed = "; ".join(misfits[:LISTED])
    if len(misfits) > LISTED:
        listed += f"; and {len(misfits) - LISTED} more"
    raise CheckpointError(f"{place}{listed}; {_remedy(model, found)}")


def _remedy(model: Model, found: Mapping[str, np.ndarray]) -> str:
    """What would make the leaves fit, found by trying every architecture."""
    for spec in dict.fromkeys([model.spec, *architecture.variants()]):
        fit = _fit(spec, model.input_shape, found)
        if fit is None:
            continue
        advice = []
        if fit.spec.split(":")[0] != model.spec.split(":")[0]:
            advice.append(f"is it a {fit.spec}? pass --arch {fit.spec}")
        elif fit.spec != model.spec:
            advice.append(f"was it trained with {fit.spec.partition(':')[2] or 'width=1'}? pass --arch {fit.spec}")
        if fit.num_classes != model.num_classes:
            advice.append(f"it has {fit.num_classes} classes, pass num_classes={fit.num_classes}")
        if fit.input_shape != model.input_shape:
            advice.append(f"it reads other images, pass input_shape={fit.input_shape}")
        return "; ".join(advice)
    known = ", ".join(architecture.ARCHITECTURES)
    return f"no architecture fits, jaxguard knows {known}; was the network changed or renamed?"


def _fit(spec: str, input_shape: Shape, leaves: Mapping[str, np.ndarray]) -> Model | None:
    """The model of that architecture all leaves fit, at any width; None if there is none."""
    name, options = architecture.parse(spec)
    try:
        probe = architecture.build(spec, num_classes=1, input_shape=input_shape)
        layout, found = layouts.recognize(leaves, probe.module)
        shapes = {name: leaf.shape for name, leaf in found.items()}
        num_classes, channels = _classes_and_channels(probe, found, layout)
        for width in _candidate_widths(probe, found, layout):
            candidate = architecture.build(
                architecture.canonical(name, {**options, "width": width}),
                num_classes=num_classes,
                input_shape=(*input_shape[:2], channels),
            )
            if {key: leaf.shape for key, leaf in layouts.expected(candidate, layout).items()} == shapes:
                return candidate
    except (CheckpointError, DataError):  # no such head or stem; images too small for this architecture
        return None
    return None


def _candidate_widths(model: Model, found: Mapping[str, np.ndarray], layout: Layout) -> list[float]:
    """Width multipliers that explain the head's fan-in, simple numbers first."""
    head = _kernel_shape(model, model.module.head, found, layout)
    if head is None:
        return []
    fan_in = model.shapes()["params"][model.module.head]["kernel"].shape[0]
    width = model.module.width * head[-2] / fan_in
    return [value for value in dict.fromkeys([round(width, 2), round(width, 3), width]) if value > 0]


def _kernel_shape(model: Model, layer: str, found: Mapping[str, np.ndarray], layout: Layout) -> Shape | None:
    """Shape of a layer's kernel as the variables would hold it; None where it is missing or not a kernel."""
    leaf = found.get(layouts.name_of(f"params/{layer}/kernel", layout, model.module))
    if leaf is None or leaf.ndim not in (2, 4) or leaf.size == 0:
        return None
    return layouts.from_layout(leaf.shape, layout)


def _classes_and_channels(model: Model, found: Mapping[str, np.ndarray], layout: Layout) -> tuple[int, int]:
    """`K` of the head and image channels of the stem, as the checkpoint has them."""
    shapes = []
    for layer in (model.module.head, model.module.stem):
        shape = _kernel_shape(model, layer, found, layout)
        if shape is None:
            name = layouts.name_of(f"params/{layer}/kernel", layout, model.module)
            raise CheckpointError(
                f"leaf {name!r} is missing or not a kernel, {model.spec} needs it; "
                f"the checkpoint has {', '.join(repr(name[:80]) for name in list(found)[:LISTED])}, ...; "
                f"choose the architecture it was trained with: {', '.join(architecture.ARCHITECTURES)}"
            )
        shapes.append(shape)
    head, stem = shapes
    positions = math.prod(model.module.flattened(model.input_shape).get(model.module.stem, (1, 1)))
    if stem[-2] % positions:  # an MLP trained on another image size
        raise CheckpointError(
            f"the first layer reads {stem[-2]} numbers, {model.spec} expects a multiple of the "
            f"{model.input_shape[0]}x{model.input_shape[1]} pixels of an image; pass input_shape=(H, W, C)"
        )
    return head[-1], stem[-2] // positions
