"""Small models of many kinds, each `(apply_fn, variables, images)`, for the properties that must hold for all."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from jaxguard import models
from jaxguard.graph import ChannelGraph, channel_graph
from jaxguard.graph.program import leaf_paths
from jaxguard.types import Network

Case = tuple[Callable[..., jax.Array], Any, np.ndarray]


def usual(apply_fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function as users write theirs, for JAX's defaults: dtypes and ranks are promoted in it."""

    @functools.wraps(apply_fn)
    def call(*args: Any, **options: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return apply_fn(*args, **options)

    return call


def randomise(shapes: Any, seed: int = 0) -> Any:
    """Values in which no two channels are alike and no activation is dead, BatchNorm statistics included."""
    rng = np.random.default_rng(seed)

    def draw(path: str, leaf: Any) -> jax.Array:
        values = rng.normal(size=leaf.shape)
        if leaf.ndim > 1:
            values *= (2 / np.prod(leaf.shape[:-1])) ** 0.5
        if {"var", "scale"} & set(path.split("/")):
            values = rng.uniform(0.5, 1.5, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    leaves, structure = jax.tree.flatten(shapes)
    return jax.tree.unflatten(structure, [draw(p, leaf) for p, leaf in zip(leaf_paths(shapes), leaves, strict=True)])


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(size=(3, *shape)).astype(np.float32)


def network(apply_fn: Callable[..., jax.Array], variables: Any, images: Any, train_fn: Any = None) -> Network:
    """A network whose inputs are like the images."""
    return Network(variables, apply_fn, jax.ShapeDtypeStruct(images.shape[1:], images.dtype), train_fn)


def linen(module: nn.Module, *shape: int) -> Case:
    x = images(*shape)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return module.apply, randomise(shapes), x


def bundled(spec: str, size: int = 32) -> Case:
    model = models.build(spec, num_classes=10, input_shape=(size, size, 3))
    return model.apply_fn, randomise(model.shapes()), images(size, size, 3)


def kinds() -> list[str]:
    """The first of the named architectures of each kind; others have the same layers, only more of them or wider."""
    names: dict[tuple[Any, ...], str] = {}
    for name in models.ARCHITECTURES:
        module = models.build(name, num_classes=10, input_shape=(32, 32, 3)).module
        options = [value for value in vars(module).values() if isinstance(value, str | bool)]
        kind = type(module), getattr(module, "groups", 1) > 1, getattr(module, "stages", ()), *options
        names.setdefault(kind, name)
    return list(names.values())


class ViT(nn.Module):
    depth: int = 2

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (4, 4), (4, 4))(x).reshape(x.shape[0], -1, 16)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, 16))
        x = jnp.concatenate([jnp.tile(cls, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("position", nn.initializers.zeros, (1, x.shape[1], 16))
        for _ in range(self.depth):
            x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
            x = x + nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x))))
        return nn.Dense(5)(nn.LayerNorm()(x)[:, 0])


class UNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        skip = nn.relu(nn.GroupNorm(3)(nn.Conv(6, (3, 3))(x)))
        x = nn.max_pool(skip, (2, 2), (2, 2))
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(12, (3, 3))(x)))
        x = nn.ConvTranspose(6, (2, 2), (2, 2))(x)
        x = nn.relu(nn.GroupNorm(4)(nn.Conv(8, (3, 3))(jnp.concatenate([skip, x], axis=-1))))
        return nn.Dense(4)(x.reshape(x.shape[0], -1))


class MobileBlock(nn.Module):
    """Inverted residual with depthwise and grouped convolutions, squeeze-and-excitation and SiLU."""

    @nn.compact
    def __call__(self, x):
        x = nn.silu(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x)))
        y = nn.silu(nn.BatchNorm(use_running_average=True)(nn.Conv(24, (1, 1), use_bias=False)(x)))
        y = nn.BatchNorm(use_running_average=True)(nn.Conv(24, (3, 3), feature_group_count=24, use_bias=False)(y))
        gate = nn.sigmoid(nn.Dense(24)(nn.relu(nn.Dense(6)(y.mean((1, 2))))))
        y = nn.Conv(8, (1, 1))(nn.silu(y) * gate[:, None, None])
        x = x + nn.Conv(8, (3, 3), feature_group_count=2)(y)
        return nn.Dense(4)(x.mean((1, 2)))


class DenseNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3))(x)
        for _ in range(3):
            y = nn.relu(nn.BatchNorm(use_running_average=True)(x))
            x = jnp.concatenate([x, nn.Conv(4, (3, 3), use_bias=False)(y)], axis=-1)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        return nn.Dense(4)(x.mean((1, 2)))


class Rematerialised(nn.Module):
    """remat, a layer used twice, GLU, and a branch."""

    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(8)
        x = nn.remat(nn.Conv)(8, (3, 3))(x).mean((1, 2))
        x = nn.glu(nn.Dense(24)(nn.tanh(dense(nn.tanh(dense(x))))))
        x = jax.lax.cond(jnp.sum(x) > 0, nn.relu, lambda y: 0.5 * y, x)
        return nn.Dense(3)(x)


def nnx_cnn() -> Case:
    class CNN(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
            self.dense = nnx.Linear(8 * 16, 4, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.conv(x)))
            with jax.numpy_dtype_promotion("standard"):  # Flax divides by a whole number
                x = nnx.avg_pool(x, (2, 2), (2, 2))
            return self.dense(x.reshape(x.shape[0], -1))

    definition, state = nnx.split(CNN(nnx.Rngs(0)))
    variables = randomise(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state))
    return lambda v, x: nnx.merge(definition, v)(x), variables, images(8, 8, 3)


def per_example() -> Case:
    """One image at a time, channels first, mapped over the batch, as Equinox models are written."""

    def single(v, x):
        x = jnp.transpose(x, (2, 0, 1))[None]
        x = jax.lax.conv_general_dilated(x, v["w1"], (1, 1), "SAME")[0] + v["b1"][:, None, None]
        x = jax.nn.relu(x / jnp.sqrt(v["var"] + 1e-5)[:, None, None] * v["scale"][:, None, None])
        x = jax.lax.conv_general_dilated(x[None], v["w2"], (2, 2), "SAME")[0]
        return v["w3"] @ jnp.ravel(jax.nn.relu(x)) + v["b3"]

    shapes = {"w1": (6, 3, 3, 3), "b1": (6,), "var": (6,), "scale": (6,), "w2": (4, 6, 3, 3), "w3": (5, 64), "b3": (5,)}
    structs = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    return lambda v, x: jax.vmap(lambda one: single(v, one))(x), randomise(structs), images(8, 8, 3)


def fused_attention() -> Case:
    """Attention with one query-key-value projection, reshaped to (3, heads, dim) as in timm."""

    def apply_fn(v, x):
        b, n, _ = x.shape
        q, k, value = jnp.moveaxis((x @ v["qkv"]).reshape(b, n, 3, 2, 4), 2, 0)
        weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k) / 2)
        mixed = jnp.einsum("bhnm,bmhd->bnhd", weights, value).reshape(b, n, 8)
        return jax.nn.relu(mixed @ v["out"]).mean(1) @ v["head"]

    shapes = {"qkv": (6, 24), "out": (8, 10), "head": (10, 3)}
    structs = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    return apply_fn, randomise(structs), images(5, 6)


def scanned_layers() -> Case:
    """Stacked residual layers applied by `lax.scan`, then a recurrent cell over the tokens."""

    def apply_fn(v, x):
        x = x @ v["embed"]
        x, norms = jax.lax.scan(
            lambda h, p: (h + jax.nn.gelu(h @ p["up"] + p["bias"][None, None]) @ p["down"], jnp.max(h)), x, v["layers"]
        )

        def cell(h, token):
            return jnp.tanh(h @ v["recur"] + token @ v["input"]), None

        h, _ = jax.lax.scan(cell, jnp.zeros((x.shape[0], 6)), jnp.swapaxes(x, 0, 1), reverse=True)
        return h @ v["head"] + jnp.sum(norms) * 0.01

    layers = {"up": (3, 8, 12), "bias": (3, 12), "down": (3, 12, 8)}
    shapes = {"embed": (6, 8), "layers": layers, "recur": (6, 6), "input": (8, 6), "head": (6, 3)}
    structs = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    return apply_fn, randomise(structs), images(5, 6)


def standardised_kernel() -> Case:
    """Weight standardisation: the kernel that is applied is computed from the leaf."""

    def apply_fn(v, x):
        w = v["kernel"]
        mean, deviation = w.mean((0, 1, 2), keepdims=True), jnp.sqrt(w.var((0, 1, 2), keepdims=True) + 1e-5)
        w = (w - mean) / deviation * v["gain"][None, None, None]
        x = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.nn.relu(x).mean((1, 2)) @ v["head"]

    shapes = {"kernel": (3, 3, 3, 8), "gain": (8,), "head": (8, 3)}
    structs = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    return apply_fn, randomise(structs), images(6, 6, 3)


ZOO: dict[str, Callable[[], Case]] = {
    "mlp": lambda: bundled("mlp:hidden=24x12", 8),
    "cnn": lambda: bundled("cnn:width=0.5", 16),
    "resnet8": lambda: bundled("resnet8:width=0.5"),
    "wideresnet": lambda: bundled("wideresnet-10-1:width=0.5"),
    "vit": lambda: linen(ViT(), 8, 8, 3),
    "unet": lambda: linen(UNet(), 8, 8, 3),
    "mobile": lambda: linen(MobileBlock(), 8, 8, 3),
    "densenet": lambda: linen(DenseNet(), 8, 8, 3),
    "remat": lambda: linen(Rematerialised(), 8, 8, 3),
    "nnx": nnx_cnn,
    "per_example": per_example,
    "fused_attention": fused_attention,
    "scanned_layers": scanned_layers,
    "standardised": standardised_kernel,
}
"""Name -> maker of `(apply_fn, variables, images)`: each kind once, and no deeper than it must be."""


@functools.cache
def _made(name: str) -> Case:
    return ZOO[name]() if name in ZOO else bundled(name)


def case(name: str) -> Case:
    """One of the zoo, or a bundled specification, made once, so that all tests share what JAX traces of it."""
    apply_fn, variables, images = _made(name)
    return apply_fn, jax.tree.map(lambda leaf: leaf, variables), images  # containers of its own


@functools.cache
def graph(name: str) -> ChannelGraph:
    """Its channel graph; each of its primitives has a row in the table."""
    return channel_graph(*case(name), strict=True)
