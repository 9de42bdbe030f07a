r"""How published PyTorch implementations name the leaves of an architecture.

A `layers.Classifier` lists its dialects by layout. Without a table, a dialect follows the naming rule of all modules
here: underscores of module names are the dots of torch's module lists, so `layer1_0/conv1/kernel` is
`layer1.0.conv1.weight`. Exceptions to the rule are rows of the table:

    Dialect({r"blocks_(\d+)/attn/qkv/(weight|bias)": r"encoder.layers.encoder_layer_\1.self_attention.in_proj_\2"})
"""

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Shape = tuple[int, ...]
Name = Literal["torch", "timm", "original"]

TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


class Dialect(NamedTuple):
    """The leaf names of one implementation.

    Attributes:
        names: regular expression -> replacement, as for `re.sub`. An expression is matched against the whole path of a
            leaf below the collection, with torch's word for the last part: `blocks_0/attn/qkv/weight`. The first match
            names the leaf; without a match, the rule of the module docstring does.
        windows: axes into which the implementation splits the last axis of a leaf, by the end of its path: a dense
            layer stored as a 7x7 convolution is `{"classifier_0/weight": (7, 7)}`.
        options: options of the specification that differ in the implementation and do not show in the leaves, such as
            the epsilon of its BatchNorms.
    """

    names: Mapping[str, str] = MappingProxyType({})
    windows: Mapping[str, Shape] = MappingProxyType({})
    options: Mapping[str, Any] = MappingProxyType({})

    def name_of(self, path: str) -> str:
        r"""The name of the leaf at `path`, such as `params/conv1/kernel`.

        >>> Dialect().name_of("batch_stats/layer2_0/shortcut_1/mean")
        'layer2.0.shortcut.1.running_mean'
        >>> Dialect({r"stage(\d)/(\w+)": r"stages.\1.norm.\2"}).name_of("params/stage2/scale")
        'stages.2.norm.weight'
        """
        spelled = _in_torch_words(path)
        for pattern, name in self.names.items():
            match = re.fullmatch(pattern, spelled)
            if match is not None:
                return match.expand(name)
        *modules, leaf = spelled.split("/")
        return ".".join([*(module.replace("_", ".") for module in modules), leaf])

    def shape_of(self, path: str, shape: Shape) -> Shape:
        """The shape the implementation gives the leaf at `path`, which has `shape` in the variables.

        >>> Dialect().shape_of("params/conv1/kernel", (3, 3, 16, 32))
        (32, 16, 3, 3)
        >>> dialect = Dialect(windows={"classifier_0/weight": (7, 7), "gamma": (1, 1)})
        >>> dialect.shape_of("params/classifier_0/kernel", (25088, 4096)), dialect.shape_of("params/block/gamma", (96,))
        ((4096, 512, 7, 7), (96, 1, 1))
        """
        shape = kernel_to_torch(shape) if path.endswith("/kernel") else shape
        spelled = f"/{_in_torch_words(path)}"
        for end, window in self.windows.items():
            if spelled.endswith(f"/{end}"):
                return (*shape[:-1], shape[-1] // math.prod(window), *window)
        return shape


def _in_torch_words(path: str) -> str:
    """A path below its collection, with torch's word for the leaf."""
    _, *modules, leaf = path.split("/")
    return "/".join([*modules, TORCH_LEAVES.get(leaf, leaf)])


def kernel_to_torch(shape: Shape) -> Shape:
    """Torch's shape of a kernel: HWIO becomes OIHW, (in, out) becomes (out, in)."""
    *window, fan_in, fan_out = shape
    return (fan_out, fan_in, *window)


def kernel_from_torch(shape: Shape) -> Shape:
    """Inverse of `kernel_to_torch`."""
    fan_out, fan_in, *window = shape
    return (*window, fan_in, fan_out)
