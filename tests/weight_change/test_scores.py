import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxguard import weight_change
from jaxguard.errors import GraphError
from jaxguard.graph import channel_graph
from jaxguard.weight_change.reinitialization import reinitialize


@pytest.mark.parametrize("name", ["wideresnet", "vit", "densenet", "mobile", "unet", "nnx", "scanned_layers"])
def test_nwc_is_the_l1_distance_of_the_kernels_as_they_are_applied(name):
    (_, variables, _), graph = zoo.case(name), zoo.graph(name)
    after = zoo.randomise(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables), seed=1)
    scores = weight_change.neuron_weight_change(graph, variables, after)
    assert [len(score) for score in scores] == [producer.channels for producer in graph.producers]
    for score, old, new in zip(scores, graph.kernels(variables), graph.kernels(after), strict=True):
        np.testing.assert_allclose(score, np.abs(np.asarray(new) - np.asarray(old)).sum((1, 2)), rtol=1e-4)


def mlp(v, x):
    return jax.nn.relu(jax.nn.relu(x @ v["w1"] + v["b1"][None]) @ v["w2"]) @ v["w3"]


BEFORE = {"w1": jnp.ones((2, 3)), "b1": jnp.ones(3), "w2": jnp.ones((3, 2)), "w3": jnp.ones((2, 2))}
CHANGE = {
    "w1": np.array([[0.5, 0.1, 0.0], [-0.25, 0.1, 0.30006]], np.float32),
    "b1": np.full(3, 9.0, np.float32),
    "w2": np.array([[0.5, 0.0], [0.25, -0.02], [0.0, 0.01]], np.float32),
    "w3": np.full((2, 2), 9.0, np.float32),
}
AFTER = jax.tree.map(lambda a, b: a + b, BEFORE, CHANGE)
GRAPH = channel_graph(mlp, BEFORE, jnp.ones((1, 2)))


def test_nwc_by_hand_leaves_biases_out_and_rounds_on_request():
    exact = weight_change.neuron_weight_change(GRAPH, BEFORE, AFTER)
    np.testing.assert_allclose(exact[0], [0.75, 0.2, 0.30006], rtol=1e-5)
    np.testing.assert_allclose(exact[1], [0.75, 0.03], rtol=1e-5)
    rounded = weight_change.neuron_weight_change(GRAPH, BEFORE, AFTER, decimals=4)
    np.testing.assert_array_equal(rounded[0], np.float32([0.75, 0.2, 0.3001]))
    with pytest.raises(GraphError, match="the variables this graph was derived from"):
        weight_change.neuron_weight_change(GRAPH, BEFORE, {"w1": BEFORE["w1"]})


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, [[0, 0, 0], [0, 0]]),
        (0.19, [[0, 0, 0], [0, 0]]),
        (0.2, [[1, 0, 0], [0, 0]]),  # of the two at 0.75, the earlier layer's
        (0.4, [[1, 0, 0], [1, 0]]),
        (0.79, [[1, 0, 1], [1, 0]]),
        (1.0, [[1, 1, 1], [1, 1]]),
    ],
)
def test_the_highest_are_taken_over_all_layers_in_stable_order(share, expected):
    masks = weight_change.highest([np.array([0.75, 0.2, 0.3]), np.array([0.75, 0.03])], share)
    assert [mask.astype(int).tolist() for mask in masks] == expected
    assert weight_change.highest([], share) == ()


def zeros(variables):
    return {name: (np.asarray(leaf) == 0).astype(int).tolist() for name, leaf in variables.items()}


@pytest.mark.parametrize(
    ("m", "w1", "w2"),
    [
        (0.0, [[0, 0, 0], [0, 0, 0]], [[0, 0]] * 3),
        (0.3, [[1, 0, 0], [0, 0, 0]], [[1, 0], [0, 0], [0, 0]]),  # q = 2 of 7, both are 0.5
        (0.5, [[1, 0, 0], [0, 0, 1]], [[1, 0], [0, 0], [0, 0]]),  # q = 3
        (0.6, [[1, 0, 0], [1, 0, 1]], [[1, 0], [1, 0], [0, 0]]),  # q = 4 is 0.25, and so is the fifth: a tie
        (1.0, [[1, 0, 1], [1, 0, 1]], [[1, 0], [1, 0], [1, 0]]),
    ],
)
def test_reinitialised_weights_by_hand(m, w1, w2):
    changes = [np.asarray(change) for change in weight_change.weight_change(GRAPH, BEFORE, AFTER)]
    masks = {0: np.array([True, False, True]), 1: np.array([True, False])}
    edited = reinitialize(GRAPH, BEFORE, dict(enumerate(changes)), masks, m)
    assert zeros(edited) == {**zeros(BEFORE), "w1": w1, "w2": w2}
    assert (np.asarray(BEFORE["w1"]) == 1).all()


def test_without_a_channel_nothing_is_reinitialised():
    changes = dict(enumerate(np.asarray(c) for c in weight_change.weight_change(GRAPH, BEFORE, AFTER)))
    assert zeros(reinitialize(GRAPH, BEFORE, changes, {0: np.zeros(3, bool)}, 0.7)) == zeros(BEFORE)
    assert zeros(reinitialize(GRAPH, BEFORE, changes, {}, 0.7)) == zeros(BEFORE)


@pytest.mark.parametrize("name", ["wideresnet", "vit", "mobile", "per_example", "fused_attention", "scanned_layers"])
def test_reinitialising_a_whole_channel_silences_its_kernel_row_alone(name):
    (_, variables, _), graph = zoo.case(name), zoo.graph(name)
    changes = {
        k: np.ones_like(change) for k, change in enumerate(weight_change.weight_change(graph, variables, variables))
    }
    rng = np.random.default_rng(0)
    shared = {repr(producer.kernel): rng.random(producer.channels) < 0.3 for producer in graph.producers}
    masks = {k: shared[repr(producer.kernel)] for k, producer in enumerate(graph.producers)}
    edited = reinitialize(graph, variables, changes, masks, 1.0)
    for k, (old, new) in enumerate(zip(graph.kernels(variables), graph.kernels(edited), strict=True)):
        np.testing.assert_array_equal(np.asarray(new), np.where(masks[k][:, None, None], 0, np.asarray(old)))
