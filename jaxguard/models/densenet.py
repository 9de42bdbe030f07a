"""DenseNet: Huang et al., Densely Connected Convolutional Networks (CVPR 2017).

The form is the paper's DenseNet-BC for ImageNet, with bottlenecks and compression, as in torchvision and timm.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
from flax import linen as nn
from jax import numpy as jnp

from jaxguard.models import dialects, layers
from jaxguard.models.dialects import Dialect

BOTTLENECK = 4  # channels of a layer's 1x1 convolution, in growth rates

LAYER = r"features_denseblock(\d+)_denselayer(\d+)"
DIALECTS: Mapping[dialects.Name, Dialect] = {
    "torch": Dialect(),
    "original": Dialect(  # of torchvision's published weights
        {rf"{LAYER}/(norm|conv)(\d)/(\w+)": r"features.denseblock\1.denselayer\2.\3.\4.\5"}
    ),
}


class DenseLayer(nn.Module, kw_only=True):
    """`conv2(relu(norm2(conv1(relu(norm1(x))))))`, a 1x1 and a 3x3 convolution.

    Attributes:
        growth: output channels.
        dtype: compute dtype.
    """

    growth: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, H, W, growth]`."""
        x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="norm1")(x))
        x = layers.conv(BOTTLENECK * self.growth, 1, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="norm2")(x))
        return layers.conv(self.growth, 3, dtype=self.dtype, name="conv2")(x)


class Transition(nn.Module, kw_only=True):
    """Half the channels at half the size.

    Attributes:
        dtype: compute dtype.
    """

    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, H / 2, W / 2, C / 2]`."""
        features = max(1, x.shape[-1] // 2)
        x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="norm")(x))
        x = layers.conv(features, 1, dtype=self.dtype, name="conv")(x)
        return layers.mean_pool(x)


class DenseNet(layers.Classifier, kw_only=True):
    """Stem `features_conv0`, `features_norm0`; blocks of layers, each layer reads all before it; head `classifier`.

    Attributes:
        blocks: layers of each block, `features_denseblock1_denselayer1`, ...; behind each block but the last is a
            transition `features_transition1`, ...
        growth: channels a layer adds, before the width multiplier.
        channels: channels of the stem, before the width multiplier.
    """

    default_size: ClassVar[tuple[int, int]] = (224, 224)
    stem: ClassVar[str] = "features_conv0"
    head: ClassVar[str] = "classifier"

    blocks: tuple[int, ...]
    growth: int = 32
    channels: int = 64

    @property
    def dialects(self) -> Mapping[dialects.Name, Dialect]:
        """Torchvision's names, those of its published weights too; timm has the same."""
        return DIALECTS

    @property
    def landmarks(self) -> Sequence[str]:
        """The first layer distinguishes the dialects, the last ones depths."""
        last = (f"features_denseblock{block}_denselayer{n}/conv1" for block, n in enumerate(self.blocks, start=1))
        return ("features_denseblock1_denselayer1/conv1", *last)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, K]`; needs at least 29x29 images."""
        growth = layers.scaled(self.growth, self.width)
        features = layers.scaled(self.channels, self.width)
        x = layers.conv(features, 7, strides=2, dtype=self.dtype, name="features_conv0")(images)
        x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="features_norm0")(x))
        x = layers.stem_pool(x)
        for block, depth in enumerate(self.blocks, start=1):
            if block > 1:
                x = Transition(dtype=self.dtype, name=f"features_transition{block - 1}")(x, train)
            for i in range(1, depth + 1):
                layer = DenseLayer(growth=growth, dtype=self.dtype, name=f"features_denseblock{block}_denselayer{i}")
                x = jnp.concatenate([x, layer(x, train)], axis=-1)
        x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name=f"features_norm{len(self.blocks) + 1}")(x))
        return layers.logits(layers.global_mean(x), self.num_classes, name="classifier")
