import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxguard import models
from jaxguard.errors import GraphError
from jaxguard.graph import channel_graph, pairing


def graph_of(name):
    return zoo.graph(name), *zoo.case(name)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_run_is_the_model_and_a_suffix_of_its_prefix_the_gated_run(name):
    graph, apply_fn, variables, images = graph_of(name)
    rng = np.random.default_rng(0)
    plain = graph.run(variables, images)
    np.testing.assert_allclose(plain, jax.jit(apply_fn)(variables, images), rtol=1e-5, atol=1e-5)
    for producer in graph.producers[:: max(1, len(graph.producers) // 4)]:
        prefix, suffix = graph.split(producer.name)
        gates = {producer.name: jnp.asarray(rng.uniform(size=producer.channels), jnp.float32)}
        expected = graph.run(variables, images, gates)
        np.testing.assert_allclose(suffix(variables, prefix(variables, images), gates), expected, atol=1e-5)
        assert np.abs(plain - expected).max() > 0


@pytest.mark.parametrize("name", ["cnn", "vit", "per_example"])
def test_gates_per_image_act_on_their_image_alone(name):
    graph, _, variables, images = graph_of(name)
    producer = graph.producers[1]
    gate = np.random.default_rng(0).uniform(size=(len(images), producer.channels)).astype(np.float32)
    got = graph.run(variables, images, {producer.name: gate})
    for k in range(len(images)):
        alone = graph.run(variables, images, {producer.name: gate[k]})[k]
        np.testing.assert_allclose(got[k], alone, atol=1e-5)


def test_a_gate_behind_batch_norm_is_a_zeroed_scale_and_bias():
    graph, apply_fn, variables, images = graph_of("cnn")
    producer = graph.producer("conv3")
    assert graph.affines[producer.affine].name == "bn3"
    gate = jnp.ones(producer.channels).at[2].set(0)
    zeroed = jax.tree.map(lambda x: x, variables)
    for leaf in ("scale", "bias"):
        zeroed["params"]["bn3"][leaf] = zeroed["params"]["bn3"][leaf].at[2].set(0)
    np.testing.assert_allclose(graph.run(variables, images, {"conv3": gate}), apply_fn(zeroed, images), atol=1e-6)


def test_gates_are_differentiable_and_run_keeps_custom_gradients():
    graph, apply_fn, variables, images = graph_of("vit")

    def loss(run):
        return lambda v: jnp.sum(run(v, images) ** 2)

    expected = jax.jit(jax.grad(loss(apply_fn)))(variables)
    got = jax.jit(jax.grad(loss(graph.run)))(variables)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_other_batch_sizes_run():
    graph, apply_fn, variables, images = graph_of("resnet8")
    run, apply_fn = jax.jit(graph.run), jax.jit(apply_fn)
    for batch in (1, 5):
        x = np.resize(images, (batch, *images.shape[1:]))
        np.testing.assert_allclose(run(variables, x), apply_fn(variables, x), atol=1e-5)


def test_kernels_are_output_channel_tap_fan_in():
    graph, _, variables, _ = graph_of("mobile")
    shapes = {p.name: kernel.shape for p, kernel in zip(graph.producers, graph.kernels(variables), strict=True)}
    assert shapes["Conv_0"] == (8, 9, 3)
    assert shapes["Conv_2"] == (24, 9, 1)
    assert shapes["Conv_4"] == (8, 9, 4)
    assert shapes["Dense_0"] == (6, 1, 24) or shapes["Dense_1"] == (6, 1, 24)


def test_a_kernel_that_is_computed_or_lies_otherwise_is_not_a_leaf_as_it_is():
    def model(v, x):
        for kernel in (v["plain"], v["plain"] / 2, v["turned"].T):
            x = jax.nn.relu(x @ kernel)
        return x @ v["head"]

    v = {"plain": jnp.ones((3, 3)), "turned": jnp.ones((3, 3)), "head": jnp.ones((3, 2))}
    graph = channel_graph(model, v, jnp.ones((2, 3)))
    assert [graph.reads_leaf(k) for k in range(4)] == [True, False, False, True]


def test_the_reference_numbers_of_preactresnet18():
    model = models.build("preactresnet18", num_classes=10, input_shape=(32, 32, 3))
    graph = channel_graph(model.apply_fn, model.shapes(), jax.ShapeDtypeStruct((1, 32, 32, 3), "float32"))
    assert sum(affine.channels for affine in graph.affines) == 3392
    convolutions = [p for p in graph.producers if p.is_convolution and "shortcut" not in p.name]
    assert len(convolutions) == 17
    assert sum(p.channels for p in convolutions) == 3904


def test_preactresnet18_is_traced_in_under_a_third_of_a_second():
    model = models.build("preactresnet18", num_classes=10, input_shape=(32, 32, 3))
    shapes, images = model.shapes(), jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    seconds = []
    for _ in range(10):
        start = time.thread_time()  # not the wall's, in which other processes and threads take turns
        channel_graph(model.apply_fn, shapes, images)
        seconds.append(time.thread_time() - start)
    assert min(seconds) < 0.3


def test_dataflow_pairs_a_norm_with_everything_that_is_summed_into_it():
    graph, *_ = graph_of("preactresnet18:width=0.125")
    names = [layer.name for layer in pairing.layers(graph)]
    assert names[2] == "layer1_0/conv2 + conv1 -> layer1_1/bn1"
    assert "layer2_0/conv2 + layer2_0/shortcut_0 -> layer2_1/bn1" in names
    assert names[-1] == "layer4_1/conv2"


def test_module_order_pairs_a_norm_with_the_last_convolution_before_it():
    graph, *_ = graph_of("preactresnet18:width=0.125")
    pairs = [layer.name for layer in pairing.layers(graph, "module_order")]
    assert len(pairs) == 16
    assert "layer1_0/conv2 -> layer1_1/bn1" in pairs
    assert [pair for pair in pairs if "shortcut" in pair] == [
        f"layer{stage}_0/shortcut_0 -> layer{stage}_1/bn1" for stage in (2, 3, 4)
    ]
    assert not any(pair.startswith("layer4_1/conv2") for pair in pairs)


def test_concatenated_channels_arrive_with_their_offsets():
    graph, *_ = graph_of("densenet")
    assert [affine.sources for affine in graph.affines][-1] == ((0, 0), (1, 6), (2, 10), (3, 14))


def test_module_order_refuses_a_concatenation_and_says_what_to_take():
    graph, *_ = graph_of("densenet")
    with pytest.raises(GraphError, match="take pairing='dataflow'"):
        pairing.layers(graph, "module_order")


def test_nothing_scorable_is_an_error_and_not_an_empty_report():
    graph, *_ = graph_of("vit")
    with pytest.raises(GraphError, match="expected a BatchNorm"):
        pairing.layers(graph, "module_order")
    linear = channel_graph(lambda v, x: x @ v, jnp.ones((3, 2)), jnp.ones((1, 3)))
    with pytest.raises(GraphError, match="expected a hidden convolution or dense layer"):
        pairing.layers(linear)
    with pytest.raises(GraphError, match="is apply_fn using the variables"):
        channel_graph(lambda v, x: x * 2, jnp.ones((3, 2)), jnp.ones((1, 3)))


def test_a_model_with_several_results_is_refused():
    with pytest.raises(GraphError, match="one array of logits"):
        channel_graph(lambda v, x: (x @ v, x), jnp.ones((3, 2)), jnp.ones((2, 3)))


def test_a_scan_too_long_to_unroll_is_named():
    def model(v, x):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ v), None), x, None, length=1000)[0]

    with pytest.raises(
        GraphError, match=r"`scan` at .* has 1000 steps, more than 256; not scored, since it reads them: the variables"
    ):
        channel_graph(model, jnp.ones((3, 3)), jnp.ones((2, 3)))


def test_unknown_producers_and_wrong_gates_and_other_variables_are_refused():
    graph, _, variables, images = graph_of("mlp")
    with pytest.raises(GraphError, match="this model has fc1, fc2"):
        graph.run(variables, images, {"fc9": jnp.ones(3)})
    with pytest.raises(GraphError, match=r"shape \(24,\)"):
        graph.run(variables, images, {"fc1": jnp.ones(3)})
    with pytest.raises(GraphError, match="expected the variables this graph was derived from"):
        graph.run({"params": {}}, images)
