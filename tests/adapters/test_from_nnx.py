"""Flax NNX to a Network and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain import IMAGES, check, check_training, draw, identical, repaired

from jaxguard.adapters.nnx import from_nnx, to_nnx
from jaxguard.errors import ArchitectureError

pytestmark = pytest.mark.usefixtures("usual_promotion")


class Net(nnx.Module):
    def __init__(self, seed=0, width=8):
        rngs = nnx.Rngs(seed, dropout=seed + 1)
        self.conv = nnx.Conv(3, width, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(width, 6, rngs=rngs), nnx.Linear(6, 4, rngs=rngs)])

    def __call__(self, x):
        x = self.drop(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))
        return self.blocks[1](nnx.relu(self.blocks[0](x)))


class Switched(Net):
    """The mode is an argument of the call."""

    def __call__(self, x, train: bool):
        x = nnx.relu(self.norm(self.conv(x), use_running_average=not train)).mean((1, 2))
        x = self.drop(x, deterministic=not train)
        return self.blocks[1](nnx.relu(self.blocks[0](x)))


def filled(values, kind=Net, seed=0):
    model = kind(seed)
    dense, head = model.blocks
    for name, variable in {
        "conv": model.conv.kernel, "conv_bias": model.conv.bias, "scale": model.norm.scale, "bias": model.norm.bias,
        "mean": model.norm.mean, "var": model.norm.var, "dense": dense.kernel, "dense_bias": dense.bias,
        "head": head.kernel, "head_bias": head.bias,
    }.items():  # fmt: skip
        variable.set_value(jnp.asarray(values[name]))
    return model


@pytest.mark.parametrize("kind", [Net, Switched])
def test_it_is_the_plain_network(kind):
    values = draw()
    model = filled(values, kind)
    if kind is Net:
        model.eval()
    network = from_nnx(model, IMAGES)
    check(network, values)
    check_training(network)
    assert not any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(network))


def test_a_repair_goes_back_into_the_model_in_place():
    model = filled(draw())
    model.eval()
    drawn = nnx.to_pure_dict(nnx.state(model, nnx.RngState))
    network = from_nnx(model, IMAGES)
    edited = repaired(network)
    kernel = model.conv.kernel
    to_nnx(edited, model)
    assert model.conv.kernel is kernel
    assert identical(from_nnx(model, IMAGES), edited)
    np.testing.assert_array_equal(model(IMAGES), edited(IMAGES))
    to_nnx(network, model)
    assert identical(from_nnx(model, IMAGES), network)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), drawn, nnx.to_pure_dict(nnx.state(model, nnx.RngState)))
    assert all(jax.tree.leaves(same))


def test_a_model_in_training_mode_is_refused():
    model = Net()
    with pytest.raises(ArchitectureError, match=r"batch_stats/norm/mean.*call model\.eval\(\) first"):
        from_nnx(model, IMAGES)
    model.eval()
    model.drop.deterministic = False
    with pytest.raises(ArchitectureError, match=r"random/.*call model\.eval\(\)"):
        from_nnx(model, IMAGES)
    assert not model.drop.deterministic


def test_models_of_one_architecture_share_graph_and_programs():
    traces = []

    @jax.jit
    def logits(network, images):
        traces.append(1)
        return network(images)

    networks = []
    for seed in range(3):
        model = filled(draw(seed), seed=seed)
        model.eval()
        networks.append(from_nnx(model, (8, 8, 3)))
        logits(networks[-1], IMAGES)
    assert len(traces) == 1
    assert networks[0].graph is networks[1].graph is networks[2].graph


def test_a_network_of_another_architecture_is_refused():
    model, wide = Net(), Net(width=16)
    model.eval()
    with pytest.raises(ArchitectureError, match=r"expected shape \(16,\), got \(8,\) for leaf 'batch_stats/norm/mean'"):
        to_nnx(from_nnx(model, IMAGES), wide)
