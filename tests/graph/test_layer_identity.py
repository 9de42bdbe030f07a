"""Every layer is scored once, however the loop over layers is written."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard.graph import channel_graph, cuts, pairing
from jaxguard.scores.channel_bounds import channel_bounds

pytestmark = pytest.mark.usefixtures("usual_promotion")

N, D = 4, 6
X = jnp.ones((2, 5, D))


def stack(planted=None, channel=3):
    """`N` kernels, of which one may have a channel thirty times as large."""
    w = np.random.default_rng(0).normal(size=(N, D, D)).astype(np.float32)
    if planted is not None:
        w[planted, :, channel] *= 30
    return jnp.asarray(w)


def step(c, kernel):
    return jax.nn.relu(c @ kernel)


def fori(kernel_of):
    return lambda w, x: jax.lax.fori_loop(0, N, lambda i, c: step(c, kernel_of(w, i)), x)


def by_index(kernel_of, reverse=False):
    return lambda w, x: jax.lax.scan(lambda c, i: (step(c, kernel_of(w, i)), None), x, jnp.arange(N), reverse=reverse)[
        0
    ]


def two_levels(w, x):
    def inner(c, pair):
        return jax.lax.scan(lambda c, k: (step(c, k), None), c, pair)

    return jax.lax.scan(lambda c, pair: (inner(c, pair)[0], None), x, w.reshape(2, 2, D, D))[0]


LOOPS = {
    "python": lambda w, x: functools.reduce(step, [w[i] for i in range(N)], x),
    "unstacked": lambda w, x: functools.reduce(step, jnp.unstack(w), x),
    "scan": lambda w, x: jax.lax.scan(lambda c, k: (step(c, k), None), x, w)[0],
    "scan over indices": by_index(lambda w, i: w[i]),
    "scan, dynamic index": by_index(lambda w, i: jax.lax.dynamic_index_in_dim(w, i, keepdims=False)),
    "scan, take": by_index(lambda w, i: jnp.take(w, i, axis=0)),
    "scan, backwards": by_index(lambda w, i: w[N - 1 - i], reverse=True),
    "scan, by a table": by_index(lambda w, i: w[jnp.array([3, 1, 0, 2])[jnp.array([2, 1, 3, 0])[i]]]),
    "scan, two levels": two_levels,
    "fori": fori(lambda w, i: w[i]),
    "fori, reshaped": fori(lambda w, i: w.reshape(2, 2, D, D)[i // 2, i % 2]),
    "fori, transposed": fori(lambda w, i: w.transpose(1, 0, 2)[:, i]),
    "fori, one-hot": fori(lambda w, i: jnp.einsum("n,nde->de", jax.nn.one_hot(i, N), w)),
    "fori, remat": lambda w, x: jax.lax.fori_loop(0, N, jax.checkpoint(lambda i, c: step(c, w[i])), x),
}


def model(loop):
    return lambda v, x: loop(v["w"], x).mean(1) @ v["h"]


def scores(loop, w):
    v = {"w": w, "h": jnp.ones((D, 3))}
    return channel_bounds(channel_graph(model(loop), v, X), v)


@pytest.mark.parametrize("name", LOOPS)
def test_the_same_network_has_the_same_scores_however_its_loop_is_written(name):
    w = stack(planted=2)
    found = scores(LOOPS[name], w)
    expected = [np.linalg.norm(np.asarray(kernel), axis=0) for kernel in w]
    assert [layer.name for layer in found.layers] == ["w", "w#2", "w#3", "w#4"]
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5)  # one tap: the norm of the channel's weights


@pytest.mark.parametrize("planted", range(N))
def test_a_planted_channel_is_found_in_each_layer(planted):
    for name in ("python", "scan", "fori", "fori, one-hot"):
        found = scores(LOOPS[name], stack(planted))
        assert np.argmax([score.max() for score in found.scores]) == planted
        assert found.scores[planted].argmax() == 3


def test_mixtures_of_one_bank_are_layers_of_their_own_and_equal_ones_are_one():
    rng = np.random.default_rng(1)
    v = {
        "bank": stack(),
        "mix": [jnp.asarray(rng.normal(size=N), jnp.float32) for _ in range(3)],
        "h": jnp.ones((D, 3)),
    }
    order = (0, 1, 2, 1)

    def banked(v, x):
        for k in order:
            x = step(x, jnp.einsum("n,nde->de", jax.nn.softmax(v["mix"][k]), v["bank"]))
        return x.mean(1) @ v["h"]

    found = channel_bounds(channel_graph(banked, v, X), v)
    kernels = [np.einsum("n,nde->de", np.asarray(jax.nn.softmax(mix)), v["bank"]) for mix in v["mix"]]
    np.testing.assert_allclose(found.scores, [np.linalg.norm(kernel, axis=0) for kernel in kernels], rtol=1e-5)


@pytest.mark.parametrize("kernel", [lambda q, s: q, lambda q, s: q * s, lambda q, s: jax.nn.softplus(q) * s])
def test_a_layer_that_is_applied_in_every_step_is_one_layer(kernel):
    v = {"q": stack()[0], "s": jnp.linspace(1, 2, D), "h": jnp.ones((D, 3))}

    def recurrent(v, x):
        return jax.lax.fori_loop(0, 3, lambda _, c: step(c, kernel(v["q"], v["s"])), x).mean(1) @ v["h"]

    (layer,) = pairing.layers(channel_graph(recurrent, v, X))
    assert (layer.name, layer.uses) == ("q", (0, 1, 2))


def test_a_norm_that_is_applied_in_every_step_is_one_layer_and_norms_of_their_own_are_several():
    v = {"w": stack()[0], "scale": jnp.ones((2, D)), "mean": jnp.zeros((2, D)), "h": jnp.ones((D, 3))}

    def norms(which):
        def apply(v, x):
            for k in which:
                x = jax.nn.relu((x @ v["w"] - v["mean"][k]) * v["scale"][k])
            return x.mean(1) @ v["h"]

        return [layer.uses for layer in pairing.layers(channel_graph(apply, v, X))]

    assert norms((0, 0, 0)) == [(0, 1, 2)]
    assert norms((0, 1, 0)) == [(0, 2), (1,)]


def test_a_kernel_and_its_transpose_are_two_layers():
    v = {"w": stack()[0], "h": jnp.ones((D, 3))}

    def tied(v, x):
        return step(step(x, v["w"]), v["w"].T).mean(1) @ v["h"]

    assert [layer.uses for layer in pairing.layers(channel_graph(tied, v, X))] == [(0,), (1,)]


def test_a_position_beyond_the_end_reads_what_jax_reads():
    for mode in ("clip", "fill"):

        def reads(v, x, mode=mode):
            return step(x, jnp.take(v["w"], jnp.array(9), axis=0, mode=mode)).mean(1) @ v["h"]

        v = {"w": stack(), "h": jnp.ones((D, 3))}
        np.testing.assert_array_equal(channel_graph(reads, v, X).run(v, X), reads(v, X))


def draw(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=(N, *shape)), jnp.float32)


def hidden(kernel):
    return lambda c, leaf: step(c, kernel(leaf))


def normed(c, leaf):
    """A norm behind the sum of two layers, the second a residual branch."""
    y = c @ leaf["w"] + jax.nn.relu(c @ leaf["w"]) @ leaf["side"]
    return jax.nn.relu((y - leaf["mean"]) * jax.lax.rsqrt(leaf["var"] + 1e-5) * leaf["g"] + leaf["b"])


NORM = {"side": draw(D, D), "mean": draw(D), "var": jnp.exp(draw(D)), "g": draw(D), "b": draw(D)}
MIXED = {
    "LoRA": (hidden(lambda p: p["w"] + p["A"] @ p["B"]), {"A": draw(D, 2), "B": draw(2, D)}),
    "base and delta": (hidden(lambda p: p["w"] + p["d"]), {"d": draw(D, D)}),
    "weight norm": (hidden(lambda p: p["w"] / jnp.linalg.norm(p["w"], axis=0) * p["g"]), {"g": jnp.exp(draw(D))}),
    "quantised": (hidden(lambda p: (p["w"] - 2) * p["s"]), {"s": draw(D)}),
    "mask": (hidden(lambda p: jnp.where(p["m"], p["w"], 0)), {"m": draw(D, D) > 0}),
    "mixture": (
        hidden(lambda p: jnp.einsum("k,kde->de", p["mix"], p["w"] * p["bank"])),
        {"mix": draw(3), "bank": draw(3, D, D)},
    ),
    "norm behind two": (normed, NORM),
}
"""Layers computed from several leaves: `(step of the loop, leaves beside the kernel)`."""


def in_styles(one):
    """The same layers in four styles of loop over stacked leaves."""

    def at(v, i):
        return {name: leaf[i] for name, leaf in v.items()}

    return {
        "python": lambda v, x: functools.reduce(one, [at(v, i) for i in range(N)], x),
        "scan": lambda v, x: jax.lax.scan(lambda c, leaf: (one(c, leaf), None), x, v)[0],
        "scan over indices": lambda v, x: jax.lax.scan(lambda c, i: (one(c, at(v, i)), None), x, jnp.arange(N))[0],
        "fori": lambda v, x: jax.lax.fori_loop(0, N, lambda i, c: one(c, at(v, i)), x),
    }


@pytest.mark.parametrize("name", MIXED)
def test_layers_of_several_leaves_have_the_same_scores_and_cuts_in_every_loop(name):
    one, leaves = MIXED[name]
    v = {"l": {"w": stack(planted=2), **leaves}, "h": jnp.ones((D, 3))}
    if name == "weight norm":  # where a large weight is no large channel
        v["l"]["g"] = v["l"]["g"].at[2, 3].multiply(100)
    found = {}
    with jax.numpy_rank_promotion("allow"):
        for style, loop in in_styles(one).items():
            graph = channel_graph(lambda v, x, loop=loop: loop(v["l"], x).mean(1) @ v["h"], v, X)
            bounds = channel_bounds(graph, v)
            names = [layer.name for layer in bounds.layers]
            is_cut = [cuts.why_uncuttable(graph, layer) is None for layer in bounds.layers]
            found[style] = names, is_cut, np.stack(bounds.scores)
    names, is_cut, scores = found["python"]
    assert len(set(names)) == len(names) and all(is_cut)
    assert np.argmax(scores.max(1)) // (len(names) // N) == 2
    for style in found.values():
        assert style[:2] == (names, is_cut)
        np.testing.assert_allclose(style[2], scores, rtol=1e-4)
