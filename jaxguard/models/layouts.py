"""The two layouts in which checkpoints hold a model's leaves.

`flax`: slash-separated paths, HWIO convolutions, (in, out) dense layers: `params/layer1_0/conv1/kernel`.
`torch`: dotted names, OIHW convolutions, (out, in) dense layers, maps flattened channels first:
`layer1.0.conv1.weight`. Modules are named after torch's with the dots of module lists replaced by underscores, so one
rule renames the leaves of every architecture.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax import tree_util

from jaxguard.models.model import Model

Layout = Literal["flax", "torch"]
Shape = tuple[int, ...]

TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


class Leaf(NamedTuple):
    """One leaf a model expects to find in a checkpoint.

    Attributes:
        path: where it belongs in the variables, such as `params/conv1/kernel`.
        shape: its shape in the checkpoint's layout.
        grid: `(h, w)` of the map a dense layer reads flattened, None for all other leaves.
    """

    path: str
    shape: Shape
    grid: tuple[int, int] | None


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a nested dict by slash-separated path.

    >>> by_path({"params": {"conv1": {"kernel": 1}}})
    {'params/conv1/kernel': 1}
    """
    return {tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def expected(model: Model, layout: Layout) -> dict[str, Leaf]:
    """The leaves of `model` by their name in a checkpoint."""
    grids = {f"params/{name}/kernel": grid for name, grid in model.module.flattened(model.input_shape).items()}
    return {
        name_of(path, layout): Leaf(path, to_layout(leaf.shape, layout), grids.get(path))
        for path, leaf in by_path(model.shapes()).items()
    }


def name_of(path: str, layout: Layout) -> str:
    """The name a leaf of the variables has in a checkpoint.

    >>> name_of("batch_stats/layer2_0/shortcut_1/mean", "torch")
    'layer2.0.shortcut.1.running_mean'
    """
    if layout == "flax":
        return path
    _, *modules, leaf = path.split("/")
    return ".".join([*(name.replace("_", ".") for name in modules), TORCH_LEAVES[leaf]])


def recognize(leaves: Mapping[str, np.ndarray]) -> tuple[Layout, dict[str, np.ndarray]]:
    """The layout of a checkpoint, and its leaves without what torch adds for its own use.

    `num_batches_tracked` is dropped, and a prefix `module.` (DataParallel) that all leaves share.
    """
    if any(name.startswith(("params/", "batch_stats/")) for name in leaves):
        return "flax", dict(leaves)
    prefix = "module." if all(name.startswith("module.") for name in leaves) else ""
    kept = {name: leaf for name, leaf in leaves.items() if name.rpartition(".")[-1] != "num_batches_tracked"}
    return "torch", {name.removeprefix(prefix): leaf for name, leaf in kept.items()}


def to_layout(shape: Shape, layout: Layout) -> Shape:
    """A leaf's shape in a checkpoint, from its shape in the variables.

    >>> to_layout((3, 3, 16, 32), "torch"), to_layout((64, 10), "torch")
    ((32, 16, 3, 3), (10, 64))
    """
    if layout == "flax":
        return shape
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def from_layout(shape: Shape, layout: Layout) -> Shape:
    """A leaf's shape in the variables, from its shape in a checkpoint; inverse of `to_layout`."""
    if layout == "flax":
        return shape
    return (*shape[2:], shape[1], shape[0]) if len(shape) == 4 else shape[::-1]


def encode(array: np.ndarray, layout: Layout, grid: tuple[int, int] | None) -> np.ndarray:
    """A leaf of the variables as a checkpoint of `layout` holds it; `grid` as in `Leaf`."""
    if layout == "flax":
        return array
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if grid is not None:
        units = array.shape[-1]
        array = array.reshape(*grid, -1, units).transpose(2, 0, 1, 3).reshape(-1, units)
    return array.T


def decode(array: np.ndarray, layout: Layout, grid: tuple[int, int] | None) -> np.ndarray:
    """A leaf of a checkpoint of `layout` as the variables hold it; inverse of `encode`."""
    if layout == "flax":
        return array
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if grid is not None:
        units = array.shape[0]
        array = array.reshape(units, -1, *grid).transpose(0, 2, 3, 1).reshape(units, -1)
    return array.T
