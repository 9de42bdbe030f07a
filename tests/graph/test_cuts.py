"""A cut in the leaves is a gate of 0 in the traced program, or it is refused by name."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxguard import surgery
from jaxguard.defenses.clp import clp
from jaxguard.errors import GraphError
from jaxguard.graph import channel_graph, cuts, pairing

pytestmark = pytest.mark.usefixtures("usual_promotion")

D = 6
X = np.random.default_rng(0).normal(size=(3, 4, D)).astype(np.float32)
RNG = np.random.default_rng(1)


def p(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def integers(dtype, *shape):
    return jnp.asarray(RNG.integers(0, 15, shape), dtype)


W = {"w": p(D, D)}
Q = {"q": integers(jnp.uint8, D, D), "s": p(D)}
LORA = {**W, "A": p(D, 2), "B": p(2, D)}
CUTTABLE = {
    "plain": (W, lambda v: v["w"]),
    "LoRA": (LORA, lambda v: v["w"] + v["A"] @ v["B"]),
    "base and delta": ({**W, "d": p(D, D)}, lambda v: v["w"] + v["d"]),
    "weight norm": ({**W, "g": p(D)}, lambda v: v["w"] / jnp.linalg.norm(v["w"], axis=0, keepdims=True) * v["g"][None]),
    "mask": ({**W, "m": integers(jnp.bool_, D, D)}, lambda v: jnp.where(v["m"], v["w"], 0.0)),
    "softplus with a gate": ({**W, "g": p(D)}, lambda v: jax.nn.softplus(v["w"]) * v["g"][None]),
    "zero point": (Q, lambda v: (v["q"].astype(jnp.float32) - 8.0) * v["s"][None]),
    "zero point, one scale": (Q, lambda v: (v["q"].astype(jnp.float32) - 8.0) * 0.1),
    "int4, packed": (
        {"q": integers(jnp.uint8, D // 2, D), "s": p(D)},
        lambda v: (jnp.stack([v["q"] & 15, v["q"] >> 4], 1).reshape(D, D).astype(jnp.float32) - 8.0) * v["s"][None],
    ),
}
UNCUTTABLE = {
    "exp": jnp.exp,
    "max": lambda w: w / jnp.abs(w).max(),
    "mean over outputs": lambda w: w - w.mean(1, keepdims=True),
}


def model(kernel):
    return lambda v, x: jax.nn.relu(x @ kernel(v)).mean(1) @ v["h"]


@pytest.mark.parametrize("name", CUTTABLE)
def test_a_cut_is_a_gate_of_zero_whatever_the_kernel_is_computed_from(name):
    leaves, kernel = CUTTABLE[name]
    v, apply_fn = {**leaves, "h": p(D, 3)}, model(kernel)
    graph = channel_graph(apply_fn, v, X)
    (layer,) = pairing.layers(graph)
    mask = np.arange(D) % 3 == 1
    got = apply_fn(surgery.cut(graph, v, layer, mask), X)
    want = graph.run(v, X, {graph.producers[0].name: jnp.asarray(~mask)})
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert not np.allclose(want, apply_fn(v, X), rtol=1e-3)


BY_WEIGHT = ("plain", "base and delta", "mask", "zero point", "zero point, one scale")
"""Kernels whose weights can be zeroed one by one; elsewhere a number is in several of them."""


@pytest.mark.parametrize("name", CUTTABLE)
def test_zeros_in_a_kernel_are_zeros_as_it_is_applied_and_nothing_else_changes(name):
    leaves, kernel = CUTTABLE[name]
    v = {**leaves, "b": p(D), "h": p(D, 3)}
    graph = channel_graph(lambda v, x: jax.nn.relu(x @ kernel(v) + v["b"][None]).mean(1) @ v["h"], v, X)
    rng = np.random.default_rng(3)
    (old, head), row, weights = graph.kernels(v), np.arange(D) % 3 == 1, rng.uniform(size=(D, D)) < 0.3
    edited = surgery.cut_kernel(graph, v, 0, row)
    np.testing.assert_allclose(graph.kernels(edited)[0], np.where(row[:, None, None], 0, old), rtol=1e-5)
    assert not np.asarray(graph.kernels(edited)[0])[row].any()
    np.testing.assert_array_equal(edited["b"], v["b"])
    if name in BY_WEIGHT:
        zeroed = graph.kernels(surgery.zero_weights(graph, v, 0, weights))
        np.testing.assert_array_equal(zeroed[0], np.where(weights[:, None], 0, old))
        np.testing.assert_array_equal(zeroed[1], head)
    else:
        with pytest.raises(GraphError, match=r"kernel whose weights can be set to zero in its leaves, got [wq] "):
            surgery.zero_weights(graph, v, 0, weights)


@pytest.mark.parametrize("name", UNCUTTABLE)
def test_a_layer_that_cannot_be_cut_is_named_and_clp_leaves_it_alone(name):
    v, apply_fn = {**W, "h": p(D, 3)}, model(lambda v: UNCUTTABLE[name](v["w"]))
    graph = channel_graph(apply_fn, v, X)
    (layer,) = pairing.layers(graph)
    with pytest.raises(GraphError, match=r"got w at .*, where .* stands between the leaves and the channels"):
        surgery.cut(graph, v, layer, np.ones(D, bool))
    repaired, report = clp(zoo.network(apply_fn, v, X), u=0.5)
    jax.tree.map(np.testing.assert_array_equal, repaired.variables, v)
    assert not report.layers[0].mask.any()
    assert "w stand out and were not cut" in report.notes[-1]


def test_who_else_reads_the_leaves_is_the_reason_where_nothing_stands_between():
    v = {**W, "u": p(D, D), "b": p(D), "h": p(D, 3)}

    def recurrent(v, x):  # the first state is a constant: its step has the bias and no product with images
        def one(h, xt):
            return jnp.tanh(xt @ v["w"] + (h @ v["u"] + v["b"][None])), None

        return jax.lax.scan(one, jnp.zeros((x.shape[0], D)), x.swapaxes(0, 1))[0] @ v["h"]

    graph = channel_graph(recurrent, v, X)
    why = {layer.name: cuts.why_uncuttable(graph, layer) for layer in pairing.layers(graph)}
    assert why["w"] is None
    assert re.search(r"got u at .*, whose leaves are read elsewhere too: b by `add` at .*test_cuts\.py", why["u"])
    graph = channel_graph(lambda v, x: (jnp.tanh(x @ v["w"]) + x @ v["w"].T).mean(1) @ v["h"], v, X)
    (why, _) = [cuts.why_uncuttable(graph, layer) for layer in pairing.layers(graph)]
    assert re.search(r"read elsewhere too: w by `dot_general` at .*test_cuts\.py", why)
