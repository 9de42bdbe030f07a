"""Architectures told from names and shapes: the published networks, ours at any width, and what is only close."""

import gzip
import json
import pathlib
from types import SimpleNamespace

import numpy as np
import pytest

from jaxguard import models
from jaxguard.errors import ArchitectureError, CheckpointError
from jaxguard.models import layouts

PUBLISHED = json.loads(
    gzip.decompress((pathlib.Path(__file__).parents[1] / "golden" / "published_names.json.gz").read_bytes())
)
SPECS = {
    "torchvision/resnet18": "resnet18-torchvision",
    "torchvision/resnet50": "resnet50",
    "torchvision/wide_resnet50_2": "wide_resnet50_2",
    "torchvision/resnext50_32x4d": "resnext50_32x4d",
    "torchvision/vgg11": "vgg11:classifier=torchvision,norm=none",
    "torchvision/vgg16_bn": "vgg16:classifier=torchvision",
    "torchvision/densenet121": "densenet121",
    "torchvision/mobilenet_v2": "mobilenet_v2",
    "torchvision/mobilenet_v3_small": "mobilenet_v3_small",
    "torchvision/mobilenet_v3_large": "mobilenet_v3_large",
    "torchvision/vit_b_16": "vit-base-16",
    "torchvision/vit_b_32": "vit-base-32",
    "torchvision/convnext_tiny": "convnext-tiny",
    "timm/mobilenetv2_100": "mobilenet_v2",
    "timm/mobilenetv2_050": "mobilenet_v2:width=0.5",
    "timm/mobilenetv3_small_100": "mobilenet_v3_small:epsilon=1e-05",
    "timm/vit_tiny_patch16_224": "vit-tiny-16",
    "timm/vit_small_patch16_224": "vit-small-16",
    "timm/convnext_tiny": "convnext-tiny",
    "timm/convnext_large": "convnext-large",
}
OWN = [f"{name}:width=0.25" for name in ("cnn", "preactresnet18", "resnet18", "resnet56", "vgg13")]
OWN += ["mlp:hidden=20x30", "wideresnet-22-3", "resnet18-torchvision:stem=cifar,width=0.5"]


def shapes_of(published):
    return {name: SimpleNamespace(shape=tuple(shape)) for name, shape in PUBLISHED[published].items()}


@pytest.mark.parametrize(("published", "spec"), SPECS.items(), ids=SPECS)
def test_published_networks_are_identified(published, spec):
    found = models.identify(shapes_of(published))
    assert (found.model.spec, found.model.num_classes, found.model.input_shape) == (spec, 1000, (224, 224, 3))
    leftover = {name for name in PUBLISHED[published] if name.endswith("num_batches_tracked")}
    assert found.names.keys() == PUBLISHED[published].keys() - leftover
    assert sorted(found.names.values()) == sorted(layouts.by_path(found.model.shapes()))


@pytest.mark.parametrize("layout", ["flax", "torch"])
@pytest.mark.parametrize("spec", OWN)
def test_own_architectures_are_identified_at_any_width(spec, layout):
    model = models.build(spec, num_classes=7, input_shape=(32, 32, 1))
    found = models.identify(layouts.expected(model, layout))
    assert found.model == model
    assert found.layout == layout


def test_wrappers_are_looked_through_and_original_names_reported():
    model = models.build("resnet20:width=0.25", num_classes=7, input_shape=(32, 32, 3))
    leaves = {f"module.model.{name}": leaf for name, leaf in layouts.expected(model, "torch").items()}
    found = models.identify(leaves)
    assert found.model == model
    assert found.names["module.model.layer1.0.conv1.weight"] == "params/layer1_0/conv1/kernel"


def test_image_shape_and_normalization_are_the_callers():
    model = models.build("resnet20:width=0.25", num_classes=7, input_shape=(40, 24, 3))
    found = models.identify(layouts.expected(model, "torch"), input_shape=(40, 24, 3), mean=(0.5,) * 3)
    assert (found.model.input_shape, found.model.mean) == ((40, 24, 3), (0.5,) * 3)


def test_the_closest_is_named_with_the_leaves_that_differ():
    leaves = shapes_of("torchvision/resnet50")
    leaves["layer3.0.conv2.weight"] = SimpleNamespace(shape=(256, 256, 5, 5))
    leaves["extra.weight"] = SimpleNamespace(shape=(3, 3))
    with pytest.raises(ArchitectureError) as caught:
        models.identify(leaves)
    told = str(caught.value)
    assert "resnet50 is closest" in told
    assert "'layer3.0.conv2.weight' is (256, 256, 5, 5), resnet50 expects (256, 256, 3, 3)" in told
    assert "'extra.weight' (3, 3) is not part of resnet50" in told


def test_a_replaced_head_leaves_the_rest_recognisable():
    leaves = shapes_of("torchvision/resnet34")
    leaves = {name.replace("fc.", "fc.1."): leaf for name, leaf in leaves.items()}
    with pytest.raises(ArchitectureError, match=r"resnet34 is closest, but leaf 'fc.weight' .* is missing"):
        models.identify(leaves)


@pytest.mark.parametrize(
    "leaves",
    [
        {},
        {"a": SimpleNamespace(shape=())},
        {"conv1.weight": SimpleNamespace(shape=(0, 3, 3, 3)), "linear.weight": SimpleNamespace(shape=(10, 0))},
        {"conv1.weight": SimpleNamespace(shape=(5,)), "fc.weight": SimpleNamespace(shape=(2, 2, 2))},
        {"fc1.weight": SimpleNamespace(shape=(7, 5)), "fc1.bias": SimpleNamespace(shape=(10**15,))},
        {"block1.layer.0.bn2.bias": SimpleNamespace(shape=(2**40,)), "conv1.weight": SimpleNamespace(shape=(1,) * 4)},
    ],
    ids=["nothing", "scalar", "empty kernels", "wrong ranks", "absurd units", "absurd width"],
)
def test_strange_leaves_are_no_architecture(leaves):
    with pytest.raises(ArchitectureError, match=r"got \d+ others|is closest"):
        models.identify(leaves)


def test_what_is_identified_binds_without_more_words():
    model = models.build("vgg11:width=0.05", num_classes=4, input_shape=(32, 32, 3))
    rng = np.random.default_rng(0)
    leaves = {
        name: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        for name, leaf in layouts.expected(model, "torch").items()
    }
    variables, layout = models.bind(models.identify(leaves).model, leaves)
    again = models.unbind(model, variables, layout)
    assert all(np.array_equal(again[name], leaf) for name, leaf in leaves.items())
    with pytest.raises(CheckpointError, match="is it a vgg11"):
        models.bind(models.build("cnn", num_classes=4, input_shape=(32, 32, 3)), leaves)
