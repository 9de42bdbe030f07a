"""Multilayer perceptron: flattened image, dense layers with an activation, dense head."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
from flax import linen as nn

from jaxguard.models import layers


class MLP(layers.Classifier, kw_only=True):
    """Hidden layers `fc1`, `fc2`, ..., head `linear`.

    Attributes:
        hidden: units of each hidden layer, before the width multiplier.
        activation: one of `layers.ACTIVATIONS`.
    """

    stem: ClassVar[str] = "fc1"

    hidden: tuple[int, ...] = (512, 512)
    activation: str = "relu"

    @property
    def guesses(self) -> Sequence[str]:
        """Leaves are the same for any activation."""
        return layers.assumed(self.activation)

    def flattened(self, input_shape: tuple[int, int, int]) -> Mapping[str, tuple[int, int]]:
        """The first layer reads the whole image."""
        return {"fc1": input_shape[:2]}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, K]`."""
        del train
        activate = layers.ACTIVATIONS[self.activation]
        x = images.reshape(images.shape[0], -1)
        for i, units in enumerate(self.hidden, start=1):
            x = activate(nn.Dense(layers.scaled(units, self.width), dtype=self.dtype, name=f"fc{i}")(x))
        return layers.logits(x, self.num_classes, name="linear")
