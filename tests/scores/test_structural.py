"""The structural reading of leaves: what the channel graph finds where conventions are kept, and less elsewhere."""

import jax
import numpy as np
import pytest

from jaxguard import models
from jaxguard.checkpoints import flatten
from jaxguard.errors import UnscorableError
from jaxguard.graph import channel_graph
from jaxguard.scores import structural
from jaxguard.scores.channel_bounds import channel_bounds

RNG = np.random.default_rng(0)


def read(shapes):
    return structural.read({name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()})


def names(shapes):
    return [(producer.stem, producer.norm) for producer in read(shapes).producers]


@pytest.mark.parametrize("layout", ["torch", "flax"])
@pytest.mark.parametrize("spec", ["resnet20:width=0.5", "vgg11:width=0.1", "cnn", "mlp:hidden=20x30"])
def test_scores_are_those_of_the_channel_graph_where_norms_follow_their_kernels(spec, layout):
    model = models.build(spec, num_classes=10, input_shape=(32, 32, 3))
    variables = jax.tree.map(lambda x: RNG.uniform(0.5, 1.5, x.shape).astype(np.float32), model.shapes())
    graph = channel_graph(model.apply_fn, variables, jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32))
    expected = channel_bounds(graph, variables)
    layers, scores = structural.channel_bounds(models.unbind(model, variables, layout))
    by_name = {layer.name.replace(".", "_"): score for layer, score in zip(layers, scores, strict=True)}
    assert len(by_name) == len(expected.layers)
    for layer, score in zip(expected.layers, expected.scores, strict=True):
        np.testing.assert_allclose(by_name[layer.name.replace("/", "_")], score, rtol=1e-5)


def test_keras_layers_are_paired_by_width_in_module_order():
    """`conv2d_2` is a 1x1 shortcut without a norm, after which the numbers of layers and norms differ."""
    widths = {"conv2d": 16, "conv2d_1": 32, "conv2d_2": 32, "conv2d_10": 64}
    shapes = {f"{name}/kernel": (3, 3, 16, width) for name, width in widths.items()}
    for name, width in {"batch_normalization": 16, "batch_normalization_1": 32, "batch_normalization_2": 64}.items():
        shapes |= {f"{name}/{leaf}": (width,) for leaf in ("beta", "gamma", "moving_mean", "moving_variance")}
    assert names(dict(sorted(shapes.items()))) == [
        ("conv2d", "batch_normalization"),
        ("conv2d_1", "batch_normalization_1"),
        ("conv2d_2", None),
        ("conv2d_10", "batch_normalization_2"),
    ]


def test_keras_3_variables_are_told_by_their_number():
    shapes = {
        "layers/conv2d/vars/0": (3, 3, 3, 8),
        "layers/batch_normalization/vars/0": (8,),
        "layers/batch_normalization/vars/1": (8,),
        "layers/batch_normalization/vars/2": (8,),
        "layers/batch_normalization/vars/3": (8,),
        "layers/dense/vars/0": (8, 2),
    }
    (producer,) = read(shapes).producers
    assert producer.axes == ((3,), (2,), (0, 1))
    assert (producer.scale, producer.var) == (
        "layers/batch_normalization/vars/0",
        "layers/batch_normalization/vars/3",
    )


def test_numbered_modules_are_paired_with_the_next_number_only():
    shapes = {
        "features.0.weight": (8, 3, 3, 3),
        "features.2.weight": (8, 8, 3, 3),
        "features.3.weight": (8,),
        "features.3.running_var": (8,),
    }
    assert names(shapes) == [("features.0", None), ("features.2", "features.3")]


def test_modules_follow_the_order_of_the_file_unless_it_is_sorted():
    def shapes(*order):
        return {f"{name}.weight": (4, 4, 3, 3) for name in order}

    assert names(shapes("stem", "conv10", "conv9")) == [("stem", None), ("conv10", None), ("conv9", None)]
    assert names(shapes("conv10", "conv9")) == [("conv9", None), ("conv10", None)]


def test_the_layer_that_gives_the_logits_and_tables_are_left_out():
    shapes = {
        "embeddings.word_embeddings.weight": (3000, 16),
        "pos_embed": (1, 5, 16),
        "blocks.0.attn.qkv.weight": (48, 16),
        "blocks.0.mlp.fc1.weight": (64, 16),
        "blocks.0.mlp.fc2.weight": (16, 64),
        "head.weight": (10, 16),
    }
    assert [stem for stem, _ in names(shapes)] == ["blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"]


def test_a_bias_tells_which_axis_of_a_nameless_kernel_holds_the_channels():
    leaves = {
        "a/w": RNG.normal(size=(5, 7)).astype(np.float32),
        "a/b": np.zeros(7, np.float32),
        "b/w": RNG.normal(size=(7, 3)).astype(np.float32),
        "b/b": np.zeros(3, np.float32),
    }
    layers, (score,) = structural.channel_bounds(leaves)
    assert [layer.name for layer in layers] == ["a"]
    np.testing.assert_allclose(score, np.linalg.norm(leaves["a/w"], axis=0), rtol=1e-6)


def test_attention_kernels_of_flax_are_scored_by_head_and_dimension():
    query = RNG.normal(size=(6, 2, 4)).astype(np.float32)
    leaves = flatten(
        {"params": {"attn": {"query": {"kernel": query}}, "head": {"kernel": np.ones((6, 2), np.float32)}}}
    )
    _, (score,) = structural.channel_bounds(leaves)
    np.testing.assert_allclose(score, np.linalg.norm(query.reshape(6, 8), axis=0), rtol=1e-6)


def test_a_channel_without_variance_has_no_score():
    leaves = {
        "conv.weight": np.ones((3, 2, 3, 3), np.float32),
        "bn.weight": np.ones(3, np.float32),
        "bn.running_var": np.array([4.0, 0.0, 1e-42], np.float32),
    }
    _, (score,) = structural.channel_bounds(leaves)
    np.testing.assert_allclose(score, [np.sqrt(18) / 2, np.nan, np.nan], rtol=1e-6)


@pytest.mark.parametrize(
    "leaves",
    [
        {"weight": np.ones((2, 5), np.float32)},
        {"bias": np.ones(5, np.float32)},
        {"conv.weight": np.ones((4, 3, 3, 3), np.int8)},
        {"conv.weight": np.ones((0, 3, 3, 3), np.float32)},
    ],
    ids=["output alone", "no kernel", "quantised", "empty"],
)
def test_nothing_to_score_is_said(leaves):
    with pytest.raises(UnscorableError, match="expected hidden kernels"):
        structural.channel_bounds(leaves)
