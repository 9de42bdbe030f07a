"""Residual networks in torchvision's form, for ImageNet and, with a smaller stem, for CIFAR.

He et al., Deep Residual Learning for Image Recognition (CVPR 2016), with the stride in a bottleneck's 3x3 convolution
("v1.5"); Xie et al., Aggregated Residual Transformations (CVPR 2017), which groups that convolution; Zagoruyko and
Komodakis, Wide Residual Networks (BMVC 2016), section on ImageNet, which widens it. timm names the leaves alike.

ResNet-18 is called `resnet18-torchvision` here: `resnet18` is the CIFAR network in `jaxguard.models.resnet_cifar`,
whose leaves have other names.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import jax
from flax import linen as nn

from jaxguard.models import layers, resnet_cifar
from jaxguard.models.dialects import Shape

CHANNELS = (64, 128, 256, 512)
EXPANSION = 4  # of a bottleneck's output over its stage's channels


class Bottleneck(nn.Module, kw_only=True):
    """1x1 down, 3x3, 1x1 up, each with a BatchNorm, plus the shortcut; ReLU after the sum.

    Attributes:
        inner: channels of the 3x3 convolution.
        features: output channels.
        strides: of the 3x3 convolution and the shortcut.
        groups: of the 3x3 convolution.
        dtype: compute dtype.
    """

    inner: int
    features: int
    strides: int = 1
    groups: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, H / strides, W / strides, features]`."""
        y = layers.conv(self.inner, 1, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="bn1")(y))
        y = layers.conv(self.inner, 3, strides=self.strides, groups=self.groups, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="bn2")(y))
        y = layers.conv(self.features, 1, dtype=self.dtype, name="conv3")(y)
        y = layers.batch_norm(train, dtype=self.dtype, name="bn3")(y)
        if self.strides != 1 or x.shape[-1] != self.features:
            x = resnet_cifar.project(x, self.features, self.strides, train, name="downsample", dtype=self.dtype)
        return nn.relu(y + x)


class ResNet(layers.Classifier, kw_only=True):
    """Stem `conv1`, `bn1`; stages `layer1_0`, ..., each after the first halves the image; head `fc`.

    Attributes:
        blocks: blocks of each stage.
        bottleneck: whether they are bottlenecks; else basic blocks of two 3x3 convolutions.
        groups: of a bottleneck's 3x3 convolution.
        base: channels of that convolution in the first stage, per group.
        entry: `imagenet`, a 7x7 convolution and a max-pool that halve the image each, or `cifar`, a 3x3
            convolution that keeps its size.
    """

    default_size: ClassVar[tuple[int, int]] = (224, 224)
    head: ClassVar[str] = "fc"

    blocks: tuple[int, ...]
    bottleneck: bool = True
    groups: int = 1
    base: int = 64
    entry: Literal["imagenet", "cifar"] = "imagenet"

    def input_size(self, shape_of: Callable[[str], Shape | None]) -> tuple[int, int] | None:
        """A 3x3 entry is for images of 32x32."""
        del shape_of
        return (32, 32) if self.entry == "cifar" else None

    @property
    def landmarks(self) -> Sequence[str]:
        """The last blocks tell depths apart."""
        last = "conv3" if self.bottleneck else "conv2"
        return (*super().landmarks, *(f"layer{stage}_{n - 1}/{last}" for stage, n in enumerate(self.blocks, start=1)))

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, K]`."""
        size, strides = (7, 2) if self.entry == "imagenet" else (3, 1)
        features = layers.scaled(CHANNELS[0], self.width)
        x = layers.conv(features, size, strides=strides, dtype=self.dtype, name="conv1")(images)
        x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="bn1")(x))
        if self.entry == "imagenet":
            x = layers.stem_pool(x)
        for stage, blocks in enumerate(self.blocks):
            for i in range(blocks):
                x = self._block(stage, 2 if stage > 0 and i == 0 else 1, name=f"layer{stage + 1}_{i}")(x, train)
        return layers.logits(layers.global_mean(x), self.num_classes, name="fc")

    def _block(self, stage: int, strides: int, name: str) -> Bottleneck | resnet_cifar.BasicBlock:
        channels = layers.scaled(CHANNELS[stage], self.width)
        if not self.bottleneck:
            return resnet_cifar.BasicBlock(
                features=channels,
                strides=strides,
                shortcut="project",
                projection="downsample",
                dtype=self.dtype,
                name=name,
            )
        per_group = layers.scaled(self.base * CHANNELS[stage] // CHANNELS[0], self.width)
        return Bottleneck(
            inner=per_group * self.groups,
            features=channels * EXPANSION,
            strides=strides,
            groups=self.groups,
            dtype=self.dtype,
            name=name,
        )
