"""A two-layer convolutional network with batch normalisation as plain functions, and images it can learn."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxguard.types import Batch, Network

NUM_CLASSES = 4
INPUT_SHAPE = (8, 8, 1)


def init(key):
    key_conv, key_linear = jax.random.split(key)
    return {
        "params": {
            "conv": jax.random.normal(key_conv, (3, 3, 1, 8)) / 3,
            "scale": jnp.ones(8),
            "bias": jnp.zeros(8),
            "linear": jax.random.normal(key_linear, (4 * 4 * 8, NUM_CLASSES)) / 12,
        },
        "batch_stats": {"mean": jnp.zeros(8), "var": jnp.ones(8)},
    }


def _forward(variables, images, statistics_fn):
    params = variables["params"]
    dtype = params["conv"].dtype
    x = lax.conv_general_dilated(
        images.astype(dtype), params["conv"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    mean, var = statistics_fn(x)
    normalised = (x - mean[None, None, None]) * lax.rsqrt(var + 1e-5)[None, None, None]
    x = normalised * params["scale"][None, None, None] + params["bias"][None, None, None]
    logits = jax.nn.relu(x.astype(dtype)).reshape(len(images), -1) @ params["linear"]
    return logits, mean, var


def apply_fn(variables, images):
    running = variables["batch_stats"]
    return _forward(variables, images, lambda x: (running["mean"], running["var"]))[0]


def train_fn(variables, images):
    logits, mean, var = _forward(variables, images, lambda x: (x.mean((0, 1, 2)), x.var((0, 1, 2))))
    running = variables["batch_stats"]
    after = {"mean": 0.9 * running["mean"] + 0.1 * mean, "var": 0.9 * running["var"] + 0.1 * var}
    return logits, {**variables, "batch_stats": after}


def network(variables, train_fn=train_fn):
    return Network(variables, apply_fn, jax.ShapeDtypeStruct(INPUT_SHAPE, jnp.float32), train_fn)


def images(num_images, key):
    """Noise with the quadrant of the label brightened."""
    key_noise, key_labels = jax.random.split(key)
    labels = jax.random.randint(key_labels, (num_images,), 0, NUM_CLASSES)
    quadrant = jax.nn.one_hot(labels, NUM_CLASSES).reshape(-1, 2, 2, 1)
    noise = 0.5 * jax.random.uniform(key_noise, (num_images, *INPUT_SHAPE))
    return Batch(noise + 0.5 * jnp.repeat(jnp.repeat(quadrant, 4, 1), 4, 2), labels)


class Counted:
    """A function that counts how often it runs in Python, which under jit is how often it is traced."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args, **options):
        self.calls += 1
        return self.function(*args, **options)
