"""Layers with torch's geometry, against arithmetic by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard.models import layers, resnet_cifar


@pytest.mark.parametrize("length", [1, 2, 7, 10])
def test_adaptive_mean_averages_torchs_cells(length):
    x = np.random.default_rng(0).normal(size=(2, length, length + 3, 3)).astype(np.float32)
    pooled = np.asarray(jax.jit(lambda x: layers.adaptive_mean(x, 7))(x))
    assert pooled.shape == (2, 7, 7, 3)
    for i, j in np.ndindex(7, 7):
        rows = slice(i * length // 7, int(np.ceil((i + 1) * length / 7)))
        columns = slice(j * (length + 3) // 7, int(np.ceil((j + 1) * (length + 3) / 7)))
        np.testing.assert_allclose(pooled[:, i, j], np.mean(x[:, rows, columns], (1, 2)), rtol=1e-4, atol=1e-6)


def test_strided_convolutions_pad_both_sides():
    conv = layers.conv(1, 3, strides=2, name="conv")
    kernel = {"params": {"kernel": jnp.ones((3, 3, 1, 1))}}
    sums = conv.apply(kernel, jnp.ones((1, 4, 4, 1)))
    np.testing.assert_array_equal(sums[0, ..., 0], [[4.0, 6.0], [6.0, 9.0]])  # the corner pads above and left


def test_max_pool_drops_an_odd_edge():
    x = jnp.arange(25.0).reshape(1, 5, 5, 1)
    np.testing.assert_array_equal(layers.max_pool(x)[0, ..., 0], [[6.0, 8.0], [16.0, 18.0]])


def test_option_a_keeps_even_pixels_and_centres_the_channels():
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 16)).astype(np.float32)
    y = np.asarray(resnet_cifar.subsample_and_pad(jnp.asarray(x), 2, 32))
    np.testing.assert_array_equal(y[..., 8:24], x[:, ::2, ::2])
    assert not np.any(y[..., :8])
    assert not np.any(y[..., 24:])
