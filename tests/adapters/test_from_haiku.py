"""Haiku to a Network and back."""

import haiku as hk
import jax
import numpy as np
import pytest
from plain import IMAGES, check, check_training, draw, identical, repaired

from jaxguard.adapters.haiku import from_haiku, to_haiku
from jaxguard.errors import ArchitectureError

pytestmark = pytest.mark.usefixtures("usual_promotion")


def net(x, is_training):
    x = hk.Conv2D(8, 3)(x)
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, is_training)).mean((1, 2))
    x = hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x
    x = jax.nn.relu(hk.Linear(6)(x))
    return hk.Linear(4)(x)


NET = hk.transform_with_state(net)


def filled(values):
    v = values
    _, state = NET.init(jax.random.key(0), IMAGES, is_training=True)
    mean, var = (
        {**state[f"batch_norm/~/{name}_ema"], "average": v[name].reshape(1, 1, 1, 8)} for name in ("mean", "var")
    )
    params = {
        "conv2_d": {"w": v["conv"], "b": v["conv_bias"]},
        "batch_norm": {"scale": v["scale"].reshape(1, 1, 1, 8), "offset": v["bias"].reshape(1, 1, 1, 8)},
        "linear": {"w": v["dense"], "b": v["dense_bias"]},
        "linear_1": {"w": v["head"], "b": v["head_bias"]},
    }
    return params, {"batch_norm/~/mean_ema": mean, "batch_norm/~/var_ema": var}


def test_it_is_the_plain_network():
    values = draw()
    network = from_haiku(NET, *filled(values), IMAGES, is_training=False)
    check(network, values)
    check_training(network)


def test_a_repair_goes_back():
    params, state = filled(draw())
    network = from_haiku(NET, params, state, IMAGES, is_training=False)
    assert identical(to_haiku(network, params, state), (params, state))
    edited = repaired(network)
    new = to_haiku(edited, params, state)
    logits, _ = NET.apply(*new, None, IMAGES, is_training=False)
    np.testing.assert_array_equal(logits, edited(IMAGES))
    assert identical(from_haiku(NET, *new, IMAGES, is_training=False), edited)
    with pytest.raises(ArchitectureError, match="expected the 14 leaves of the model, got a network of 8"):
        to_haiku(from_haiku(NET, params, {}, IMAGES, is_training=False), params, state)


def test_a_function_without_a_state_has_a_training_mode():
    mlp = hk.transform(lambda x: hk.Linear(3)(jax.nn.relu(hk.Linear(8)(x))))
    x = np.ones((2, 5), np.float32)
    network = from_haiku(mlp, mlp.init(jax.random.key(0), x), None, x)
    assert [producer.channels for producer in network.graph.producers] == [8, 3]
    logits, after = network.train_fn(network.variables, x)
    np.testing.assert_array_equal(logits, network(x))
    assert after is network.variables
    assert to_haiku(network, network.variables["params"])[1] is None
