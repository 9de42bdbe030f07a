"""MobileNetV2: Sandler et al., Inverted Residuals and Linear Bottlenecks (CVPR 2018), in torchvision's form."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
from flax import linen as nn

from jaxguard.models import dialects, layers
from jaxguard.models.dialects import Dialect

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and the first block's stride."""

STEM, LAST = 32, 1280


def divisible(channels: float) -> int:
    """The multiple of 8 next to a channel count, and never less than 90 % of it.

    >>> [divisible(channels) for channels in (1, 12, 18, 24)]
    [8, 16, 24, 24]
    """
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


class InvertedResidual(nn.Module, kw_only=True):
    """1x1 up, depthwise 3x3, 1x1 down, each with a BatchNorm, the first two with ReLU6; a sum where shapes allow.

    Attributes:
        features: output channels.
        expansion: channels of the depthwise convolution over those of the input; nothing goes up where it is one.
        strides: of the depthwise convolution.
        dtype: compute dtype.
    """

    features: int
    expansion: int
    strides: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, H / strides, W / strides, features]`."""
        inner, at, y = x.shape[-1] * self.expansion, 0, x
        if self.expansion > 1:
            y = layers.conv(inner, 1, dtype=self.dtype, name="conv_0_0")(y)
            y = nn.relu6(layers.batch_norm(train, dtype=self.dtype, name="conv_0_1")(y))
            at = 1
        y = layers.conv(inner, 3, strides=self.strides, groups=inner, dtype=self.dtype, name=f"conv_{at}_0")(y)
        y = nn.relu6(layers.batch_norm(train, dtype=self.dtype, name=f"conv_{at}_1")(y))
        y = layers.conv(self.features, 1, dtype=self.dtype, name=f"conv_{at + 1}")(y)
        y = layers.batch_norm(train, dtype=self.dtype, name=f"conv_{at + 2}")(y)
        return x + y if x.shape == y.shape else y


class Place(NamedTuple):
    """Where a block is: `features_<position>`, stage and number within the stage from zero, and its geometry."""

    position: int
    stage: int
    number: int
    expansion: int
    channels: int
    strides: int


def places() -> Iterator[Place]:
    """The blocks in order, with channels before the width multiplier."""
    positions = itertools.count(1)
    for stage, (expansion, channels, blocks, strides) in enumerate(STAGES):
        for number in range(blocks):
            yield Place(next(positions), stage, number, expansion, channels, strides if number == 0 else 1)


class MobileNetV2(layers.Classifier, kw_only=True):
    """Stem `features_0_0`, `features_0_1`; blocks `features_1` to `features_17`; `features_18_0`, `_1`; `classifier_1`.

    Channel counts under a width multiplier are multiples of 8, and those of the last convolution never shrink.
    """

    default_size: ClassVar[tuple[int, int]] = (224, 224)
    stem: ClassVar[str] = "features_0_0"
    head: ClassVar[str] = "classifier_1"

    @property
    def dialects(self) -> Mapping[dialects.Name, Dialect]:
        """Torchvision's sequential modules, timm's named ones."""
        return {"torch": Dialect(), "timm": Dialect(_timm_names())}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, K]`."""
        features = divisible(STEM * self.width)
        x = layers.conv(features, 3, strides=2, dtype=self.dtype, name="features_0_0")(images)
        x = nn.relu6(layers.batch_norm(train, dtype=self.dtype, name="features_0_1")(x))
        for place in places():
            x = InvertedResidual(
                features=divisible(place.channels * self.width),
                expansion=place.expansion,
                strides=place.strides,
                dtype=self.dtype,
                name=f"features_{place.position}",
            )(x, train)
        x = layers.conv(divisible(LAST * max(1.0, self.width)), 1, dtype=self.dtype, name="features_18_0")(x)
        x = nn.relu6(layers.batch_norm(train, dtype=self.dtype, name="features_18_1")(x))
        return layers.logits(layers.global_mean(x), self.num_classes, name="classifier_1")


def _timm_names() -> Mapping[str, str]:
    names = {
        r"features_0_0/(\w+)": r"conv_stem.\1",
        r"features_0_1/(\w+)": r"bn1.\1",
        r"features_18_0/(\w+)": r"conv_head.\1",
        r"features_18_1/(\w+)": r"bn2.\1",
        r"classifier_1/(\w+)": r"classifier.\1",
    }
    for place in places():
        block = {"conv_0_0": "conv_pw", "conv_0_1": "bn1", "conv_1_0": "conv_dw", "conv_1_1": "bn2"}
        block |= {"conv_2": "conv_pwl", "conv_3": "bn3"}
        if place.expansion == 1:
            block = {"conv_0_0": "conv_dw", "conv_0_1": "bn1", "conv_1": "conv_pw", "conv_2": "bn2"}
        for ours, theirs in block.items():
            names[rf"features_{place.position}/{ours}/(\w+)"] = rf"blocks.{place.stage}.{place.number}.{theirs}.\1"
    return names
