"""Equinox to a Network and back."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain import IMAGES, check, check_training, draw, identical, repaired

from jaxguard.adapters.equinox import from_equinox, to_equinox
from jaxguard.errors import ArchitectureError

pytestmark = pytest.mark.usefixtures("usual_promotion")


class Net(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    dense: eqx.nn.Linear
    head: eqx.nn.Linear
    rng: jax.Array

    def __init__(self, key, mode="ema", width=8):
        keys = jax.random.split(key, 4)
        self.conv = eqx.nn.Conv2d(3, width, 3, padding=1, key=keys[0])
        self.norm = eqx.nn.BatchNorm(width, "batch", mode=mode)
        self.drop = eqx.nn.Dropout(0.5)
        self.dense = eqx.nn.Linear(width, 6, key=keys[1])
        self.head = eqx.nn.Linear(6, 4, key=keys[2])
        self.rng = keys[3]

    def __call__(self, x, state, key):
        x, state = self.norm(self.conv(x), state)
        x = self.drop(jax.nn.relu(x).mean((1, 2)), key=key)
        return self.head(jax.nn.relu(self.dense(x))), state


def filled(values, mode="ema", seed=0):
    model, state = eqx.nn.make_with_state(Net)(jax.random.key(seed), mode)
    v = {name: jnp.asarray(leaf) for name, leaf in values.items()}

    def arrays(m):
        layers = (m.conv, m.norm, m.dense, m.head)
        return [array for layer in layers for array in (layer.weight, layer.bias)]

    new = [
        v["conv"].transpose(3, 2, 0, 1), v["conv_bias"][:, None, None], v["scale"], v["bias"],
        v["dense"].T, v["dense_bias"], v["head"].T, v["head_bias"],
    ]  # fmt: skip
    model = eqx.tree_at(arrays, model, new)
    if mode == "batch":
        state = state.set(model.norm.batch_counter, jnp.array(5000))
    index = model.norm.ema_state_index if mode == "ema" else model.norm.batch_state_index
    return model, state.set(index, (v["mean"], v["var"]))


@pytest.mark.parametrize("mode", ["ema", "batch"])
def test_it_is_the_plain_network(mode):
    values = draw()
    model, state = filled(values, mode)
    network = from_equinox(model, IMAGES, state, channels_last=True)
    check(network, values)
    check_training(network)


def test_images_with_channels_first_are_the_default():
    model, state = filled(draw())
    last, first = from_equinox(model, IMAGES, state, channels_last=True), from_equinox(model, (3, 8, 8), state)
    np.testing.assert_array_equal(last(IMAGES), first(jnp.moveaxis(IMAGES, -1, 1)))


def test_a_repair_goes_back_into_a_model():
    model, state = filled(draw())
    network = from_equinox(model, IMAGES, state, channels_last=True)
    edited = repaired(network)
    new, new_state = to_equinox(edited, model, state)
    assert jax.tree.structure(new) == jax.tree.structure(model)
    assert identical(from_equinox(new, IMAGES, new_state, channels_last=True), edited)
    same, same_state = to_equinox(network, model, state)
    assert identical(jax.tree.leaves(eqx.filter((same, same_state), eqx.is_inexact_array)),
                     jax.tree.leaves(eqx.filter((model, state), eqx.is_inexact_array)))  # fmt: skip
    assert not new.drop.inference
    with pytest.raises(ArchitectureError, match=r"expected shape \(16, 3, 3, 3\), got \(8, 3, 3, 3\)"):
        to_equinox(network, *eqx.nn.make_with_state(Net)(jax.random.key(0), width=16))


def test_models_without_a_state_and_of_equal_structure_share_graph_and_functions():
    def mlp(seed):
        return eqx.nn.Sequential([
            eqx.nn.Linear(5, 8, key=jax.random.key(seed)), eqx.nn.Lambda(jax.nn.relu), eqx.nn.Dropout(0.5),
            eqx.nn.Linear(8, 3, key=jax.random.key(seed + 9)),
        ])  # fmt: skip

    x = np.ones((4, 5), np.float32)
    one, other = (from_equinox(mlp(seed), (5,)) for seed in range(2))
    assert one.graph is other.graph
    assert jax.tree.structure(one) == jax.tree.structure(other)
    np.testing.assert_array_equal(one(x), jax.vmap(eqx.nn.inference_mode(mlp(0)))(x))
    logits, after = one.train_fn(one.variables, x)
    assert not np.allclose(logits, one(x))
    assert after is one.variables
    assert identical(from_equinox(to_equinox(one, mlp(7)), (5,)), one)


def test_statistics_of_a_short_training_are_debiased():
    model, state = filled(draw(), "batch")
    state = state.set(model.norm.batch_counter, jnp.array(20))
    network = from_equinox(model, (3, 8, 8), state)
    images = jnp.moveaxis(IMAGES, -1, 1)
    inference = eqx.nn.inference_mode(model)
    expected, _ = jax.vmap(lambda x, state: inference(x, state, None), (0, None), (0, None))(images, state)
    np.testing.assert_allclose(network(images), expected, rtol=1e-4, atol=1e-4)
    new, new_state = to_equinox(network, inference, state)
    logits, _ = jax.vmap(lambda x, state: new(x, state, None), (0, None), (0, None))(images, new_state)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert network.graph.affines[0].var is not None
