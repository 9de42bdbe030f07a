"""ConvNeXt: Liu et al., A ConvNet for the 2020s (CVPR 2022).

The weights are those of the authors', of torchvision's and of timm's networks; stochastic depth is never active.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
from flax import linen as nn

from jaxguard.models import dialects, layers
from jaxguard.models.dialects import Dialect

BLOCK = r"stages_(\d+)_blocks_(\d+)"


def _torchvision() -> Dialect:
    """Stages and what lies between them are numbered through, so every stage has rows of its own."""
    names = {r"stem_(\d)/(\w+)": r"features.0.\1.\2"}
    for stage in range(4):
        block, name = rf"stages_{stage}_blocks_(\d+)", rf"features.{2 * stage + 1}.\1"
        names |= {
            rf"stages_{stage}_downsample_(\d)/(\w+)": rf"features.{2 * stage}.\1.\2",
            f"{block}/gamma": f"{name}.layer_scale",
            rf"{block}/conv_dw/(\w+)": rf"{name}.block.0.\2",
            rf"{block}/norm/(\w+)": rf"{name}.block.2.\2",
            rf"{block}/mlp_fc1/(\w+)": rf"{name}.block.3.\2",
            rf"{block}/mlp_fc2/(\w+)": rf"{name}.block.5.\2",
        }
    names |= {r"head_norm/(\w+)": r"classifier.0.\1", r"head_fc/(\w+)": r"classifier.2.\1"}
    return Dialect(names, windows={"gamma": (1, 1)})


DIALECTS: Mapping[dialects.Name, Dialect] = {
    "torch": _torchvision(),
    "timm": Dialect({rf"{BLOCK}/conv_dw/(\w+)": r"stages.\1.blocks.\2.conv_dw.\3"}),
    "original": Dialect(
        {
            r"stem_(\d)/(\w+)": r"downsample_layers.0.\1.\2",
            r"stages_(\d)_downsample_(\d)/(\w+)": r"downsample_layers.\1.\2.\3",
            rf"{BLOCK}/gamma": r"stages.\1.\2.gamma",
            rf"{BLOCK}/conv_dw/(\w+)": r"stages.\1.\2.dwconv.\3",
            rf"{BLOCK}/norm/(\w+)": r"stages.\1.\2.norm.\3",
            rf"{BLOCK}/mlp_fc(\d)/(\w+)": r"stages.\1.\2.pwconv\3.\4",
            r"head_norm/(\w+)": r"norm.\1",
            r"head_fc/(\w+)": r"head.\1",
        }
    ),
}


class Block(nn.Module, kw_only=True):
    """`x + gamma * fc2(gelu(fc1(norm(conv_dw(x)))))`: a depthwise 7x7, then four times the channels and back.

    Attributes:
        dtype: compute dtype.
    """

    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C] -> [B, H, W, C]`."""
        channels = x.shape[-1]
        y = layers.conv(channels, 7, groups=channels, use_bias=True, dtype=self.dtype, name="conv_dw")(x)
        y = layers.layer_norm(dtype=self.dtype, name="norm")(y)
        y = nn.gelu(nn.Dense(4 * channels, dtype=self.dtype, name="mlp_fc1")(y), approximate=False)
        y = nn.Dense(channels, dtype=self.dtype, name="mlp_fc2")(y)
        gamma = self.param("gamma", nn.initializers.constant(1e-6), (channels,))
        return x + y * gamma.astype(y.dtype)[None, None, None]


class ConvNeXt(layers.Classifier, kw_only=True):
    """Stem `stem_0`, `stem_1`; stages `stages_0_blocks_0`, ...; `head_norm` on the mean over positions; `head_fc`.

    Each stage after the first begins with `stages_<stage>_downsample_0` and `_1`, which halve the image.

    Attributes:
        depths: blocks of each stage.
        channels: channels of each stage, before the width multiplier.
    """

    default_size: ClassVar[tuple[int, int]] = (224, 224)
    stem: ClassVar[str] = "stem_0"
    head: ClassVar[str] = "head_fc"

    depths: tuple[int, ...]
    channels: tuple[int, ...] = (96, 192, 384, 768)

    @property
    def dialects(self) -> Mapping[dialects.Name, Dialect]:
        """The names of torchvision, of timm and of the authors."""
        return DIALECTS

    @property
    def landmarks(self) -> Sequence[str]:
        """The last blocks tell depths apart."""
        last = (f"stages_{stage}_blocks_{n - 1}/conv_dw" for stage, n in enumerate(self.depths))
        return (*super().landmarks, *last)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, K]`; needs at least 32x32 images."""
        del train
        x = images
        for stage, (depth, channels) in enumerate(zip(self.depths, self.channels, strict=True)):
            features = layers.scaled(channels, self.width)
            if stage == 0:
                x = layers.patch_conv(x, features, 4, dtype=self.dtype, name="stem_0")
                x = layers.layer_norm(dtype=self.dtype, name="stem_1")(x)
            else:
                x = layers.layer_norm(dtype=self.dtype, name=f"stages_{stage}_downsample_0")(x)
                x = layers.patch_conv(x, features, 2, dtype=self.dtype, name=f"stages_{stage}_downsample_1")
            for i in range(depth):
                x = Block(dtype=self.dtype, name=f"stages_{stage}_blocks_{i}")(x)
        x = layers.layer_norm(dtype=self.dtype, name="head_norm")(layers.global_mean(x))
        return layers.logits(x, self.num_classes, name="head_fc")
