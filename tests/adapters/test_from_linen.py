"""Flax Linen to a Network; its variables are the module's, so there is no way back to take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from plain import IMAGES, check, check_training, draw, repaired

from jaxguard.adapters.linen import from_linen

pytestmark = pytest.mark.usefixtures("usual_promotion")


class Net(nn.Module):
    features: tuple[int, ...] = (8, 6, 4)

    @nn.compact
    def __call__(self, x, train: bool = True):
        x = nn.Conv(self.features[0], (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x)).mean((1, 2))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = nn.relu(nn.Dense(self.features[1])(x))
        return nn.Dense(self.features[2])(x)


def filled(values):
    v = values
    return {
        "params": {
            "Conv_0": {"kernel": v["conv"], "bias": v["conv_bias"]},
            "BatchNorm_0": {"scale": v["scale"], "bias": v["bias"]},
            "Dense_0": {"kernel": v["dense"], "bias": v["dense_bias"]},
            "Dense_1": {"kernel": v["head"], "bias": v["head_bias"]},
        },
        "batch_stats": {"BatchNorm_0": {"mean": v["mean"], "var": v["var"]}},
    }


def test_it_is_the_plain_network():
    values = draw()
    network = from_linen(Net(), filled(values), IMAGES)
    check(network, values)
    check_training(network)


def test_variables_stay_the_module_s_own():
    variables = filled(draw())
    network = from_linen(Net(), variables, IMAGES)
    assert network.variables is variables
    edited = repaired(network)
    logits = Net().apply(edited.variables, IMAGES, train=False)
    np.testing.assert_array_equal(jnp.asarray(logits), edited(IMAGES))


def test_equal_modules_share_graph_and_functions():
    one, other = (from_linen(Net(), filled(draw(seed)), IMAGES) for seed in range(2))
    assert one.graph is other.graph
    assert jax.tree.structure(one) == jax.tree.structure(other)


class Listed(nn.Module):
    widths: list[int]

    @nn.compact
    def __call__(self, x):
        for width in self.widths[:-1]:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)


class Fixed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x)))


def test_what_cannot_be_hashed_or_switched_is_adapted_all_the_same():
    x = jnp.ones((1, 5))
    listed, fixed = Listed([4, 2]), Fixed()
    network = from_linen(listed, listed.init(jax.random.key(0), x), x)
    assert [producer.channels for producer in network.graph.producers] == [4, 2]
    logits, after = network.train_fn(network.variables, x)
    np.testing.assert_array_equal(logits, network(x))
    assert jax.tree.structure(after) == jax.tree.structure(network.variables)
    assert from_linen(fixed, fixed.init(jax.random.key(0), x), x).train_fn is None
