"""Pre-activation ResNet-18 for 32x32 images, the network of the BackdoorBench leaderboard.

He et al., Identity Mappings in Deep Residual Networks (ECCV 2016). As in BackdoorBench there is no normalisation in
the shortcut and none after the last block, so the last convolution feeds no BatchNorm.
"""

from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from jaxguard.models import layers


class PreActBlock(nn.Module, kw_only=True):
    """`conv2(relu(bn2(conv1(a)))) + shortcut`, with `a = relu(bn1(x))`.

    The shortcut is `x` itself, or a 1x1 convolution of `a` where the block changes the shape.

    Attributes:
        features: output channels.
        strides: of `conv1` and the shortcut.
        shortcut: name of the shortcut's convolution.
        dtype: compute dtype.
    """

    features: int
    strides: int = 1
    shortcut: str = "shortcut_0"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, H / strides, W / strides, features]`."""
        activated = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="bn1")(x))
        y = layers.conv(self.features, 3, strides=self.strides, dtype=self.dtype, name="conv1")(activated)
        y = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="bn2")(y))
        y = layers.conv(self.features, 3, dtype=self.dtype, name="conv2")(y)
        if self.strides != 1 or x.shape[-1] != self.features:
            x = layers.conv(self.features, 1, strides=self.strides, dtype=self.dtype, name=self.shortcut)(activated)
        return y + x


class PreActResNet(layers.Classifier, kw_only=True):
    """Stem `conv1`; stages `layer1_0`, `layer1_1`, ..., each after the first halves the image; head `linear`.

    Attributes:
        blocks: blocks of each stage.
        channels: channels of each stage, before the width multiplier; the stem has those of the first.
    """

    blocks: tuple[int, ...] = (2, 2, 2, 2)
    channels: tuple[int, ...] = (64, 128, 256, 512)

    @property
    def landmarks(self) -> Sequence[str]:
        """The last blocks distinguish depths."""
        return (*super().landmarks, *(f"layer{stage}_{n - 1}/conv2" for stage, n in enumerate(self.blocks, start=1)))

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, K]`."""
        stem = layers.scaled(self.channels[0], self.width)
        x = layers.conv(stem, 3, dtype=self.dtype, name="conv1")(images)
        for stage, (blocks, channels) in enumerate(zip(self.blocks, self.channels, strict=True), start=1):
            for i in range(blocks):
                x = PreActBlock(
                    features=layers.scaled(channels, self.width),
                    strides=2 if stage > 1 and i == 0 else 1,
                    dtype=self.dtype,
                    name=f"layer{stage}_{i}",
                )(x, train)
        return layers.logits(layers.global_mean(x), self.num_classes, name="linear")
