"""Vision transformers: torchvision's and timm's weights, logits and counts, and the channels of their attention."""

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
from jaxguard.errors import ArchitectureError, CheckpointError, DataError
from jaxguard.graph import channel_graph
from jaxguard.models import layouts, vit
from jaxguard.scores.channel_bounds import channel_bounds

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "vit_convnext_torch.npz"
PUBLISHED = GOLDEN.with_name("published_names.json.gz")
SPEC = reference.SPECS["vit"]
TORCH_LAYOUTS = ("torch", "timm", "original")


def torch_leaves(layout: str) -> dict[str, np.ndarray]:
    return reference.leaves(np.load(GOLDEN), f"vit/{layout}")


@pytest.mark.parametrize("layout", TORCH_LAYOUTS)
def test_logits_are_torchs(layout):
    leaves = torch_leaves(layout)
    model = models.infer(SPEC, leaves)
    assert (model.num_classes, model.input_shape) == (7, (32, 32, 3))
    variables, recognized = models.bind(model, leaves)
    assert recognized == layout
    logits = jax.jit(model.apply_fn)(variables, reference.images(32))
    np.testing.assert_allclose(logits, np.load(GOLDEN)[f"vit/{layout}/logits"], atol=1e-5)


@pytest.mark.parametrize("layout", TORCH_LAYOUTS)
def test_unbind_gives_back_every_leaf(layout):
    leaves = torch_leaves(layout)
    model = models.infer(SPEC, leaves)
    again = models.unbind(model, models.bind(model, leaves)[0], layout)
    assert again.keys() == leaves.keys()
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(again[name], leaf, strict=True)


@pytest.mark.parametrize(
    ("network", "spec"),
    [
        ("torchvision/vit_b_16", "vit-base-16"),
        ("torchvision/vit_b_32", "vit-base-32"),
        ("torchvision/vit_l_16", "vit-large-16"),
        ("timm/vit_tiny_patch16_224", "vit-tiny-16"),
        ("timm/vit_small_patch16_224", "vit-small-16"),
        ("timm/vit_base_patch16_224", "vit-base-16"),
        ("timm/deit_small_patch16_224", "vit-small-16"),
    ],
)
def test_names_and_shapes_are_the_published_ones(network, spec):
    model = models.build(spec, num_classes=1000, input_shape=(224, 224, 3))
    leaves = layouts.expected(model, "timm" if network.startswith("timm/") else "torch")
    published = json.loads(gzip.decompress(PUBLISHED.read_bytes()))[network]
    assert {name: list(leaf.shape) for name, leaf in leaves.items()} == published


@pytest.mark.parametrize(
    ("spec", "published"),
    [
        ("vit-tiny-16", 5_717_416),
        ("vit-small-16", 22_050_664),
        ("vit-base-16", 86_567_656),
        ("vit-base-32", 88_224_232),
        ("vit-large-16", 304_326_632),
    ],
)
def test_parameter_counts_are_the_published_ones(spec, published):
    shapes = models.build(spec, num_classes=1000, input_shape=(224, 224, 3)).shapes()
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == published


@pytest.mark.parametrize(("channels", "heads"), [(192, 3), (384, 6), (768, 12), (1024, 16)])
def test_heads_are_the_published_ones(channels, heads):
    assert vit.heads_of(channels) == heads


@pytest.mark.parametrize("layout", ["flax", *TORCH_LAYOUTS])
@pytest.mark.parametrize(
    ("spec", "size"), [("vit-tiny-4:width=0.1,depth=1", 28), ("vit-tiny-14:width=0.1,depth=1", 224)]
)
def test_image_size_follows_the_position_embedding(spec, size, layout):
    model = models.build(spec, num_classes=5, input_shape=(size, size, 1))
    assert models.infer(spec, models.unbind(model, model.init(jax.random.key(0)), layout)) == model


def test_a_grid_that_is_not_square_needs_the_image_shape():
    model = models.build(SPEC, num_classes=5, input_shape=(16, 40, 3))
    leaves = models.unbind(model, model.init(jax.random.key(0)), "timm")
    assert models.infer(SPEC, leaves).input_shape == (224, 224, 3)
    assert models.infer(SPEC, leaves, input_shape=(16, 40, 3)) == model


def test_a_misfit_says_which_width_would_fit():
    wide, narrow = (
        models.build(f"vit-tiny-16:depth=2{width}", num_classes=5, input_shape=(64, 64, 3))
        for width in ("", ",width=0.5")
    )
    leaves = models.unbind(narrow, narrow.init(jax.random.key(0)), "original")
    with pytest.raises(CheckpointError, match=r"pass --arch vit-tiny-16:width=0\.5,depth=2$"):
        models.bind(wide, leaves)


def test_queries_and_keys_share_channels_and_values_have_their_own():
    model = models.build(SPEC, num_classes=7, input_shape=(32, 32, 3))
    variables, images = zoo.randomise(model.shapes()), zoo.images(32, 32, 3)
    graph = channel_graph(model.apply_fn, variables, images)
    names = {producer.name for producer in graph.producers}
    assert {"patch_embed", "blocks_1/attn/qkv", "blocks_1/attn/proj", "blocks_1/mlp_fc1", "head"} <= names
    inside = {}
    for group in graph.groups:
        if group.name == "blocks_0/attn/qkv":
            columns = [m.positions for m in group.members if m.path.endswith("qkv/kernel") and m.axis == 1]
            parts = {int(column) // 48 for positions in columns for column in positions.ravel()}
            inside[group.size, tuple(sorted(parts))] = group.permutable
    assert inside == {(3, (0, 1, 2)): True, (16, (0, 1)): True, (16, (2,)): True}  # heads; queries and keys; values
    sizes = {group.name: group.size for group in graph.groups if group.permutable}
    assert (sizes["patch_embed"], sizes["blocks_0/mlp_fc1"]) == (48, 192)


def test_permuting_every_group_leaves_the_logits_unchanged():
    model = models.build(SPEC, num_classes=7, input_shape=(32, 32, 3))
    variables, images = zoo.randomise(model.shapes()), zoo.images(32, 32, 3)
    rng, permuted = np.random.default_rng(0), variables
    for group in channel_graph(model.apply_fn, variables, images).groups:
        if group.permutable:
            permuted = surgery.permute(permuted, group, np.roll(rng.permutation(group.size), 1))
    apply_fn = jax.jit(model.apply_fn)
    np.testing.assert_allclose(apply_fn(permuted, images), apply_fn(variables, images), atol=2e-5)


def test_clp_scores_a_dense_channel_by_the_length_of_its_weights():
    model = models.build(SPEC, num_classes=7, input_shape=(32, 32, 3))
    variables = zoo.randomise(model.shapes())
    graph = channel_graph(model.apply_fn, variables, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    bounds = channel_bounds(graph, variables)
    scores = {layer.name: values for layer, values in zip(bounds.layers, bounds.scores, strict=True)}
    blocks = [f"blocks_{i}/{layer}" for i in (0, 1) for layer in ("attn/qkv", "attn/proj", "mlp_fc1", "mlp_fc2")]
    assert set(scores) == {"patch_embed", *blocks}
    leaves = layouts.by_path(variables)
    for name in blocks:
        np.testing.assert_allclose(scores[name], np.linalg.norm(leaves[f"params/{name}/kernel"], axis=0), rtol=1e-5)


def test_bfloat16_computes_close_to_float32(usual_promotion):  # Flax promotes in its norms
    model, half = (models.build(SPEC, num_classes=7, input_shape=(32, 32, 3), dtype=d) for d in (None, "bfloat16"))
    variables, images = models.bind(model, torch_leaves("timm"))[0], reference.images(32)
    exact, rough = (jax.jit(m.apply_fn)(variables, images) for m in (model, half))
    assert rough.dtype == np.float32
    assert 0 < np.max(np.abs(rough - exact)) < 0.05 * np.max(np.abs(exact))


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("vit-tiny-16:heads=5", ArchitectureError, "divides the 192 channels .* got heads=5; pass heads=3"),
        (
            "vit-tiny-16:depth=0",
            ArchitectureError,
            "expected a number of blocks such as 12, got depth='0' .*; write vit-tiny-16:depth=12",
        ),
        (
            "vit-tiny-16:heads=-1",
            ArchitectureError,
            "expected a number of attention heads, 0 for one per 64 channels, got",
        ),
        ("vit-tiny-0", ArchitectureError, "unknown architecture 'vit-tiny-0'.* did you mean vit-tiny-16.*any vit-"),
        ("vit-tiny-64", DataError, "expected at least 64x64 pixels for the patches of patch_embed, got 32x32"),
    ],
)
def test_impossible_networks_are_refused(spec, error, message):
    with pytest.raises(error, match=message):
        models.build(spec, num_classes=10, input_shape=(32, 32, 3)).shapes()
