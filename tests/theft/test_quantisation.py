"""Kernels on few levels, and nothing else touched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxguard import models
from jaxguard.errors import OptionError
from jaxguard.repairs import relative_change
from jaxguard.theft import THEFTS
from jaxguard.types import Network

quantisation = THEFTS["quantisation"]


def network(spec="cnn:width=0.25"):
    model = models.build(spec, num_classes=4, input_shape=(8, 8, 3))
    return model.network(zoo.randomise(model.shapes()))


def leaves(owner, variables):
    return dict(zip(owner.graph.program.paths, map(np.asarray, jax.tree.leaves(variables)), strict=True))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("spec", ["cnn:width=0.25", "vit-tiny-4:width=0.0625,depth=1,heads=2"])
def test_kernels_lie_on_a_symmetric_grid(spec, bits):
    owner = network(spec)
    copy, report = quantisation(owner, bits=bits)
    before, after = leaves(owner, owner.variables), leaves(owner, copy.variables)
    kernels = {path for path in before if path.endswith("kernel")}
    assert relative_change(owner.variables, copy.variables).keys() == kernels
    levels = 2 ** (bits - 1) - 1
    for path in kernels:
        old, new = before[path], after[path]
        peak = np.abs(old).max()
        assert len(np.unique(new)) <= 2**bits - 1
        assert np.abs(new).max() == peak
        np.testing.assert_allclose(new, np.round(old.astype(np.float64) / peak * levels) / levels * peak, atol=1e-5)
        assert np.abs(new - old).max() <= peak / levels / 2 * 1.001
    assert report.notes == (f"{len(owner.graph.producers)} kernels were rounded to {2**bits - 1} levels each.",)


def test_a_second_time_changes_nothing():
    owner = network()
    once, _ = quantisation(owner, bits=4)
    twice, _ = quantisation(once, bits=4)
    jax.tree.map(np.testing.assert_array_equal, once.variables, twice.variables)


def test_more_bits_are_closer():
    owner, images = network(), zoo.images(8, 8, 3)
    logits = np.asarray(owner.apply_fn(owner.variables, images))
    copies = [quantisation(owner, bits=bits)[0] for bits in (3, 6, 12)]
    errors = [np.abs(owner.apply_fn(copy.variables, images) - logits).max() for copy in copies]
    assert errors[0] > 4 * errors[1] > 16 * errors[2] > 0


def test_each_layer_of_a_stack_has_its_own_scale():
    def apply_fn(v, x):
        for k in range(2):
            x = jax.nn.relu(x @ v["stack"][k])
        return x @ v["head"]

    variables = {
        "stack": jnp.stack([jnp.array([[1.0, 0.4], [-0.6, 0.0]])] * 2) * jnp.array([1.0, 100.0])[:, None, None]
    }
    variables["head"] = jnp.zeros((2, 2))
    owner = Network(variables, apply_fn, (2,))
    copy, _ = quantisation(owner, bits=2)
    expected = np.array([[1.0, 0.0], [-1.0, 0.0]])
    np.testing.assert_array_equal(copy.variables["stack"], [expected, 100 * expected])
    np.testing.assert_array_equal(copy.variables["head"], 0)  # zeros stay


def test_dtypes_stay(usual_promotion):  # weights in bfloat16, images in float32
    owner = network("mlp:hidden=8")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), owner.variables)
    copy, _ = quantisation(owner.with_variables(half))
    assert {leaf.dtype for leaf in jax.tree.leaves(copy.variables)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("bits", [1, 17])
def test_options_out_of_range(bits):
    with pytest.raises(OptionError, match=r"expected a whole number in \[2, 16\] for bits of quantisation"):
        quantisation(network(), bits=bits)
