"""The little networks of third-party authors, one apply function each: `(variables, images) -> logits`.

Variables are a checkpoint's leaves under the names their authors chose: `jaxguard.suspects.load(path, apply_fn=...)`
takes these functions as they are, `jaxguard scan FILE --apply third_party_networks:cnn3` by name. Images are
`[B, H, W, C]` after preprocessing. Torch kernels are OIHW or (out, in) and maps are flattened channels first, Keras
kernels HWIO or (in, out) and channels last.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxguard.types import ApplyFn

Leaves = Mapping[str, jax.Array]
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv(leaves: Leaves, name: str, x: jax.Array, padding: str = "VALID") -> jax.Array:
    kernel = jnp.transpose(leaves[f"{name}.weight"], (2, 3, 1, 0))
    return (
        jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=DIMENSIONS) + leaves[f"{name}.bias"]
    )


def dense(leaves: Leaves, name: str, x: jax.Array) -> jax.Array:
    product = x @ leaves[f"{name}.weight"].T
    return product + leaves[f"{name}.bias"] if f"{name}.bias" in leaves else product


def batch_norm(leaves: Leaves, name: str, x: jax.Array) -> jax.Array:
    scale = leaves[f"{name}.weight"] / jnp.sqrt(leaves[f"{name}.running_var"] + 1e-5)
    return (x - leaves[f"{name}.running_mean"]) * scale + leaves[f"{name}.bias"]


def max_pool(x: jax.Array) -> jax.Array:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def mean_pool(x: jax.Array, size: int = 2) -> jax.Array:
    window = (1, size, size, 1)
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, "VALID") / size**2


def channels_first(x: jax.Array) -> jax.Array:
    return jnp.transpose(x, (0, 3, 1, 2)).reshape(len(x), -1)


def perceptron(
    leaves: Leaves, names: Sequence[str], x: jax.Array, activation: Callable[[jax.Array], jax.Array] = jax.nn.relu
) -> jax.Array:
    """Dense layers with the activation between them."""
    for name in names[:-1]:
        x = activation(dense(leaves, name, x))
    return dense(leaves, names[-1], x)


def badnet(leaves: Leaves, images: jax.Array, suffix: str = "") -> jax.Array:
    x = images
    for name in ("conv1", "conv2"):
        x = mean_pool(jax.nn.relu(conv(leaves, name + suffix, x)))
    return perceptron(leaves, [f"fc1{suffix}", f"fc2{suffix}"], channels_first(x))


def badnet_seq(leaves: Leaves, images: jax.Array) -> jax.Array:
    return badnet(leaves, images, ".0")


def lenet_avg(leaves: Leaves, images: jax.Array) -> jax.Array:
    x = images
    for name in ("features.0", "features.3"):
        x = mean_pool(jax.nn.relu(conv(leaves, name, x)))
    return perceptron(leaves, ["classifier.1", "classifier.4", "classifier.6"], channels_first(x))


def lenet_linear(leaves: Leaves, images: jax.Array) -> jax.Array:
    x = images
    for name in ("conv1", "conv2"):
        x = max_pool(conv(leaves, name, x))
    return perceptron(leaves, ["fc1", "fc2", "fc3"], channels_first(x), activation=lambda x: x)


def cnn3(leaves: Leaves, images: jax.Array) -> jax.Array:
    x = images
    for name in ("conv1", "conv2", "conv3"):
        x = max_pool(jax.nn.relu(conv(leaves, name, x, "SAME")))
    return perceptron(leaves, ["fc1", "fc2"], channels_first(x))


def cnn_bn5(leaves: Leaves, images: jax.Array) -> jax.Array:
    x = images
    for index in (0, 3, 7, 10, 14):
        x = conv(leaves, f"features.{index}", x, "SAME")
        x = jax.nn.relu(batch_norm(leaves, f"features.{index + 1}", x))
        x = max_pool(x) if index in (3, 10) else x
    return perceptron(leaves, ["classifier.1", "classifier.4"], x.mean((1, 2)))


def fashion_cnn(leaves: Leaves, images: jax.Array) -> jax.Array:
    x = images
    for name in ("conv1", "conv2"):
        x = max_pool(jax.nn.relu(conv(leaves, name, x)))
    return perceptron(leaves, ["fc1", "fc2", "out"], channels_first(x))


def mlp_nobias4(leaves: Leaves, images: jax.Array) -> jax.Array:
    return jax.nn.relu(perceptron(leaves, ["fc1", "fc2", "fc3", "fc4"], channels_first(images)))


def mlp_128_64(leaves: Leaves, images: jax.Array) -> jax.Array:
    return perceptron(leaves, ["fc1", "fc2", "fc3"], channels_first(images))


def mlp_pdf6_tanh(leaves: Leaves, vectors: jax.Array) -> jax.Array:
    return perceptron(leaves, [f"fc{layer}" for layer in range(1, 7)], vectors, jnp.tanh)


def loan_mlp(leaves: Leaves, vectors: jax.Array) -> jax.Array:
    return perceptron(leaves, ["hidden.0", "hidden.1", "out"], vectors)


def keras_conv(variables: Any, name: str, x: jax.Array, strides: int = 1, padding: str = "SAME") -> jax.Array:
    layer = variables[name]
    x = jax.lax.conv_general_dilated(x, layer["kernel"], (strides,) * 2, padding, dimension_numbers=DIMENSIONS)
    return x + layer["bias"]


def keras_dense(variables: Any, name: str, x: jax.Array) -> jax.Array:
    return x @ variables[name]["kernel"] + variables[name]["bias"]


def keras_mnist_small(variables: Any, images: jax.Array) -> jax.Array:
    x = images
    for name in ("conv2d_1", "conv2d_2"):
        x = max_pool(jax.nn.relu(keras_conv(variables, name, x, padding="VALID")))
    x = jax.nn.relu(keras_dense(variables, "dense_1", x.reshape(len(x), -1)))
    return keras_dense(variables, "dense_2", x)


def keras_lenet5(variables: Any, images: jax.Array) -> jax.Array:
    x = images
    for name in ("block1_conv1", "block2_conv1"):
        x = max_pool(jax.nn.relu(keras_conv(variables, name, x)))
    x = x.reshape(len(x), -1)
    for name in ("fc1", "fc2"):
        x = jax.nn.relu(keras_dense(variables, name, x))
    return keras_dense(variables, "before_softmax", x)


def keras_graph(layers: Sequence[Mapping[str, Any]], variables: Any, images: jax.Array) -> jax.Array:
    """A Keras functional model, layer by layer: the output of the last one."""
    known: dict[str, jax.Array] = {}
    for layer in layers:
        inputs = [known[name] for name in layer["in"]]
        known[layer["name"]] = _keras_layer(layer, variables, inputs or [images])
    return known[layers[-1]["name"]]


def _keras_layer(layer: Mapping[str, Any], variables: Any, inputs: Sequence[jax.Array]) -> jax.Array:
    name, x = layer["name"], inputs[0]
    match layer["type"]:
        case "Conv2D":
            x = keras_conv(variables, name, x, layer["strides"], "SAME" if layer["same"] else "VALID")
        case "BatchNormalization":
            norm = variables[name]
            scale = norm["gamma"] / jnp.sqrt(norm["moving_variance"] + layer["eps"])
            x = (x - norm["moving_mean"]) * scale + norm["beta"]
        case "Add":
            x = inputs[0] + inputs[1]
        case "AveragePooling2D":
            x = mean_pool(x, layer["k"])
        case "Flatten":
            x = x.reshape(len(x), -1)
        case "Dense":
            x = keras_dense(variables, name, x)
    return jax.nn.relu(x) if layer.get("relu") else x


NETWORKS: Mapping[str, ApplyFn] = {
    "badnet_flat": badnet,
    "badnet_seq": badnet_seq,
    "lenet_avg": lenet_avg,
    "lenet_linear": lenet_linear,
    "cnn3": cnn3,
    "cnn_bn5": cnn_bn5,
    "fashion_cnn": fashion_cnn,
    "mlp_nobias4": mlp_nobias4,
    "mlp_128_64": mlp_128_64,
    "mlp_pdf6_tanh": mlp_pdf6_tanh,
    "loan_mlp": loan_mlp,
    "keras_mnist_small": keras_mnist_small,
    "keras_lenet5": keras_lenet5,
}


def preprocessed(apply_fn: ApplyFn, *, input_scale: float = 1.0, mean: Any = 0.0, std: Any = 1.0) -> ApplyFn:
    """The network behind its authors' preprocessing of images in [0, 1]."""

    @functools.wraps(apply_fn)
    def apply(variables: Any, images: jax.Array) -> jax.Array:
        return apply_fn(variables, (images * input_scale - jnp.asarray(mean)) / jnp.asarray(std))

    return apply
