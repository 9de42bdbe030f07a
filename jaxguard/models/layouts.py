"""The layouts of a model's leaves in checkpoints.

`flax`: slash-separated paths, HWIO convolutions, (in, out) dense layers: `params/layer1_0/conv1/kernel`.
All others are PyTorch's: dotted names, OIHW convolutions, (out, in) dense layers, maps flattened channels first:
`layer1.0.conv1.weight`. `torch` has the names of an architecture's best-known implementation, torchvision's if there is
one; `timm` has timm's if they differ; `original` those of the first release if they have changed since. Architectures
declare their dialects: `jaxguard.models.dialects`.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import numpy as np
from jax import tree_util

from jaxguard.checkpoints import training_state
from jaxguard.models import dialects
from jaxguard.models.dialects import Shape
from jaxguard.models.layers import Classifier
from jaxguard.models.model import Model

Layout = Literal["flax"] | dialects.Name

Thing = TypeVar("Thing")

WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "network.", "student.", "online.")
"""Prefixes of DataParallel, torch.compile and modules that wrap the network; dropped if all leaves share one."""


_COLLECTIONS = ("params", "batch_stats")
_REASONS = {
    r"aux\w*": "an auxiliary head",
    r"proj(ection|ector)?(_head|_mlp|_net)?|projection_\w+|projector_\w+|\w+_(projector|projection)|predictor": (
        "a projection head"
    ),
    r"teacher\w*|momentum_\w+|target_(encoder|network|model)|encoder_k|key_encoder": "a copy of the network",
    r"queue\w*|memory(_bank)?|prototypes?|centers?|center_loss": "a memory of features",
    r"rot(ation)?_(head|fc|classifier)|jigsaw\w*|ssl_\w+|domain_\w+|discriminator|decoder|reconstruct\w*": (
        "a head of another task"
    ),
}
_PROFILED = ("total_ops", "total_params")


class Leaf(NamedTuple):
    """A leaf that a model expects in a checkpoint.

    Attributes:
        path: in the variables, such as `params/conv1/kernel`.
        shape: its shape in the checkpoint's layout.
        grid: `(h, w)` of the map a dense layer reads flattened, None for all other leaves.
        bound: its shape in the variables.
    """

    path: str
    shape: Shape
    grid: tuple[int, int] | None
    bound: Shape

    @property
    def is_kernel(self) -> bool:
        """Whether it is the kernel of a convolution or a dense layer, which torch stores transposed."""
        return self.path.endswith("/kernel")


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a nested dict by slash-separated path.

    >>> by_path({"params": {"conv1": {"kernel": 1}}})
    {'params/conv1/kernel': 1}
    """
    return {tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def layouts_of(module: Classifier) -> tuple[Layout, ...]:
    """The layouts of an architecture, `flax` first."""
    return ("flax", *module.dialects)


def options_of(module: Classifier, layout: Layout) -> Mapping[str, Any]:
    """Options of the specification that differ in a layout's implementation, see `Dialect`."""
    return {} if layout == "flax" else module.dialects[layout].options


def expected(model: Model, layout: Layout) -> dict[str, Leaf]:
    """The leaves of `model` by their name in a checkpoint."""
    grids = {f"params/{name}/kernel": grid for name, grid in model.module.flattened(model.input_shape).items()}
    dialect = None if layout == "flax" else model.module.dialects[layout]
    leaves = {}
    for path, leaf in by_path(model.shapes()).items():
        name, shape = (dialect.name_of(path), dialect.shape_of(path, leaf.shape)) if dialect else (path, leaf.shape)
        leaves[name] = Leaf(path, shape, grids.get(path), leaf.shape)
    return leaves


def name_of(path: str, layout: Layout, module: Classifier) -> str:
    """The name of a leaf of `module`'s variables in a checkpoint."""
    return path if layout == "flax" else module.dialects[layout].name_of(path)


def recognize(leaves: Mapping[str, Thing], module: Classifier | None = None) -> tuple[Layout, dict[str, Thing]]:
    """The layout of a checkpoint by its names, and its leaves without torch's additions.

    `num_batches_tracked` and every prefix of `WRAPPERS` that all leaves share are dropped.

    Args:
        leaves: anything by name.
        module: its landmarks distinguish its dialects. Without it, or without any landmark among the names, all names
            that are not Flax's count as `torch`.

    >>> recognize({"module.fc.weight": np.ones((1, 2)), "module.bn.num_batches_tracked": np.ones(())})
    ('torch', {'fc.weight': array([[1., 1.]])})
    """
    if any(name.startswith(("params/", "batch_stats/")) for name in leaves):
        return "flax", dict(leaves)
    kept = unwrapped({name: leaf for name, leaf in leaves.items() if name.rpartition(".")[-1] != "num_batches_tracked"})
    if module is None:
        return "torch", kept
    paths = [f"params/{layer}/kernel" for layer in module.landmarks]
    return max(module.dialects, key=lambda layout: sum(name_of(path, layout, module) in kept for path in paths)), kept


def unwrapped(leaves: Mapping[str, Thing]) -> dict[str, Thing]:
    """Leaves without the prefixes of `WRAPPERS` that all of them share."""
    kept = dict(leaves)
    while shared := next((word for word in WRAPPERS if kept and all(name.startswith(word) for name in kept)), ""):
        kept = {name.removeprefix(shared): leaf for name, leaf in kept.items()}
    return kept


def from_layout(shape: Shape, layout: Layout) -> Shape:
    """A kernel's shape in the variables, from its shape in a checkpoint."""
    return shape if layout == "flax" else dialects.kernel_from_torch(shape)


def encode(array: np.ndarray, layout: Layout, leaf: Leaf) -> np.ndarray:
    """Converts a leaf of the variables to `layout`."""
    if layout == "flax":
        return array
    if not leaf.is_kernel:
        return array.reshape(leaf.shape)
    if leaf.grid is not None:
        units = array.shape[-1]
        array = array.reshape(*leaf.grid, -1, units).transpose(2, 0, 1, 3).reshape(-1, units)
    return array.transpose(array.ndim - 1, array.ndim - 2, *range(array.ndim - 2)).reshape(leaf.shape)


def decode(array: Any, layout: Layout, leaf: Leaf) -> Any:
    """Converts a leaf from `layout` to the variables; inverse of `encode`."""
    if layout == "flax":
        return array
    if not leaf.is_kernel:
        return array.reshape(leaf.bound)
    array = array.reshape(dialects.kernel_to_torch(leaf.bound))
    if leaf.grid is not None:
        units = array.shape[0]
        # Torch flattens [channels, h, w], Flax [h, w, channels]: the inputs of a dense layer behind a flatten are
        # reordered.
        array = array.reshape(units, -1, *leaf.grid).transpose(0, 2, 3, 1).reshape(units, -1)
    return array.transpose(*range(2, array.ndim), 1, 0)


def beside(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Name what lies beside a network.

    Entries count by the first word of their names, wrappers such as `module.` aside. A layer inside of a module of the
    network, or at its top under a name that says nothing, may be a part of its function, and is not told apart.

    Args:
        leaves: arrays or their shapes, by name.

    Returns:
        Reasons by name; empty for most checkpoints.

    Example:
        >>> import numpy as np
        >>> beside({"module.fc.weight": np.ones((2, 3)), "criterion.weight": np.ones(2), "n": np.ones(())})
        {'criterion.weight': 'a loss or metric', 'n': 'one number'}
    """
    found: dict[str, str] = {}
    names = unwrapped({name: name for name in leaves})
    while fresh := {name: why for rest, name in names.items() if (why := _reason(rest, leaves[name].shape))}:
        if len(fresh) == len(names):
            break
        found |= fresh
        names = unwrapped({rest: name for rest, name in names.items() if name not in fresh})
    return {name: found[name] for name in leaves if name in found}


def _reason(name: str, shape: Shape) -> str:
    words = re.split(r"[/.]", name)
    if words[-1] in _PROFILED and math.prod(shape) == 1:
        return "a count of operations"
    if "/" in name and words[0] in _COLLECTIONS and len(words) > 1:
        words = words[1:]
    first = words[0].lower()
    if len(words) == 1:
        return "one number" if math.prod(shape) == 1 and len(shape) <= 1 else _of_word(first)
    if training_state.loss_or_metric(first):
        return "a loss or metric"
    if training_state.is_average(words[0]):
        return "an average of the weights"
    return _of_word(first)


def _of_word(word: str) -> str:
    return next((why for pattern, why in _REASONS.items() if re.fullmatch(pattern, word)), "")
