"""Layers shared by all architectures, with torch's geometry and running-statistics settings."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
from flax import linen as nn
from jax import lax
from jax import numpy as jnp

from jaxguard.errors import DataError
from jaxguard.models import dialects
from jaxguard.models.dialects import Dialect, Shape

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "tanh": jnp.tanh,
}

unfilled = nn.initializers.zeros
"""`Model.init` fills kernels by their names; a module's own initialisers are only traced, for shapes: cheap ones do."""


class Classifier(nn.Module, kw_only=True):
    """A network from images to logits, `module(images [B, H, W, C], train) -> logits [B, K]`.

    Submodules have torch's names with underscores for the dots of module lists: `layer1_0/conv1` is
    torch's `layer1.0.conv1`. Inside a block they are called in torch's registration order, because
    published defenses pair layers by that order.

    Attributes:
        num_classes: `K`.
        width: multiplier of all channel counts, see `scaled`.
        dtype: compute dtype, such as `bfloat16`; parameters, batch statistics and the head stay float32.
            None computes in the dtype of images and parameters.
        default_size: `(H, W)` of the images that published networks take.
        stem: name of the layer that reads the image.
        head: name of the dense layer that gives the logits.
    """

    default_size: ClassVar[tuple[int, int]] = (32, 32)
    stem: ClassVar[str] = "conv1"
    head: ClassVar[str] = "linear"

    num_classes: int
    width: float = 1.0
    dtype: Any = None

    @property
    def dialects(self) -> Mapping[dialects.Name, Dialect]:
        """The leaf names of published implementations by layout, the best-known first."""
        return {"torch": Dialect()}

    @property
    def landmarks(self) -> Sequence[str]:
        """Layers whose names distinguish the dialects, and this network from those of other depths."""
        return (self.stem, self.head)

    @property
    def guesses(self) -> Sequence[str]:
        """Assumptions that the leaves do not determine, in full sentences."""
        return ()

    def input_size(self, shape_of: Callable[[str], Shape | None]) -> tuple[int, int] | None:
        """`(H, W)` of the images, if the leaves determine it; `shape_of`: path in `params` -> shape of the leaf."""
        del shape_of
        return None

    def flattened(self, input_shape: tuple[int, int, int]) -> Mapping[str, tuple[int, int]]:
        """Dense layers that read a flattened `[h, w, channels]` map, with the map's `(h, w)`."""
        del input_shape
        return {}


def assumed(activation: str) -> tuple[str]:
    """What a network of any activation is guessed to have, in a whole sentence."""
    return (f"The activation, {activation}, is a guess: the leaves do not show it.",)


def scaled(channels: int, width: float) -> int:
    """Channel count under a width multiplier, at least one.

    >>> scaled(64, 0.5), scaled(16, 0.01)
    (32, 1)
    """
    return max(1, round(channels * width))


def conv(
    features: int,
    kernel_size: int,
    *,
    name: str,
    strides: int = 1,
    groups: int = 1,
    use_bias: bool = False,
    dtype: Any = None,
) -> nn.Conv:
    """Square convolution padded by `kernel_size // 2` on all sides; `SAME` is asymmetric where it strides."""
    return nn.Conv(
        features,
        kernel_size=(kernel_size, kernel_size),
        strides=(strides, strides),
        padding=((kernel_size // 2, kernel_size // 2),) * 2,
        feature_group_count=groups,
        use_bias=use_bias,
        kernel_init=unfilled,
        dtype=dtype,
        name=name,
    )


def patch_conv(x: jax.Array, features: int, size: int, *, name: str, dtype: Any = None) -> jax.Array:
    """Convolution of patches that do not overlap; rows and columns beyond the last whole patch are dropped.

    Raises:
        DataError: there is no whole patch.
    """
    if min(x.shape[1:3]) < size:
        raise DataError(
            f"expected at least {size}x{size} pixels for the patches of {name}, got {x.shape[1]}x{x.shape[2]}; use "
            "larger images or an architecture with smaller patches, such as resnet20"
        )
    conv = nn.Conv(features, (size, size), (size, size), padding="VALID", kernel_init=unfilled, dtype=dtype, name=name)
    return conv(x)


def batch_norm(train: bool, *, name: str, epsilon: float = 1e-5, dtype: Any = None) -> nn.BatchNorm:
    """Batch normalisation with torch's epsilon and momentum; its statistics are float32 in any compute dtype."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=epsilon, dtype=dtype, name=name)


def layer_norm(*, name: str, dtype: Any = None) -> nn.LayerNorm:
    """Layer normalisation over channels with the epsilon of vision transformers; computed in float32."""
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=dtype, name=name)


def stem_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum with stride 2, padded by one on all sides, behind the stems of ImageNet networks."""
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)


def max_pool(x: jax.Array) -> jax.Array:
    """2x2 maximum with stride 2; an odd last row or column is dropped.

    Raises:
        DataError: less than 2x2 pixels are left.
    """
    if min(x.shape[1:3]) < 2:
        raise DataError(
            f"expected at least 2x2 pixels at a max-pool, got {x.shape[1]}x{x.shape[2]}; use larger images or an "
            "architecture with fewer max-pools, such as resnet20"
        )
    return nn.max_pool(x, (2, 2), strides=(2, 2))


def mean_pool(x: jax.Array) -> jax.Array:
    """2x2 mean with stride 2; an odd last row or column is dropped."""
    return nn.pool(x, 0.0, lax.add, (2, 2), (2, 2), "VALID") / 4  # `nn.avg_pool` divides by an integer array


def logits(x: jax.Array, num_classes: int, *, name: str) -> jax.Array:
    """Dense head, `[B, D] -> [B, K]`, in at least float32."""
    return nn.Dense(num_classes, kernel_init=unfilled, name=name)(x.astype(jnp.promote_types(x.dtype, jnp.float32)))


def global_mean(x: jax.Array) -> jax.Array:
    """`[B, H, W, C] -> [B, C]`, the mean over positions."""
    return jnp.mean(x, axis=(1, 2))


def adaptive_mean(x: jax.Array, size: int) -> jax.Array:
    """`[B, H, W, C] -> [B, size, size, C]` as torch's `AdaptiveAvgPool2d`, which repeats smaller maps.

    Cell i is the mean of rows floor(i H / size) to ceil((i + 1) H / size), exclusive, and of columns accordingly.
    """
    for axis in (1, 2):
        length = x.shape[axis]
        if length == 1:
            x = jnp.broadcast_to(x, (*x.shape[:axis], size, *x.shape[axis + 1 :]))
        elif length != size:
            # Torch's cells: from the floor of the start to the ceiling of the end, so that neighbours may overlap by
            # one.
            cells = [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
            x = jnp.stack(
                [jnp.mean(lax.slice_in_dim(x, start, stop, axis=axis), axis=axis) for start, stop in cells],
                axis,
            )
    return x
