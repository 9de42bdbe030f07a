"""Convolutional families: logits and leaves of torchvision's, timm's and the papers' networks, and their channels."""

import functools
import gzip
import json
import pathlib

import jax
import numpy as np
import pytest
import zoo
from golden import convnets_torch as reference

from jaxguard import models, surgery
from jaxguard.graph import channel_graph
from jaxguard.models import layouts
from jaxguard.models.densenet import DenseNet
from jaxguard.models.dialects import Dialect
from jaxguard.models.mobilenet_v2 import MobileNetV2
from jaxguard.models.mobilenet_v3 import SMALL, MobileNetV3
from jaxguard.models.resnet import ResNet

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CLASSES = reference.CLASSES

NETWORKS = {
    "resnet20": "resnet20",
    "resnet18": "resnet18:width=0.125",
    "preactresnet18": "preactresnet18:width=0.125",
    "wideresnet": "wideresnet-10-2",
    "resnet/basic": ResNet(num_classes=CLASSES, blocks=(2, 1, 1, 1), bottleneck=False),
    "resnet/bottleneck": ResNet(num_classes=CLASSES, blocks=(1, 2, 1, 1), base=16),
    "resnet/grouped": ResNet(num_classes=CLASSES, blocks=(1, 1, 1, 1), groups=32, base=4),
    "resnet/cifar_stem": ResNet(num_classes=CLASSES, blocks=(1, 1, 1, 1), bottleneck=False, entry="cifar"),
    "vgg/norm": "vgg11:width=0.0625,classifier=torchvision",
    "vgg/plain": "vgg11:width=0.0625,classifier=torchvision,norm=none",
    "vgg/timm": "vgg11:width=0.0625,classifier=torchvision",
    "vgg/one_layer": "vgg11:width=0.0625",
    "densenet/torch": DenseNet(num_classes=CLASSES, blocks=(2, 3, 2, 2), growth=8, channels=16),
    "densenet/original": DenseNet(num_classes=CLASSES, blocks=(2, 3, 2, 2), growth=8, channels=16),
    "mobilenet_v2/torch": "mobilenet_v2:width=0.5",
    "mobilenet_v2/timm": "mobilenet_v2:width=0.5",
    "mobilenet_v3_small/torch": "mobilenet_v3_small",
    "mobilenet_v3_small/timm": "mobilenet_v3_small",
    "mobilenet_v3_large/torch": "mobilenet_v3_large",
}
"""Case of the golden file -> the same network here."""


def case_of(case: str) -> tuple[models.Model, np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Model, images, torch's leaves and torch's logits."""
    golden, network, images = np.load(GOLDEN / "convnets_torch.npz"), NETWORKS[case], reference.images(case)
    leaves, shape = reference.leaves(golden, case), images.shape[1:]
    if isinstance(network, str):
        return models.infer(network, leaves, input_shape=shape), images, leaves, golden[f"{case}/logits"]
    return models.Model(case, network, shape, CLASSES), images, leaves, golden[f"{case}/logits"]


def compiled(function):
    """The function compiled quickly rather than well; it runs once or twice."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def test_an_epsilon_that_no_leaf_tells_comes_with_the_names():
    leaves = reference.leaves(np.load(GOLDEN / "convnets_torch.npz"), "mobilenet_v3_small/timm")
    assert models.infer("mobilenet_v3_small", leaves).spec == "mobilenet_v3_small:epsilon=1e-05"


@pytest.mark.parametrize("case", NETWORKS)
def test_logits_are_torchs(case):
    model, images, leaves, expected = case_of(case)
    variables, layout = models.bind(model, leaves)
    assert layout == (case.split("/")[-1] if case.endswith(("timm", "original")) else "torch")
    logits = compiled(model.apply_fn)(variables, images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    again = models.unbind(model, variables, layout)
    assert again.keys() == leaves.keys()
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(again[name], leaf, strict=True)


@functools.cache
def published() -> dict[str, dict[str, list[int]]]:
    return json.loads(gzip.decompress((GOLDEN / "published_names.json.gz").read_bytes()))


def convnet(key: str) -> tuple[str, layouts.Layout]:
    """Specification and layout of a published convolutional network."""
    library, name = key.split("/")
    if name.startswith("vgg"):
        depth, _, norm = name.partition("_")
        layout = "torch" if library == "torchvision" else "timm"
        return f"{depth}:classifier=torchvision{'' if norm else ',norm=none'}", layout
    if library == "torchvision" or not name.startswith("mobilenet"):
        return name.replace("resnet18", "resnet18-torchvision"), "torch"
    version, _, rest = name.removeprefix("mobilenetv").partition("_")
    if version == "2":
        return f"mobilenet_v2:width={int(rest) / 100}", "timm"
    return f"mobilenet_v3_{rest.removesuffix('_100')}", "timm"


CONVNETS = [key for key in published() if not any(word in key for word in ("vit", "deit", "convnext"))]


@pytest.mark.parametrize("key", CONVNETS)
def test_leaves_are_the_published_ones(key):
    spec, layout = convnet(key)
    model = models.build(spec, num_classes=1000, input_shape=(224, 224, 3))
    expected = {name: list(leaf.shape) for name, leaf in layouts.expected(model, layout).items()}
    assert expected == {name: shape for name, shape in published()[key].items() if "num_batches" not in name}


MODULES = {
    "basic": ResNet(num_classes=CLASSES, blocks=(1, 1, 1, 1), bottleneck=False, width=0.125),
    "bottleneck": ResNet(num_classes=CLASSES, blocks=(1, 2, 1, 1), width=0.125, entry="cifar"),
    "grouped": ResNet(num_classes=CLASSES, blocks=(1, 1, 1, 1), groups=32, base=4, width=0.5),
    "densenet": DenseNet(num_classes=CLASSES, blocks=(2, 3, 1, 1), growth=4, channels=8),
    "mobilenet_v2": MobileNetV2(num_classes=CLASSES, width=0.25),
    "mobilenet_v3": MobileNetV3(num_classes=CLASSES, stages=SMALL[:3], units=64),
}


@pytest.mark.parametrize("name", MODULES)
def test_permuting_every_group_leaves_the_logits_unchanged(name):
    model = models.Model(name, MODULES[name], (32, 32, 3), CLASSES)
    variables, images = zoo.randomise(model.shapes()), zoo.images(32, 32, 3)
    graph = channel_graph(model.apply_fn, variables, images)
    rng = np.random.default_rng(0)
    orders = [(group, np.roll(rng.permutation(group.size), 1)) for group in graph.groups if group.permutable]
    assert orders
    permuted = compiled(lambda tree: functools.reduce(lambda v, order: surgery.permute(v, *order), orders, tree))(
        variables
    )
    apply_fn = compiled(model.apply_fn)
    expected = np.asarray(apply_fn(variables, images))
    assert np.ptp(expected, axis=0).min() > 1e-3
    np.testing.assert_allclose(apply_fn(permuted, images), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_groups_of_a_basic_block_are_its_inner_channels_and_the_residual_stream():
    model = models.Model("basic", MODULES["basic"], (32, 32, 3), CLASSES)
    graph = channel_graph(model.apply_fn, model.shapes(), jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32))
    sizes = sorted(group.size for group in graph.groups if group.permutable)
    assert sizes == sorted([8, 8, 16, 16, 32, 32, 64, 64])


def test_a_window_is_that_of_the_leaf_at_the_end_of_its_path_alone():
    dialect = Dialect(windows={"classifier_0/weight": (1, 1)})
    assert dialect.shape_of("params/classifier_0/kernel", (576, 1024)) == (1024, 576, 1, 1)
    assert dialect.shape_of("params/classifier_0/bias", (1024,)) == (1024,)
    assert dialect.shape_of("params/last_classifier_0/kernel", (576, 1024)) == (1024, 576)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "backbone.", "_orig_mod.module.model."])
def test_prefixes_that_all_leaves_share_are_dropped(prefix):
    leaves = {"conv1.weight": np.zeros(1), "bn1.num_batches_tracked": np.zeros(())}
    assert layouts.recognize({f"{prefix}{name}": leaf for name, leaf in leaves.items()})[1].keys() == {"conv1.weight"}
    assert layouts.recognize({f"{prefix}a.weight": 1, "b.weight": 2})[1].keys() == {f"{prefix}a.weight", "b.weight"}
