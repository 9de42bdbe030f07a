"""Convolutions of any layout, brought into the native one, give the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxguard.graph import Coalitions, channel_graph, native_layout
from jaxguard.graph.tracing import trace

NATIVE = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), ("NHWC", "HWIO", "NHWC"))
TORCH = ("NCHW", "OIHW", "NCHW")


@pytest.mark.parametrize(
    ("numbers", "options"),
    [
        (TORCH, {"window_strides": (2, 1), "padding": "SAME"}),
        (("NHWC", "OIHW", "NCHW"), {"window_strides": (1, 1), "padding": ((2, 0), (0, 1)), "rhs_dilation": (1, 2)}),
        (("CNWH", "WIHO", "HCNW"), {"window_strides": (1, 2), "padding": ((1, 2), (0, 0)), "lhs_dilation": (2, 1)}),
        (TORCH, {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 2}),
        (("NCH", "OIH", "NCH"), {"window_strides": (1,), "padding": "SAME"}),
        (("NCDHW", "OIDHW", "NCDHW"), {"window_strides": (1, 1, 1), "padding": "SAME"}),
    ],
)
def test_same_numbers(numbers, options):
    sizes = {"N": 2, "C": 4, "O": 6, "I": 4 // options.get("feature_group_count", 1)}
    key_images, key_kernel = jax.random.split(jax.random.key(0))
    images = jax.random.normal(key_images, [sizes.get(letter, 5) for letter in numbers[0]])
    kernel = jax.random.normal(key_kernel, [sizes.get(letter, 3) for letter in numbers[1]])

    def convolve(kernel, images):
        return lax.conv_general_dilated(images, kernel, dimension_numbers=numbers, **options)

    (eqn,) = trace(convolve, kernel, images).equations
    (found,) = native_layout.apply_in_loop(eqn, [images, kernel])
    np.testing.assert_allclose(found, convolve(kernel, images), atol=1e-5)


def test_coalitions_of_a_torch_model_convolve_natively():
    def apply_fn(v, x):
        x = lax.conv_general_dilated(x, v["conv1"], (1, 1), "SAME", dimension_numbers=TORCH)
        x = lax.conv_general_dilated(jax.nn.relu(x), v["conv2"], (1, 1), "SAME", dimension_numbers=TORCH)
        return jax.nn.relu(x).mean((2, 3)) @ v["fc"]

    v = {"conv1": jnp.ones((4, 3, 3, 3)), "conv2": jnp.ones((5, 4, 3, 3)), "fc": jnp.ones((5, 2))}
    images = jnp.ones((2, 3, 6, 6))
    game = Coalitions(channel_graph(apply_fn, v, images))
    program = str(jax.make_jaxpr(game.logits)(v, game.start(v, images), jnp.ones((3, game.players))))
    assert program.count("conv_general_dilated") == program.count(str(NATIVE)) == 1
