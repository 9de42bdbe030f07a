"""Wide residual networks, `wideresnet-<depth>-<factor>`, the networks of NAD and ABL.

Zagoruyko and Komodakis, Wide Residual Networks (BMVC 2016): pre-activation blocks, three stages of 16, 32 and 64
channels times the widening factor, (depth - 4) / 6 blocks each.
"""

from typing import ClassVar

import jax
from flax import linen as nn

from jaxguard.models import layers, preact_resnet


class WideResNet(layers.Classifier, kw_only=True):
    """Stem `conv1`; stages `block1_layer_0`, ..., each after the first halves the image; `bn1`; head `fc`.

    Attributes:
        depth: convolutions and head, 6 n + 4.
        factor: how much wider than a ResNet the three stages are; the stem is not widened.
    """

    head: ClassVar[str] = "fc"

    depth: int
    factor: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, K]`."""
        x = layers.conv(layers.scaled(16, self.width), 3, dtype=self.dtype, name="conv1")(images)
        for stage, channels in enumerate((16, 32, 64), start=1):
            for i in range((self.depth - 4) // 6):
                x = preact_resnet.PreActBlock(
                    features=layers.scaled(channels * self.factor, self.width),
                    strides=2 if stage > 1 and i == 0 else 1,
                    shortcut="convShortcut",
                    dtype=self.dtype,
                    name=f"block{stage}_layer_{i}",
                )(x, train)
        x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="bn1")(x))
        return layers.logits(layers.global_mean(x), self.num_classes, name="fc")
