"""VGG: Simonyan and Zisserman, ICLR 2015, in torchvision's forms `vggN_bn` and `vggN`."""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import jax
from flax import linen as nn

from jaxguard.models import dialects, layers
from jaxguard.models.dialects import Dialect, Shape

# Channels of the convolutions; each group ends in a max-pool.
CONFIGURATIONS = {
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    19: ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}
GRID = 7  # torchvision pools the last map to 7x7 before its classifier

TIMM = Dialect(
    {
        r"classifier_0/(\w+)": r"pre_logits.fc1.\1",
        r"classifier_3/(\w+)": r"pre_logits.fc2.\1",
        r"classifier_6/(\w+)": r"head.fc.\1",
    },
    windows={"classifier_0/weight": (GRID, GRID), "classifier_3/weight": (1, 1)},
)


class VGG(layers.Classifier, kw_only=True):
    """Convolutions with bias, their BatchNorms (`features_<index>` by torchvision's index), then a classifier.

    Attributes:
        depth: convolutions and dense layers of the original, one of `CONFIGURATIONS`.
        classifier: `small`, a global mean and one dense layer `classifier`, the usual CIFAR form; or
            `torchvision`, 7x7 adaptive pooling and dense layers `classifier_0`, `_3`, `_6` of 4096, 4096 and K
            units, whose dropout is never active.
        norm: `batch`, or `none` as in the paper.
    """

    stem: ClassVar[str] = "features_0"

    depth: int
    classifier: Literal["small", "torchvision"] = "small"
    norm: Literal["batch", "none"] = "batch"

    @property
    def dialects(self) -> Mapping[dialects.Name, Dialect]:
        """Torchvision's names; timm holds the first two dense layers as convolutions."""
        return {"torch": Dialect()} if self.classifier == "small" else {"torch": Dialect(), "timm": TIMM}

    @property
    def head(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Name of the dense layer that gives the logits."""
        return "classifier" if self.classifier == "small" else "classifier_6"

    def flattened(self, input_shape: tuple[int, int, int]) -> Mapping[str, tuple[int, int]]:
        """Torchvision's classifier reads the flattened 7x7 map."""
        del input_shape
        return {} if self.classifier == "small" else {"classifier_0": (GRID, GRID)}

    def input_size(self, shape_of: Callable[[str], Shape | None]) -> tuple[int, int] | None:
        """Torchvision's classifier takes images of 224x224."""
        del shape_of
        return None if self.classifier == "small" else (224, 224)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, K]`; needs at least 32x32 images."""
        x, index = images, 0
        for group in CONFIGURATIONS[self.depth]:
            for channels in group:
                features = layers.scaled(channels, self.width)
                x = layers.conv(features, 3, use_bias=True, dtype=self.dtype, name=f"features_{index}")(x)
                if self.norm == "batch":
                    index += 1
                    x = layers.batch_norm(train, dtype=self.dtype, name=f"features_{index}")(x)
                x = nn.relu(x)
                index += 2  # past this layer and its ReLU
            x = layers.max_pool(x)
            index += 1
        if self.classifier == "small":
            return layers.logits(layers.global_mean(x), self.num_classes, name="classifier")
        x = layers.adaptive_mean(x, GRID)
        x = x.reshape(x.shape[0], -1)
        for name in ("classifier_0", "classifier_3"):
            x = nn.relu(nn.Dense(layers.scaled(4096, self.width), dtype=self.dtype, name=name)(x))
        return layers.logits(x, self.num_classes, name="classifier_6")
