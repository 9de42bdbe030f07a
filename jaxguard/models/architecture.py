"""The built-in architectures, and the specifications that name them.

A specification is `name[:option=value[,option=value...]]`, such as `resnet20:width=0.5` or
`mlp:hidden=256x256,width=2`.
"""

import difflib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import jax.numpy as jnp

from jaxguard.errors import ArchitectureError, DataError
from jaxguard.models import layers
from jaxguard.models.layers import Classifier
from jaxguard.models.model import Model
from jaxguard.models.options import Option, choice, count, hidden_choice, number, sizes, to_text

WIDTH = number(1.0, "a positive number such as 0.5")
HIDDEN = sizes((512, 512), "units joined by x, such as 512x512")
CLASSIFIER = choice("small", "torchvision")
NORM = choice("batch", "none")
ACTIVATION = hidden_choice(*layers.ACTIVATIONS)
STEM = choice("imagenet", "cifar")
EPSILON = number(1e-3, "the BatchNorms' epsilon: 0.001 in torchvision, 1e-05 in timm")
HEADS = count(0, "a number of attention heads, 0 for one per 64 channels", least=0)


@dataclass(frozen=True)
class Architecture:
    """One row of `ARCHITECTURES`.

    Attributes:
        module_fn: `(*, num_classes, dtype, **options) -> module`.
        summary: one line for users.
        options: those that a specification may set.
    """

    module_fn: Callable[..., Classifier]
    summary: str
    options: Mapping[str, Option] = field(default_factory=lambda: {"width": WIDTH})


def _family(module: str, name: str, **geometry: Any) -> Callable[..., Classifier]:
    """A class of a module beside this one, which is imported when the first network of the family is built."""

    def module_fn(**options: Any) -> Classifier:
        return getattr(import_module(f"jaxguard.models.{module}"), name)(**geometry, **options)

    return module_fn


def _cifar_resnet(depth: int) -> Architecture:
    blocks = ((depth - 2) // 6,) * 3
    module_fn = _family("resnet_cifar", "CifarResNet", blocks=blocks, channels=(16, 32, 64), shortcut="pad")
    return Architecture(module_fn, f"He's CIFAR ResNet-{depth}, parameter-free shortcuts (option A)")


def _wide_resnet(depth: int, factor: int) -> Architecture:
    module_fn = _family("wide_resnet", "WideResNet", depth=depth, factor=factor)
    return Architecture(module_fn, f"WideResNet-{depth}-{factor}, the network of NAD and ABL")


def _vgg(depth: int) -> Architecture:
    module_fn = _family("vgg", "VGG", depth=depth)
    return Architecture(module_fn, f"VGG-{depth}", {"width": WIDTH, "classifier": CLASSIFIER, "norm": NORM})


RESNETS = {
    "resnet18-torchvision": ("ResNet-18", {"blocks": (2, 2, 2, 2), "bottleneck": False}),
    "resnet34": ("ResNet-34", {"blocks": (3, 4, 6, 3), "bottleneck": False}),
    "resnet50": ("ResNet-50", {"blocks": (3, 4, 6, 3)}),
    "resnet101": ("ResNet-101", {"blocks": (3, 4, 23, 3)}),
    "resnet152": ("ResNet-152", {"blocks": (3, 8, 36, 3)}),
    "wide_resnet50_2": ("ResNet-50, bottlenecks twice as wide", {"blocks": (3, 4, 6, 3), "base": 128}),
    "wide_resnet101_2": ("ResNet-101, bottlenecks twice as wide", {"blocks": (3, 4, 23, 3), "base": 128}),
    "resnext50_32x4d": ("ResNeXt-50, 32 groups of 4", {"blocks": (3, 4, 6, 3), "groups": 32, "base": 4}),
    "resnext101_32x8d": ("ResNeXt-101, 32 groups of 8", {"blocks": (3, 4, 23, 3), "groups": 32, "base": 8}),
}
DENSENETS = {
    121: {"blocks": (6, 12, 24, 16)},
    161: {"blocks": (6, 12, 36, 24), "growth": 48, "channels": 96},
    169: {"blocks": (6, 12, 32, 32)},
    201: {"blocks": (6, 12, 48, 32)},
}


def _resnet(title: str, geometry: Mapping[str, Any]) -> Architecture:
    family_fn = _family("resnet", "ResNet", **geometry)

    def module_fn(*, stem: Any, **options: Any) -> Classifier:  # Classifier.stem is the name of a layer
        return family_fn(entry=stem, **options)

    return Architecture(module_fn, f"{title}, torchvision's form", {"width": WIDTH, "stem": STEM})


def _mobilenet_v3(size: str) -> Architecture:
    module_fn = _family("mobilenet_v3", size.lower())
    return Architecture(module_fn, f"MobileNetV3-{size}", {"width": WIDTH, "epsilon": EPSILON})


VIT_SIZES = {"tiny": (192, 12), "small": (384, 12), "base": (768, 12), "large": (1024, 24)}  # channels, blocks
CONVNEXT_SIZES = {"tiny": (96, 9), "small": (96, 27), "base": (128, 27), "large": (192, 27)}  # channels, third stage


def _vit(size: str, patch: int) -> Architecture:
    channels, blocks = VIT_SIZES[size]
    module_fn = _family("vit", "VisionTransformer", patch=patch, channels=channels)
    depth = count(blocks, "a number of blocks such as 12", least=1)
    options = {"width": WIDTH, "depth": depth, "heads": HEADS}
    return Architecture(module_fn, f"ViT-{size.capitalize()}, patches of {patch}x{patch}", options)


def _convnext(size: str) -> Architecture:
    channels, third = CONVNEXT_SIZES[size]
    module_fn = _family("convnext", "ConvNeXt", channels=tuple(channels * 2**stage for stage in range(4)))
    depths = sizes((3, 3, third, 3), f"the blocks of four stages, such as 3x3x{third}x3", length=4)
    return Architecture(module_fn, f"ConvNeXt-{size.capitalize()}", {"width": WIDTH, "depths": depths})


ARCHITECTURES: Mapping[str, Architecture] = {
    "mlp": Architecture(
        _family("mlp", "MLP"), "dense layers", {"width": WIDTH, "hidden": HIDDEN, "activation": ACTIVATION}
    ),
    "cnn": Architecture(
        _family("cnn", "CNN"),
        "six 3x3 convolutions with BatchNorm, small enough for a laptop",
        {"width": WIDTH, "norm": NORM, "activation": ACTIVATION},
    ),
    "preactresnet18": Architecture(
        _family("preact_resnet", "PreActResNet"), "pre-activation ResNet-18, the network of BackdoorBench"
    ),
    "resnet18": Architecture(
        _family("resnet_cifar", "CifarResNet", blocks=(2, 2, 2, 2), channels=(64, 128, 256, 512), shortcut="project"),
        "ResNet-18 with a 3x3 stem, the network of CLP (for torchvision's names: resnet18-torchvision)",
    ),
    **{f"resnet{depth}": _cifar_resnet(depth) for depth in (8, 20, 32, 44, 56, 110)},
    **{f"wideresnet-{depth}-{factor}": _wide_resnet(depth, factor) for depth, factor in ((16, 1), (16, 2), (28, 10))},
    **{f"vgg{depth}": _vgg(depth) for depth in (11, 13, 16, 19)},
    **{name: _resnet(*row) for name, row in RESNETS.items()},
    **{
        f"densenet{depth}": Architecture(_family("densenet", "DenseNet", **geometry), f"DenseNet-{depth}")
        for depth, geometry in DENSENETS.items()
    },
    "mobilenet_v2": Architecture(_family("mobilenet_v2", "MobileNetV2"), "MobileNetV2"),
    "mobilenet_v3_small": _mobilenet_v3("Small"),
    "mobilenet_v3_large": _mobilenet_v3("Large"),
    **{f"vit-{size}-16": _vit(size, 16) for size in VIT_SIZES},
    "vit-base-32": _vit("base", 32),
    **{f"convnext-{size}": _convnext(size) for size in CONVNEXT_SIZES},
}
"""Every architecture by name.

Beyond these rows, `wideresnet-<depth>-<factor>` accepts any depth 6 n + 4 and factor, `vit-<size>-<patch>` any patch.
"""


def build(
    spec: str,
    *,
    num_classes: int,
    input_shape: Sequence[int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: Any = None,
) -> Model:
    """Builds the model that a specification names.

    Args:
        spec: `name[:option=value[,option=value...]]`, see `ARCHITECTURES`.
        num_classes: `K`, positive.
        input_shape: `(H, W, C)` of one image.
        mean: per channel, subtracted from images in [0, 1].
        std: per channel, positive; the centred images are divided by it.
        dtype: compute dtype such as `"bfloat16"`; parameters, batch statistics and logits stay float32.

    Returns:
        The model, without weights.

    Raises:
        ArchitectureError: an unknown name or option, or an invalid value.
        DataError: an invalid image shape, `mean` or `std`.

    >>> model = build("resnet20:width=0.50", num_classes=10, input_shape=(32, 32, 3))
    >>> model.spec, model.shapes()["params"]["conv1"]["kernel"].shape
    ('resnet20:width=0.5', (3, 3, 3, 8))
    """
    name, options = parse(spec)
    if num_classes < 1:
        raise ArchitectureError(f"expected num_classes >= 1, got {num_classes} for {spec}; pass the number of classes")
    shape = tuple(int(length) for length in input_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise DataError(
            f"expected input_shape (height, width, channels), all positive, got {shape} for {spec}; leave out the "
            "batch axis"
        )
    module = find(name).module_fn(num_classes=num_classes, dtype=None if dtype is None else jnp.dtype(dtype), **options)
    return Model(
        spec=canonical(name, options),
        module=module,
        input_shape=shape,
        num_classes=num_classes,
        mean=_per_channel("mean", mean, shape[-1]),
        std=_per_channel("std", std, shape[-1]),
    )


def find(name: str) -> Architecture:
    """The row of `ARCHITECTURES` called `name`, or one made for `wideresnet-<depth>-<factor>` or `vit-<size>-<patch>`.

    Raises:
        ArchitectureError: an unknown name.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    vit = re.fullmatch(rf"vit-({'|'.join(VIT_SIZES)})-([1-9]\d{{0,2}})", name, re.ASCII)
    if vit is not None:
        return _vit(vit[1], int(vit[2]))
    wide = re.fullmatch(r"wideresnet-([1-9]\d{0,3})-([1-9]\d{0,2})", name, re.ASCII)
    if wide is None:
        raise ArchitectureError(
            f"unknown architecture {name!r}{_nearest(name, ARCHITECTURES)}; choose one of "
            f"{', '.join(ARCHITECTURES)}, any wideresnet-<depth>-<factor> and any vit-<size>-<patch>"
        )
    depth, factor = (int(number) for number in wide.groups())
    if depth < 10 or depth % 6 != 4:
        raise ArchitectureError(
            f"expected a WideResNet of depth 6 n + 4, got {depth} in {name!r}; use 10, 16, 22, 28 or 40"
        )
    return _wide_resnet(depth, factor)


def variants() -> Iterator[str]:
    """Canonical specifications of every row of `ARCHITECTURES` with every combination of its choice options.

    >>> [spec for spec in variants() if spec.startswith("resnet18")]
    ['resnet18', 'resnet18-torchvision', 'resnet18-torchvision:stem=cifar']
    """
    for name, row in ARCHITECTURES.items():
        options = {key: option.choices or (option.default,) for key, option in row.options.items()}
        for values in itertools.product(*options.values()):
            yield canonical(name, dict(zip(options, values, strict=True)))


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """Splits a specification into its name and all options, defaults included.

    Raises:
        ArchitectureError: an unknown name or option, or an invalid value.

    >>> parse("mlp:hidden=256x128")
    ('mlp', {'width': 1.0, 'hidden': (256, 128), 'activation': 'relu'})
    """
    name, colon, text = spec.partition(":")
    known = find(name).options
    options = {option: row.default for option, row in known.items()}
    given = set()
    for assignment in text.split(",") if colon else ():
        option, _, value = assignment.partition("=")
        if option not in known:
            raise ArchitectureError(
                f"unknown option {option!r} in {spec!r}{_nearest(option, known)}; {name} takes "
                + ", ".join(f"{key}=<{row.expects}>" for key, row in known.items())
            )
        if option in given:
            raise ArchitectureError(f"expected every option once, got {option!r} twice in {spec!r}; leave one out")
        given.add(option)
        try:
            options[option] = known[option].parse(value)
        except ValueError:
            raise ArchitectureError(
                f"expected {known[option].expects}, got {option}={value!r} in {spec!r}; "
                f"write {name}:{option}={to_text(known[option].default)} for the default"
            ) from None
    return name, options


def canonical(name: str, options: Mapping[str, Any]) -> str:
    """The shortest specification of a name and its options: defaults are left out.

    >>> canonical("mlp", {"hidden": (64,), "width": 1.0})
    'mlp:hidden=64'
    """
    known = find(name).options
    changed = [f"{key}={to_text(value)}" for key, value in options.items() if value != known[key].default]
    return f"{name}:{','.join(changed)}" if changed else name


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word.lower(), list(known), n=3)
    return f", did you mean {' or '.join(close)}?" if close else ""


def _per_channel(name: str, values: Sequence[float] | None, channels: int) -> tuple[float, ...] | None:
    if values is None:
        return None
    result = tuple(float(value) for value in values)
    result = result * channels if len(result) == 1 else result
    lowest = 0.0 if name == "std" else -math.inf
    if len(result) != channels or not all(math.isfinite(value) and value > lowest for value in result):
        raise DataError(
            f"expected {channels} finite{' and positive' if name == 'std' else ''} values of {name}, one per "
            f"channel or one for all, got {result}; they apply to images in [0, 1]"
        )
    return result
