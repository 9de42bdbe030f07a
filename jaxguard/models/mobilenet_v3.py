"""MobileNetV3: Howard et al., Searching for MobileNetV3 (ICCV 2019), in torchvision's form."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
from flax import linen as nn

from jaxguard.models import dialects, layers
from jaxguard.models.dialects import Dialect
from jaxguard.models.mobilenet_v2 import divisible


class Row(NamedTuple):
    """One block of the paper's tables 1 and 2.

    Attributes:
        kernel: size of the depthwise convolution.
        expanded: its channels.
        features: output channels.
        squeeze: whether there is squeeze-and-excitation.
        hard_swish: whether the activation is hard-swish; else ReLU.
        strides: of the depthwise convolution.
    """

    kernel: int
    expanded: int
    features: int
    squeeze: bool
    hard_swish: bool
    strides: int = 1


Stages = tuple[tuple[Row, ...], ...]

LARGE: Stages = (
    (Row(3, 16, 16, False, False),),
    (Row(3, 64, 24, False, False, 2), Row(3, 72, 24, False, False)),
    (Row(5, 72, 40, True, False, 2), *(Row(5, 120, 40, True, False),) * 2),
    (Row(3, 240, 80, False, True, 2), Row(3, 200, 80, False, True), *(Row(3, 184, 80, False, True),) * 2),
    (Row(3, 480, 112, True, True), Row(3, 672, 112, True, True)),
    (Row(5, 672, 160, True, True, 2), *(Row(5, 960, 160, True, True),) * 2),
)
SMALL: Stages = (
    (Row(3, 16, 16, True, False, 2),),
    (Row(3, 72, 24, False, False, 2), Row(3, 88, 24, False, False)),
    (Row(5, 96, 40, True, True, 2), *(Row(5, 240, 40, True, True),) * 2),
    (Row(5, 120, 48, True, True), Row(5, 144, 48, True, True)),
    (Row(5, 288, 96, True, True, 2), *(Row(5, 576, 96, True, True),) * 2),
)
STEM = 16
SQUEEZE = 4  # expanded channels over squeezed ones
TIMM_EPSILON = 1e-5
TAIL = 6  # channels of the last convolution over those of the last block


class Block(nn.Module, kw_only=True):
    """1x1 up, depthwise, squeeze-and-excitation, 1x1 down; a sum where shapes allow.

    Attributes:
        row: the geometry under the width multiplier; nothing goes up where the expanded channels are the input's.
        epsilon: of the BatchNorms.
        dtype: compute dtype.
    """

    row: Row
    epsilon: float
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, H / strides, W / strides, features]`."""
        row, at, y = self.row, 0, x
        activate = nn.hard_swish if row.hard_swish else nn.relu
        if row.expanded != x.shape[-1]:
            y = layers.conv(row.expanded, 1, dtype=self.dtype, name="block_0_0")(y)
            y = activate(self._norm(train, "block_0_1")(y))
            at = 1
        y = layers.conv(
            row.expanded, row.kernel, strides=row.strides, groups=row.expanded, dtype=self.dtype, name=f"block_{at}_0"
        )(y)
        y = activate(self._norm(train, f"block_{at}_1")(y))
        if row.squeeze:
            at += 1
            gate = layers.global_mean(y)[:, None, None]
            squeezed = divisible(row.expanded // SQUEEZE)
            gate = layers.conv(squeezed, 1, use_bias=True, dtype=self.dtype, name=f"block_{at}_fc1")(gate)
            gate = layers.conv(row.expanded, 1, use_bias=True, dtype=self.dtype, name=f"block_{at}_fc2")(nn.relu(gate))
            y = y * nn.hard_sigmoid(gate)
        y = layers.conv(row.features, 1, dtype=self.dtype, name=f"block_{at + 1}_0")(y)
        y = self._norm(train, f"block_{at + 1}_1")(y)
        return x + y if x.shape == y.shape else y

    def _norm(self, train: bool, name: str) -> nn.BatchNorm:
        return layers.batch_norm(train, epsilon=self.epsilon, dtype=self.dtype, name=name)


class MobileNetV3(layers.Classifier, kw_only=True):
    """Stem `features_0_0`, `_1`; blocks `features_1`, ...; a last 1x1 convolution; `classifier_0` and `classifier_3`.

    Channel counts under a width multiplier are multiples of 8.

    Attributes:
        stages: `LARGE` or `SMALL`.
        units: of `classifier_0`, before the width multiplier.
        epsilon: of the BatchNorms: torchvision's 1e-3 is that of TensorFlow's original, timm's networks have 1e-5.
    """

    default_size: ClassVar[tuple[int, int]] = (224, 224)
    stem: ClassVar[str] = "features_0_0"
    head: ClassVar[str] = "classifier_3"

    stages: Stages
    units: int
    epsilon: float = 1e-3

    @property
    def dialects(self) -> Mapping[dialects.Name, Dialect]:
        """Torchvision's sequential modules; timm's named ones, whose `classifier_0` is a 1x1 convolution."""
        windows, options = {"classifier_0/weight": (1, 1)}, {"epsilon": TIMM_EPSILON}
        return {"torch": Dialect(), "timm": Dialect(self._timm_names(), windows, options)}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, K]`."""
        x = layers.conv(divisible(STEM * self.width), 3, strides=2, dtype=self.dtype, name="features_0_0")(images)
        x = nn.hard_swish(self._norm(train, "features_0_1")(x))
        rows = [row for stage in self._scaled() for row in stage]
        for index, row in enumerate(rows, start=1):
            x = Block(row=row, epsilon=self.epsilon, dtype=self.dtype, name=f"features_{index}")(x, train)
        last = f"features_{len(rows) + 1}"
        x = layers.conv(TAIL * rows[-1].features, 1, dtype=self.dtype, name=f"{last}_0")(x)
        x = layers.global_mean(nn.hard_swish(self._norm(train, f"{last}_1")(x)))
        x = nn.hard_swish(nn.Dense(divisible(self.units * self.width), dtype=self.dtype, name="classifier_0")(x))
        return layers.logits(x, self.num_classes, name="classifier_3")

    def _norm(self, train: bool, name: str) -> nn.BatchNorm:
        return layers.batch_norm(train, epsilon=self.epsilon, dtype=self.dtype, name=name)

    def _scaled(self) -> Stages:
        def scale(row: Row) -> Row:
            return row._replace(
                expanded=divisible(row.expanded * self.width), features=divisible(row.features * self.width)
            )

        return tuple(tuple(scale(row) for row in stage) for stage in self.stages)

    def _timm_names(self) -> Mapping[str, str]:
        names = {r"features_0_0/(\w+)": r"conv_stem.\1", r"features_0_1/(\w+)": r"bn1.\1"}
        names |= {r"classifier_0/(\w+)": r"conv_head.\1", r"classifier_3/(\w+)": r"classifier.\1"}
        channels, index = divisible(STEM * self.width), 0
        for stage, rows in enumerate(self._scaled()):
            for number, row in enumerate(rows):
                index += 1
                expands = row.expanded != channels
                parts = ["conv_pw", "conv_dw"] if expands else ["conv_dw"]
                parts += ["se"] if row.squeeze else []
                parts += ["conv_pwl" if expands else "conv_pw"]
                block, norms = f"blocks.{stage}.{number}", 0
                for at, part in enumerate(parts):
                    ours = f"features_{index}/block_{at}"
                    if part == "se":
                        names[rf"{ours}_fc1/(\w+)"] = rf"{block}.se.conv_reduce.\1"
                        names[rf"{ours}_fc2/(\w+)"] = rf"{block}.se.conv_expand.\1"
                        continue
                    norms += 1
                    names[rf"{ours}_0/(\w+)"] = rf"{block}.{part}.\1"
                    names[rf"{ours}_1/(\w+)"] = rf"{block}.bn{norms}.\1"
                channels = row.features
        names[rf"features_{index + 1}_0/(\w+)"] = rf"blocks.{len(self.stages)}.0.conv.\1"
        names[rf"features_{index + 1}_1/(\w+)"] = rf"blocks.{len(self.stages)}.0.bn1.\1"
        return names


def small(**options: Any) -> MobileNetV3:
    """MobileNetV3-Small."""
    return MobileNetV3(stages=SMALL, units=1024, **options)


def large(**options: Any) -> MobileNetV3:
    """MobileNetV3-Large."""
    return MobileNetV3(stages=LARGE, units=1280, **options)
