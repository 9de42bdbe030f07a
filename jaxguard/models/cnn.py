"""Plain convolutional network, small enough to train in seconds on a laptop."""

import jax
from flax import linen as nn

from jaxguard.models import layers

STAGES = (16, 32, 64)


class CNN(layers.Classifier, kw_only=True):
    """Six convolutions (`conv1` ... `conv6`), each with batch normalisation and ReLU, in three stages of two.

    A 2x2 max-pool follows the first two stages, a global mean and `linear` the last.
    """

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, K]`; needs at least 4x4 images."""
        x = images
        for stage, channels in enumerate(STAGES):
            x = layers.max_pool(x) if stage else x
            for i in (2 * stage + 1, 2 * stage + 2):
                x = layers.conv(layers.scaled(channels, self.width), 3, dtype=self.dtype, name=f"conv{i}")(x)
                x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name=f"bn{i}")(x))
        return layers.logits(layers.global_mean(x), self.num_classes, name="linear")
