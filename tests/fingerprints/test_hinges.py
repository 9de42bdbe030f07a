"""Hinges against NumPy in double precision: on their hyperplanes, exactly bent, isolated as the closed form says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxguard.fingerprints import hinge_layers, hinges
from jaxguard.graph import channel_graph

KEY = jax.random.key(3)
SHAPE = (4, 4, 1)
EPSILON = 1e-5


@functools.cache
def mlp():
    """Graph and weights of two hidden layers with biases, and the weights in double precision."""

    def apply_fn(v, x):
        hidden = jax.nn.relu(x.reshape(len(x), -1) @ v["w1"] + v["b1"][None])
        return jax.nn.relu(hidden @ v["w2"] + v["b2"][None]) @ v["w3"] + v["b3"][None]

    rng = np.random.default_rng(0)
    shapes = {"w1": (16, 10), "b1": (10,), "w2": (10, 8), "b2": (8,), "w3": (8, 3), "b3": (3,)}
    drawn = {name: rng.normal(size=shape) / np.sqrt(shape[0]) for name, shape in shapes.items()}
    drawn["b1"] -= drawn["w1"].sum(0) / 2  # hyperplanes through the middle of the box
    variables = {name: jnp.asarray(array, jnp.float32) for name, array in drawn.items()}
    exact = {name: np.asarray(array, np.float64) for name, array in variables.items()}
    return channel_graph(apply_fn, variables, np.zeros((1, *SHAPE), np.float32)), variables, exact


@functools.cache
def searched(depth, scale=0.01, margin=0.0):
    graph, variables, _ = mlp()
    layers, _ = hinge_layers.hinge_layers(graph)
    return hinges.search(
        graph, variables, KEY, layers[depth - 1 : depth], 300, linear=layers[:1], scale=scale, margin=margin
    )


def forward(exact, x):
    """Pre-activations of both layers, and outputs."""
    first = x @ exact["w1"] + exact["b1"]
    second = np.maximum(first, 0) @ exact["w2"] + exact["b2"]
    return first, second, np.maximum(second, 0) @ exact["w3"] + exact["b3"]


def jacobian(exact, x, depth):
    """Of the outputs by the activations of a layer, `[units, outputs]`."""
    _, second, _ = forward(exact, x)
    behind = (second > 0)[:, None] * exact["w3"]
    return exact["w2"] @ behind if depth == 1 else exact["w3"]


def exactly(depth, **options):
    """Each usable hinge with x, u, delta and its unit in double precision."""
    found = searched(depth, **options)
    for k in np.flatnonzero(found.usable):
        x, u = (np.asarray(part[k], np.float64).ravel() for part in (found.points, found.directions))
        yield found.take(np.array([k])), x, u, float(found.deltas[k]), int(found.units[k, 1])


@pytest.mark.parametrize("depth", [1, 2])
def test_points_lie_on_the_hyperplane_of_their_unit_and_directions_are_normal_to_it(depth):
    _, _, exact = mlp()
    found = list(exactly(depth))
    assert len(found) > 150
    for hinge, x, u, delta, unit in found:
        first, second, _ = forward(exact, x)
        normal = exact["w1"][:, unit] if depth == 1 else exact["w1"] @ ((first > 0) * exact["w2"][:, unit])
        slope = np.linalg.norm(normal)
        assert abs((first, second)[depth - 1][unit]) / slope < (1e-5 if depth == 1 else 1e-3)
        assert hinge.slopes[0] == pytest.approx(slope, rel=1e-4)
        np.testing.assert_allclose(u, normal / slope, atol=1e-4)
        assert delta * np.abs(u).max() == pytest.approx(0.01, rel=1e-5)
        assert (hinge.depths[0], hinge.units[0, 0]) == (depth, 0)


@pytest.mark.parametrize("depth", [1, 2])
def test_where_one_unit_switches_the_second_difference_is_delta_times_slope_times_its_effect(depth):
    _, _, exact = mlp()
    checked = 0
    for hinge, x, u, delta, unit in exactly(depth):
        low, middle, high = (forward(exact, x + t * u) for t in (-delta, 0, delta))
        switches = [np.flatnonzero((low[k] > 0) != (high[k] > 0)).tolist() for k in (0, 1)]
        if switches == ([[unit], []] if depth == 1 else [[], [unit]]) and hinge.distances[0] < 1e-6:
            bend = high[2] - 2 * middle[2] + low[2]
            formula = delta * hinge.slopes[0] * jacobian(exact, x, depth)[unit]
            np.testing.assert_allclose(bend, formula, rtol=1e-4, atol=1e-4 * np.linalg.norm(formula))
            assert hinge.bends[0] == pytest.approx(np.linalg.norm(formula), rel=1e-3)
            checked += 1
    assert checked > 30


def test_within_one_region_there_is_no_second_difference():
    graph, variables, exact = mlp()
    rng = np.random.default_rng(1)
    checked = 0
    for _ in range(200):
        x, u = rng.uniform(size=16), rng.normal(size=16) / 400
        ends = [forward(exact, x + t * u) for t in (-1, 1)]
        if all(((ends[0][k] > 0) == (ends[1][k] > 0)).all() for k in (0, 1)):
            line = np.stack([x - u, x, x + u]).reshape(3, *SHAPE).astype(np.float32)
            low, middle, high = np.asarray(graph.apply_fn(variables, line))
            assert np.abs(high - 2 * middle + low).max() < 1e-6
            checked += 1
    assert checked > 100


def test_isolation_is_the_closed_form_over_the_first_layer():
    _, _, exact = mlp()
    for depth in (1, 2):
        for hinge, x, u, _, unit in exactly(depth):
            distances = np.abs((x @ exact["w1"] + exact["b1"]) / (u @ exact["w1"]))
            others = np.delete(distances, unit) if depth == 1 else distances
            assert hinge.isolation[0] == pytest.approx(others.min(), rel=1e-3, abs=1e-6)


def test_lines_stay_in_the_box():
    scale, reach = 0.04, 4
    found = searched(2, scale=scale, margin=scale * reach + 1e-6)
    steps = reach * found.deltas[:, None, None, None] * found.directions
    for ends in (found.points - steps, found.points + steps):
        assert ends.min() >= 0 and ends.max() <= 1
    assert found.points.max() - found.points.min() > 0.5


def test_ranks_prefer_strong_bends_far_from_other_hyperplanes():
    found = searched(1)
    expected = found.bends * np.minimum(1, found.isolation / found.deltas)
    np.testing.assert_allclose(found.ranks, expected, rtol=1e-6)
    assert (found.ranks <= found.bends).all() and (found.ranks < 0.5 * found.bends).any()


def test_what_does_not_bend_or_lies_beside_is_not_usable():
    some = searched(1).take(np.flatnonzero(searched(1).usable)[:4])
    spoilt = some._replace(
        bends=some.bends * np.array([1, 0, 1, 1], np.float32),
        distances=some.distances + np.array([0, 0, 0.01, 0], np.float32),
        slopes=some.slopes * np.array([1, 1, 1, 0], np.float32),
    )
    assert some.usable.all()
    assert spoilt.usable.tolist() == [True, False, False, False]


def test_batches_make_no_difference_to_what_belongs_together(monkeypatch):
    monkeypatch.setattr(hinges, "LARGEST_BATCH", 4)
    graph, variables, exact = mlp()
    layers, _ = hinge_layers.hinge_layers(graph)
    found = hinges.search(graph, variables, KEY, layers[:1], 10, linear=layers[:1])
    assert len(found.points) == len(found.units) == 10
    for x, (_, unit), distance, slope in zip(found.points, found.units, found.distances, found.slopes, strict=True):
        z = x.ravel().astype(np.float64) @ exact["w1"][:, unit] + exact["b1"][unit]
        assert abs(z) / np.linalg.norm(exact["w1"][:, unit]) == pytest.approx(distance, abs=1e-6)
        assert slope == pytest.approx(np.linalg.norm(exact["w1"][:, unit]), rel=1e-5)


def test_a_convolution_with_its_norm_equals_its_explicit_matrix():
    rng = np.random.default_rng(2)
    side, channels, filters = 5, 2, 3
    per_filter = ("mean", "var", "scale", "bias")
    shapes = {
        "kernel": (3, 3, channels, filters),
        "head": (side * side * filters, 4),
        **dict.fromkeys(per_filter, (filters,)),
    }
    drawn = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    variables = {name: jnp.asarray(array**2 if name == "var" else array, jnp.float32) for name, array in drawn.items()}

    def apply_fn(v, x):
        x = jax.lax.conv_general_dilated(x, v["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        mean, var, scale, bias = (v[name][None, None, None] for name in ("mean", "var", "scale", "bias"))
        x = (x - mean) * jax.lax.rsqrt(var + EPSILON) * scale + bias
        return jax.nn.relu(x).reshape(len(x), -1) @ v["head"]

    exact = {name: np.asarray(array, np.float64) for name, array in variables.items()}
    gain = exact["scale"] / np.sqrt(exact["var"] + EPSILON)
    matrix = np.zeros((side, side, channels, side, side, filters))
    for row in range(side):
        for column in range(side):
            for i in range(3):
                for j in range(3):
                    r, c = row + i - 1, column + j - 1
                    if 0 <= r < side and 0 <= c < side:
                        matrix[r, c, :, row, column, :] += exact["kernel"][i, j] * gain
    matrix = matrix.reshape(side * side * channels, -1)
    offset = np.tile(exact["bias"] - exact["mean"] * gain, side * side)

    graph = channel_graph(apply_fn, variables, np.zeros((1, side, side, channels), np.float32))
    layers, _ = hinge_layers.hinge_layers(graph)
    images = rng.uniform(size=(8, side, side, channels)).astype(np.float32)
    units = np.stack([np.zeros(8, int), rng.integers(0, 75, 8)], axis=1).astype(np.int32)
    z, gradient = hinges.preactivation(graph, [layers[0].value], variables, jnp.asarray(units), jnp.asarray(images))
    flat = images.reshape(8, -1).astype(np.float64)
    np.testing.assert_allclose(z, [flat[k] @ matrix[:, u] + offset[u] for k, (_, u) in enumerate(units)], atol=1e-5)
    np.testing.assert_allclose(gradient.reshape(8, -1), matrix[:, units[:, 1]].T, atol=1e-5)

    found = hinges.search(graph, variables, KEY, layers, 40, linear=layers)
    assert found.usable.sum() > 10
    for k in np.flatnonzero(found.usable):
        x, u = (part[k].ravel().astype(np.float64) for part in (found.points, found.directions))
        z, rate = x @ matrix + offset, u @ matrix
        crossings = [abs(z[j] / rate[j]) for j in range(75) if j != found.units[k, 1] and abs(rate[j]) > 1e-6]
        assert found.isolation[k] == pytest.approx(min(crossings), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", ["per_example", "resnet8"])
def test_gradients_are_every_images_own(name):
    (_, variables, images), graph = zoo.case(name), zoo.graph(name)
    values = tuple(layer.value for layer in hinge_layers.hinge_layers(graph)[0][:2])
    units = jnp.array([[0, 5], [1, 7], [0, 3]])
    z_and_gradient = jax.jit(functools.partial(hinges.preactivation, graph, values, variables))
    z, gradient = z_and_gradient(units, images)
    for k in range(3):
        slope = float(jnp.linalg.norm(gradient[k]))
        step = 1e-3 * np.eye(3, dtype=np.float32)[k].reshape(3, 1, 1, 1) * gradient[k][None] / slope
        moved, _ = z_and_gradient(units, images.copy() + step)
        assert (moved[k] - z[k]) / 1e-3 == pytest.approx(slope, rel=0.05)
        np.testing.assert_allclose(np.delete(moved, k), np.delete(z, k), rtol=1e-4, atol=1e-5)
