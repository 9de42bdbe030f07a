"""Plain convolutional network, small enough to train in seconds on a laptop."""

from collections.abc import Sequence
from typing import Literal

import jax
from flax import linen as nn

from jaxguard.models import layers

STAGES = (16, 32, 64)


class CNN(layers.Classifier, kw_only=True):
    """Six convolutions (`conv1` ... `conv6`), in three stages of two.

    A 2x2 max-pool follows the first two stages, a global mean and `linear` the last.

    Attributes:
        norm: `batch` after every convolution, or `none`, where the convolutions have biases instead.
        activation: one of `layers.ACTIVATIONS`, after every convolution or its norm.
    """

    norm: Literal["batch", "none"] = "batch"
    activation: str = "relu"

    @property
    def landmarks(self) -> Sequence[str]:
        """The last convolution distinguishes it from networks that share its first."""
        return (*super().landmarks, f"conv{2 * len(STAGES)}")

    @property
    def guesses(self) -> Sequence[str]:
        """Leaves are the same for any activation."""
        return layers.assumed(self.activation)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, K]`; needs at least 4x4 images."""
        activate, has_norm = layers.ACTIVATIONS[self.activation], self.norm == "batch"
        x = images
        for stage, channels in enumerate(STAGES):
            x = layers.max_pool(x) if stage else x
            for i in (2 * stage + 1, 2 * stage + 2):
                features = layers.scaled(channels, self.width)
                x = layers.conv(features, 3, use_bias=not has_norm, dtype=self.dtype, name=f"conv{i}")(x)
                x = activate(layers.batch_norm(train, dtype=self.dtype, name=f"bn{i}")(x) if has_norm else x)
        return layers.logits(layers.global_mean(x), self.num_classes, name="linear")
