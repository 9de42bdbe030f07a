"""The table of architectures against published counts, and the grammar of specifications."""

import jax
import numpy as np
import pytest
import zoo

from jaxguard import models
from jaxguard.errors import ArchitectureError, DataError
from jaxguard.models import architecture, layouts

CIFAR = (32, 32, 3)


def leaves_of(
    spec: str, num_classes: int = 10, input_shape: tuple[int, ...] = CIFAR
) -> dict[str, jax.ShapeDtypeStruct]:
    return layouts.by_path(models.build(spec, num_classes=num_classes, input_shape=input_shape).shapes())


@pytest.mark.parametrize(
    ("spec", "num_classes", "input_shape", "published"),
    [
        ("preactresnet18", 10, CIFAR, 11_171_146),
        ("resnet18", 10, CIFAR, 11_173_962),
        # By hand: stem 432 + 32, blocks 4,672, 13,952 and 55,552, head 650.
        ("resnet8", 10, CIFAR, 75_290),
        ("resnet20", 10, CIFAR, 269_722),
        ("resnet32", 10, CIFAR, 464_154),
        ("resnet44", 10, CIFAR, 658_586),
        ("resnet56", 10, CIFAR, 853_018),
        ("resnet110", 10, CIFAR, 1_727_962),
        ("wideresnet-16-1", 10, CIFAR, 175_066),
        ("wideresnet-16-2", 10, CIFAR, 691_674),
        ("wideresnet-28-10", 10, CIFAR, 36_479_194),
        # By hand: 3x3 kernels of 3-4-4-8-8-16-16 channels with biases, head 170.
        ("cnn:norm=none,width=0.25", 10, CIFAR, 9 * (12 + 16 + 32 + 64 + 128 + 256) + 56 + 170),
        ("mlp:hidden=512x512", 10, (28, 28, 1), 784 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10),
    ],
)
def test_parameter_counts_are_the_published_ones(spec, num_classes, input_shape, published):
    """Those of torchvision are in `test_convnets`, leaf by leaf."""
    leaves = leaves_of(spec, num_classes, input_shape)
    assert sum(leaf.size for path, leaf in leaves.items() if path.startswith("params/")) == published


@pytest.mark.parametrize(
    ("spec", "norms", "norm_channels"),
    [("preactresnet18", 16, 3392), ("resnet18", 20, 4800), ("vgg19:classifier=torchvision", 16, 5504)],
)
def test_batch_norm_channels_are_the_published_ones(spec, norms, norm_channels):
    scales = [leaf.size for path, leaf in leaves_of(spec).items() if path.endswith("/scale")]
    assert (len(scales), sum(scales)) == (norms, norm_channels)


@pytest.mark.parametrize(("spec", "convs", "channels"), [("preactresnet18", 17, 3904), ("vgg19", 16, 5504)])
def test_convolution_channels_outside_shortcuts_are_the_published_ones(spec, convs, channels):
    outputs = [leaf.shape[-1] for path, leaf in leaves_of(spec).items() if leaf.ndim == 4 and "shortcut" not in path]
    assert (len(outputs), sum(outputs)) == (convs, channels)


@pytest.mark.parametrize("name", [name for name in zoo.kinds() if not name.startswith("mobilenet")])
def test_width_scales_every_hidden_channel(name):
    narrow, full = leaves_of(f"{name}:width=0.5"), leaves_of(name)
    assert narrow.keys() == full.keys()
    for path, leaf in full.items():
        if path.endswith(("scale", "mean", "var")):
            assert narrow[path].size * 2 == leaf.size, path


def test_width_never_removes_a_channel():
    assert {leaf.size for path, leaf in leaves_of("resnet20:width=0.001").items() if path.endswith("scale")} == {1}


def test_specifications_are_canonical():
    assert models.build("resnet20:width=1.0", num_classes=10, input_shape=CIFAR) == models.build(
        "resnet20", num_classes=10, input_shape=list(CIFAR)
    )
    model = models.build("mlp:hidden=64x32,width=.50", num_classes=10, input_shape=CIFAR)
    assert model.spec == "mlp:width=0.5,hidden=64x32"
    assert architecture.parse(model.spec) == ("mlp", {"width": 0.5, "hidden": (64, 32), "activation": "relu"})


def test_any_wide_resnet_can_be_named():
    assert leaves_of("wideresnet-10-4")["params/fc/kernel"].shape == (256, 10)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet21", "unknown architecture 'resnet21', did you mean .*resnet20"),
        ("ResNet18", "did you mean .*resnet18"),
        ("", "unknown architecture ''; choose one of mlp, cnn"),
        ("wideresnet-17-1", "expected a WideResNet of depth 6 n \\+ 4, got 17"),
        ("wideresnet-16-0", "unknown architecture"),
        ("resnet20:widht=0.5", "unknown option 'widht' .*did you mean width"),
        ("resnet20:hidden=3", "unknown option 'hidden' .*resnet20 takes width=<a positive number"),
        ("resnet20:", "unknown option ''"),
        ("resnet20:width", "expected a positive number such as 0.5, got width=''"),
        ("resnet20:width=0", "expected a positive number such as 0.5, got width='0'"),
        ("resnet20:width=nan", "expected a positive number"),
        ("resnet20:width=1,width=2", "expected every option once, got 'width' twice"),
        ("mlp:hidden=64x", "expected units joined by x, such as 512x512, got .*; write mlp:hidden=512x512"),
        ("vgg11:classifier=large", "expected small or torchvision, got"),
    ],
)
def test_bad_specifications_say_what_exists(spec, message):
    with pytest.raises(ArchitectureError, match=message):
        models.build(spec, num_classes=10, input_shape=CIFAR)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 0}, ArchitectureError, "expected num_classes >= 1, got 0"),
        ({"input_shape": (1, 32, 32, 3)}, DataError, "leave out the batch axis"),
        ({"input_shape": (32, 0, 3)}, DataError, "all positive"),
        ({"mean": (0.5, 0.5)}, DataError, "expected 3 finite values of mean"),
        ({"std": (0.2, 0.2, 0.0)}, DataError, "finite and positive values of std"),
        ({"mean": (0.5, np.nan, 0.5)}, DataError, "finite values of mean"),
    ],
)
def test_impossible_images_and_classes_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        models.build("cnn", **{"num_classes": 10, "input_shape": CIFAR, **options})
