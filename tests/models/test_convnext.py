"""ConvNeXt: weights, logits and counts of torchvision, timm and the authors, and its channels."""

import gzip
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from golden import vit_convnext_torch as reference

from jaxguard import models, surgery
from jaxguard.errors import ArchitectureError, DataError
from jaxguard.graph import channel_graph
from jaxguard.models import layouts
from jaxguard.scores.channel_bounds import channel_bounds

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "vit_convnext_torch.npz"
PUBLISHED = GOLDEN.with_name("published_names.json.gz")
SPEC = reference.SPECS["convnext"]
TORCH_LAYOUTS = ("torch", "timm", "original")
INPUT = (64, 64, 3)


def torch_leaves(layout: str) -> dict[str, np.ndarray]:
    return reference.leaves(np.load(GOLDEN), f"convnext/{layout}")


@pytest.mark.parametrize("layout", TORCH_LAYOUTS)
def test_logits_are_torchs(layout):
    leaves = torch_leaves(layout)
    model = models.infer(SPEC, leaves, input_shape=INPUT)
    variables, recognized = models.bind(model, leaves)
    assert (recognized, model.num_classes) == (layout, 7)
    logits = jax.jit(model.apply_fn)(variables, reference.images(64))
    np.testing.assert_allclose(logits, np.load(GOLDEN)[f"convnext/{layout}/logits"], atol=1e-5)


@pytest.mark.parametrize("layout", TORCH_LAYOUTS)
def test_unbind_gives_back_every_leaf(layout):
    leaves = torch_leaves(layout)
    model = models.infer(SPEC, leaves)
    again = models.unbind(model, models.bind(model, leaves)[0], layout)
    assert again.keys() == leaves.keys()
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(again[name], leaf, strict=True)


def test_images_are_taken_to_be_of_imagenets_size():
    assert models.infer(SPEC, torch_leaves("timm")).input_shape == (224, 224, 3)


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_names_and_shapes_are_the_published_ones(library, size):
    network, spec = f"{library}/convnext_{size}", f"convnext-{size}"
    model = models.build(spec, num_classes=1000, input_shape=(224, 224, 3))
    leaves = layouts.expected(model, "timm" if network.startswith("timm/") else "torch")
    published = json.loads(gzip.decompress(PUBLISHED.read_bytes()))[network]
    assert {name: list(leaf.shape) for name, leaf in leaves.items()} == published


@pytest.mark.parametrize(
    ("spec", "published"),
    [
        ("convnext-tiny", 28_589_128),
        ("convnext-small", 50_223_688),
        ("convnext-base", 88_591_464),
        ("convnext-large", 197_767_336),
    ],
)
def test_parameter_counts_are_the_published_ones(spec, published):
    shapes = models.build(spec, num_classes=1000, input_shape=(224, 224, 3)).shapes()
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == published


def test_permuting_every_group_leaves_the_logits_unchanged():
    model = models.build(SPEC, num_classes=7, input_shape=INPUT)
    variables, images = zoo.randomise(model.shapes()), zoo.images(*INPUT)
    graph = channel_graph(model.apply_fn, variables, images)
    permutable = [group for group in graph.groups if group.permutable]
    stages = [12, 24, 48, 96]  # one group of a stage's own channels, one per block for the four times wider layer
    assert sorted(group.size for group in permutable) == sorted([*stages, 48, 96, 192, 192, 384])
    rng, permuted = np.random.default_rng(0), variables
    for group in permutable:
        permuted = surgery.permute(permuted, group, np.roll(rng.permutation(group.size), 1))
    apply_fn = jax.jit(model.apply_fn)
    np.testing.assert_allclose(apply_fn(permuted, images), apply_fn(variables, images), atol=5e-5)


def test_clp_scores_a_block_by_its_layer_scale():
    model = models.build("convnext-tiny:width=0.0625,depths=1x1x1x1", num_classes=7, input_shape=INPUT)
    variables = zoo.randomise(model.shapes())
    graph = channel_graph(model.apply_fn, variables, jax.ShapeDtypeStruct((1, *INPUT), jnp.float32))
    bounds = channel_bounds(graph, variables)
    scores = {layer.name: values for layer, values in zip(bounds.layers, bounds.scores, strict=True)}
    blocks = [f"stages_{stage}_blocks_0" for stage in range(4)]
    scaled = {f"{block}/mlp_fc2 -> {block}/gamma" for block in blocks}
    alone = {f"{block}/{layer}" for block in blocks for layer in ("conv_dw", "mlp_fc1")}
    assert set(scores) == scaled | alone | {"stem_0", *(f"stages_{stage}_downsample_1" for stage in (1, 2, 3))}
    leaves = layouts.by_path(variables)
    for block in blocks:
        lengths = np.linalg.norm(leaves[f"params/{block}/mlp_fc2/kernel"], axis=0)
        expected = lengths * np.abs(leaves[f"params/{block}/gamma"])
        np.testing.assert_allclose(scores[f"{block}/mlp_fc2 -> {block}/gamma"], expected, rtol=1e-5)
        depthwise = np.linalg.norm(leaves[f"params/{block}/conv_dw/kernel"].reshape(49, -1), axis=0)
        np.testing.assert_allclose(scores[f"{block}/conv_dw"], depthwise, rtol=1e-5)


def test_initial_layer_scales_leave_the_residual_stream_alone():
    model = models.build(SPEC, num_classes=7, input_shape=(32, 32, 3))
    leaves = layouts.by_path(model.init(jax.random.key(0)))
    gammas = [leaf for path, leaf in leaves.items() if path.endswith("/gamma")]
    assert len(gammas) == 5
    assert all(np.all(np.asarray(gamma) == np.float32(1e-6)) for gamma in gammas)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (
            "convnext-tiny:depths=3x3x9",
            ArchitectureError,
            "expected the blocks of four stages, such as 3x3x9x3, got .*; write",
        ),
        ("convnext-tiny:depths=3x0x9x3", ArchitectureError, "expected the blocks of four stages"),
        ("convnext-huge", ArchitectureError, "did you mean .*convnext-"),
        ("convnext-tiny", DataError, "expected at least 2x2 pixels for the patches of stages_3_downsample_1, got 1x1"),
    ],
)
def test_impossible_networks_are_refused(spec, error, message):
    with pytest.raises(error, match=message):
        models.build(spec, num_classes=10, input_shape=(31, 31, 3)).shapes()
