"""Post-activation residual networks for 32x32 images.

`resnet8` to `resnet110` are the CIFAR networks of He et al., Deep Residual Learning for Image Recognition
(CVPR 2016), section 4.2, with parameter-free shortcuts (option A). `resnet18` is their ImageNet network of basic
blocks with a 3x3 stem and projection shortcuts (option B), the form in which CLP and most CIFAR studies use it.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
from flax import linen as nn
from jax import lax
from jax import numpy as jnp

from jaxguard.models import layers

Shortcut = Literal["pad", "project"]


class BasicBlock(nn.Module, kw_only=True):
    """`relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))`.

    Attributes:
        features: output channels.
        strides: of `conv1` and the shortcut.
        shortcut: `pad` (option A) or `project` (option B) where the block changes the shape.
        projection: name of the projection, whose convolution and BatchNorm are its parts `_0` and `_1`.
        dtype: compute dtype.
    """

    features: int
    strides: int = 1
    shortcut: Shortcut = "pad"
    projection: str = "shortcut"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, H / strides, W / strides, features]`."""
        y = layers.conv(self.features, 3, strides=self.strides, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="bn1")(y))
        y = layers.conv(self.features, 3, dtype=self.dtype, name="conv2")(y)
        y = layers.batch_norm(train, dtype=self.dtype, name="bn2")(y)
        if self.strides == 1 and x.shape[-1] == self.features:
            return nn.relu(y + x)
        if self.shortcut == "pad":
            return nn.relu(y + subsample_and_pad(x, self.strides, self.features))
        return nn.relu(y + project(x, self.features, self.strides, train, name=self.projection, dtype=self.dtype))


def project(x: jax.Array, features: int, strides: int, train: bool, *, name: str, dtype: Any) -> jax.Array:
    """Option B: a 1x1 convolution `<name>_0` and its BatchNorm `<name>_1`; called inside a compact module."""
    x = layers.conv(features, 1, strides=strides, dtype=dtype, name=f"{name}_0")(x)
    return layers.batch_norm(train, dtype=dtype, name=f"{name}_1")(x)


def subsample_and_pad(x: jax.Array, strides: int, features: int) -> jax.Array:
    """Option A: every `strides`-th pixel, and as many zero channels before as after the old ones.

    >>> subsample_and_pad(jnp.ones((1, 4, 4, 1)), 2, 3)[0, 0]
    Array([[0., 1., 0.], [0., 1., 0.]], dtype=float32)
    """
    x = lax.slice(x, (0, 0, 0, 0), x.shape, (1, strides, strides, 1))
    before, odd = divmod(features - x.shape[-1], 2)
    padding = ((0, 0, 0), (0, 0, 0), (0, 0, 0), (before, before + odd, 0))
    return lax.pad(x, jnp.zeros((), x.dtype), padding)


class CifarResNet(layers.Classifier, kw_only=True):
    """Stem `conv1`, `bn1`; stages `layer1_0`, ..., each after the first halves the image; head `linear`.

    Attributes:
        blocks: blocks of each stage.
        channels: channels of each stage, before the width multiplier; the stem has those of the first.
        shortcut: `pad` (option A) or `project` (option B) where a block changes the shape.
    """

    blocks: tuple[int, ...]
    channels: tuple[int, ...]
    shortcut: Shortcut

    @property
    def landmarks(self) -> Sequence[str]:
        """The last blocks distinguish depths."""
        return (*super().landmarks, *(f"layer{stage}_{n - 1}/conv2" for stage, n in enumerate(self.blocks, start=1)))

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, K]`."""
        stem = layers.scaled(self.channels[0], self.width)
        x = layers.conv(stem, 3, dtype=self.dtype, name="conv1")(images)
        x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="bn1")(x))
        for stage, (blocks, channels) in enumerate(zip(self.blocks, self.channels, strict=True), start=1):
            for i in range(blocks):
                x = BasicBlock(
                    features=layers.scaled(channels, self.width),
                    strides=2 if stage > 1 and i == 0 else 1,
                    shortcut=self.shortcut,
                    dtype=self.dtype,
                    name=f"layer{stage}_{i}",
                )(x, train)
        return layers.logits(layers.global_mean(x), self.num_classes, name="linear")
