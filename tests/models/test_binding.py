"""Checkpoints in both layouts: exact round trips, real third-party files, and every way not to fit."""

import jax
import numpy as np
import pytest
import zoo
from safetensors.numpy import load_file

from jaxguard import models
from jaxguard.errors import CheckpointError, DataError
from jaxguard.models import layouts

INPUT = (32, 32, 3)
SPECS = [f"{name}:width=0.0625" for name in zoo.kinds()]
SPECS += ["vgg11:width=0.0625,classifier=torchvision", "wideresnet-10-3:width=0.5"]


def random_variables(model: models.Model) -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), model.shapes())


def checkpoint(spec: str = "resnet20:width=0.25", layout: layouts.Layout = "torch", **options):
    model = models.build(spec, **{"num_classes": 10, "input_shape": INPUT, **options})
    return model, models.unbind(model, random_variables(model), layout)


@pytest.mark.parametrize("layout", ["flax", "torch"])
@pytest.mark.parametrize("spec", SPECS)
def test_round_trip_is_exact(spec, layout):
    model = models.build(spec, num_classes=10, input_shape=INPUT)
    variables = random_variables(model)
    leaves = models.unbind(model, variables, layout)
    assert all(leaf.flags.c_contiguous for leaf in leaves.values())
    bound, recognized = models.bind(model, leaves)
    assert recognized == layout
    jax.tree.map(np.testing.assert_array_equal, bound, variables)
    again = models.unbind(model, bound, layout)
    assert again.keys() == leaves.keys()
    assert all(np.array_equal(again[name], leaf) for name, leaf in leaves.items())


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (
            "wideresnet-16-1",
            {"block1.layer.0.bn1.weight", "block2.layer.0.convShortcut.weight", "bn1.bias", "fc.weight"},
        ),
        ("resnet20", {"layer1.0.conv1.weight", "layer3.2.bn2.running_var", "linear.bias"}),
        ("preactresnet18", {"layer1.0.bn1.running_mean", "layer2.0.shortcut.0.weight", "linear.weight"}),
        ("resnet18", {"layer2.0.shortcut.0.weight", "layer2.0.shortcut.1.running_mean"}),
        ("vgg11", {"features.0.bias", "features.26.running_var", "classifier.weight"}),
        (
            "vgg19:classifier=torchvision,width=0.0625",
            {"features.49.weight", "features.50.weight", "classifier.6.bias"},
        ),
    ],
)
def test_torch_names_are_those_of_the_original_networks(spec, names):
    model = models.build(spec, num_classes=10, input_shape=INPUT)
    assert names <= layouts.expected(model, "torch").keys()


def test_torch_kernels_and_flattened_maps_are_transposed():
    model, leaves = checkpoint("mlp:hidden=2", input_shape=(2, 3, 2))
    torch_image = np.zeros((2, 2, 3), np.float32)  # CHW
    torch_image[1, 0, 2] = 1.0
    expected = leaves["fc1.weight"] @ torch_image.ravel()
    kernel = models.bind(model, leaves)[0]["params"]["fc1"]["kernel"]
    np.testing.assert_array_equal(torch_image.transpose(1, 2, 0).ravel() @ np.asarray(kernel), expected)
    _, leaves = checkpoint("cnn")
    assert leaves["conv3.weight"].shape == (32, 16, 3, 3)


def test_training_leftovers_of_torch_are_ignored():
    model, leaves = checkpoint()
    parallel = {f"module.{name}": leaf for name, leaf in leaves.items()}
    parallel["module.bn1.num_batches_tracked"] = np.array(7)
    bound, plain = models.bind(model, parallel)[0], models.bind(model, leaves)[0]
    jax.tree.map(np.testing.assert_array_equal, bound, plain)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, jax.numpy.bfloat16])
def test_other_floats_become_float32(dtype):
    model, leaves = checkpoint()
    bound, _ = models.bind(model, {name: leaf.astype(dtype) for name, leaf in leaves.items()})
    assert {leaf.dtype for leaf in jax.tree.leaves(bound)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("layout", ["flax", "torch"])
@pytest.mark.parametrize("spec", ["resnet20:width=0.25", "mlp:hidden=6", "vgg11:width=0.0625,classifier=torchvision"])
def test_infer_reads_classes_and_channels(spec, layout):
    model, leaves = checkpoint(spec, layout, num_classes=43, input_shape=(32, 32, 1))
    inferred = models.infer(spec, leaves)
    assert (inferred.spec, inferred.num_classes, inferred.input_shape[-1]) == (model.spec, 43, 1)


def test_infer_takes_the_image_shape_and_normalization():
    model, leaves = checkpoint("mlp:hidden=6", num_classes=3, input_shape=(28, 28, 1), mean=(0.5,), std=(0.25,))
    inferred = models.infer("mlp:hidden=6", leaves, input_shape=(28, 28, 1), mean=(0.5,), std=(0.25,))
    assert inferred == model
    assert models.infer("mlp:hidden=6", leaves).input_shape == (28, 28, 1)  # the only square image of 784 numbers
    with pytest.raises(CheckpointError, match=r"multiple of 32x32 pixels .* got 784 numbers; pass input_shape"):
        models.infer("mlp:hidden=6", leaves, input_shape=(32, 32, 1))
    _, oblong = checkpoint("mlp:hidden=6", input_shape=(5, 7, 1))
    with pytest.raises(CheckpointError, match=r"reads a square image.* got 35 numbers; pass input_shape"):
        models.infer("mlp:hidden=6", oblong)
    with pytest.raises(DataError, match="values of mean"):
        models.infer("mlp:hidden=6", leaves, input_shape=(28, 28, 1), mean=(0.5, 0.5))


def test_infer_without_a_head_names_it():
    _, leaves = checkpoint()
    del leaves["linear.weight"]
    with pytest.raises(CheckpointError, match=r"leaf 'linear\.weight' is missing or not a kernel"):
        models.infer("resnet20", leaves)


@pytest.mark.parametrize(
    ("found", "options", "advice"),
    [
        ("resnet18:width=0.125", {}, r"was it trained with width=0\.125\? pass --arch resnet18:width=0\.125$"),
        ("resnet18:width=0.3", {}, r"pass --arch resnet18:width=0\.3$"),
        ("resnet18", {"num_classes": 43}, "it has 43 classes, pass num_classes=43$"),
        ("resnet18", {"input_shape": (32, 32, 1)}, r"it reads other images, pass input_shape=\(32, 32, 1\)$"),
        ("preactresnet18", {}, r"is it a preactresnet18\? pass --arch preactresnet18$"),
        ("vgg13:width=0.125,classifier=torchvision", {}, r"pass --arch vgg13:width=0\.125,classifier=torchvision$"),
    ],
)
def test_misfits_say_what_would_fit(found, options, advice):
    _, leaves = checkpoint(found, **options)
    model = models.build("resnet18", num_classes=10, input_shape=INPUT)
    with pytest.raises(CheckpointError, match=advice):
        models.bind(model, leaves, "suspect.safetensors")


def test_misfits_are_listed_in_one_error():
    model, leaves = checkpoint()
    leaves["layer1.0.conv1.weight"] = leaves["layer1.0.conv1.weight"][:2]
    leaves["extra"] = np.zeros(3, np.float32)
    del leaves["bn1.bias"]
    with pytest.raises(CheckpointError) as caught:
        models.bind(model, leaves, "suspect.safetensors")
    message = str(caught.value)
    assert message.startswith(
        "suspect.safetensors: leaf 'layer1.0.conv1.weight' is (2, 4, 3, 3), resnet20:width=0.25 expects (4, 4, 3, 3)"
    )
    assert "leaf 'bn1.bias' (4,) is missing" in message
    assert "leaf 'extra' (3,) is not part of resnet20:width=0.25" in message
    assert "no architecture fits" in message


def test_a_strange_checkpoint_gives_a_short_message():
    model, _ = checkpoint()
    strange = {f"weights.{'x' * 500}.{i}": np.zeros((0, 5), np.float32) for i in range(1000)}
    with pytest.raises(CheckpointError, match="and 1093 more") as caught:
        models.bind(model, strange)
    assert len(str(caught.value)) < 1000


def test_an_empty_checkpoint_is_refused():
    model, _ = checkpoint()
    with pytest.raises(CheckpointError, match=r"leaf 'conv1\.weight' \(4, 3, 3, 3\) is missing"):
        models.bind(model, {})


def test_values_that_are_no_weights_are_refused():
    model, leaves = checkpoint()
    broken = leaves["conv1.weight"].copy()
    broken.flat[:3] = np.nan, np.inf, -np.inf
    with pytest.raises(
        CheckpointError, match=r"f\.npz: expected finite values, got 3 of 108 that are not in leaf 'conv1\.weight'"
    ):
        models.bind(model, {**leaves, "conv1.weight": broken}, "f.npz")
    with pytest.raises(CheckpointError, match=r"got 108 of 108 that are not in leaf .*, as float32"):
        models.bind(model, {**leaves, "conv1.weight": np.full((4, 3, 3, 3), 1e300)})
    with pytest.raises(CheckpointError, match=r"expected floating point, got int8 for leaf 'conv1\.weight'"):
        models.bind(model, {**leaves, "conv1.weight": np.ones((4, 3, 3, 3), np.int8)})


def test_variables_of_another_model_cannot_be_unbound():
    model, _ = checkpoint()
    other, _ = checkpoint("resnet20")
    with pytest.raises(CheckpointError, match="variables: leaf 'params/conv1/kernel'"):
        models.unbind(model, random_variables(other), "torch")
    with pytest.raises(CheckpointError, match=r"expected layout flax or torch for .*, got 'keras'"):
        models.unbind(model, random_variables(model), "keras")


@pytest.mark.parametrize(
    ("file", "spec"),
    [
        ("c10_bd_wrn16_nad_student", "wideresnet-16-1"),
        ("c10_bd_wrn16_abl_grid", "wideresnet-16-1"),
        ("c10_clean_resnet20_aka", "resnet20"),
        ("c10_clean_resnet44_aka", "resnet44"),
    ],
)
def test_third_party_checkpoints_bind_without_a_leaf_left(file, spec, shared_data):
    leaves = load_file(shared_data / "checkpoints" / f"{file}.safetensors")
    model = models.infer(spec, leaves)
    assert (model.num_classes, model.input_shape) == (10, INPUT)
    variables, layout = models.bind(model, leaves, file)
    back = models.unbind(model, variables, layout)
    assert back.keys() == leaves.keys()
    assert all(np.array_equal(back[name], leaf) for name, leaf in leaves.items())
