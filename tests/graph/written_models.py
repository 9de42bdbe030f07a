"""Model code as people write it, small: `name -> maker of (apply_fn, variables, images)`, as in `zoo.ZOO`."""

import functools

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import zoo
from flax import linen as nn
from flax import nnx
from jax import lax
from jax.experimental import pallas

from jaxguard.adapters.equinox import from_equinox
from jaxguard.adapters.haiku import from_haiku
from jaxguard.adapters.nnx import from_nnx

T, D, K = 4, 6, 3
"""Tokens, their width, and classes."""

NHWC = ("NHWC", "HWIO", "NHWC")


def written(apply_fn, images=(T, D), head=D, **shapes):
    """A model of leaves of given shapes; `h` makes the logits."""
    sizes = {**shapes, "h": (head, K)} if head else shapes
    structs = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in sizes.items()}
    return lambda: (apply_fn, zoo.randomise(structs), zoo.images(*images))


def conv(x, w, groups=1, stride=1):
    return lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=NHWC, feature_group_count=groups)


def attention(v, x):  # rotary positions, two queries to each key and value head
    n, t, _ = x.shape
    angle = jnp.arange(t)[:, None] / 10 ** jnp.arange(1.0)

    def rotated(y):
        a, b = jnp.split(y, 2, -1)
        c, s = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
        return jnp.concatenate([a * c - b * s, a * s + b * c], -1)

    q, k, value = ((x @ v[name]).reshape(n, t, -1, 2) for name in ("q", "k", "v"))
    k, value = jnp.repeat(rotated(k), 2, 2), jnp.repeat(value, 2, 2)
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", rotated(q), k))
    x = x + jnp.einsum("bhts,bshd->bthd", weights, value).reshape(n, t, 8) @ v["o"]
    normed = x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * v["norm"]
    return (x + (jax.nn.silu(normed @ v["gate"]) * (normed @ v["up"])) @ v["down"]).mean(1) @ v["h"]


def gru(v, x):
    def step(h, xt):
        z, r = (jax.nn.sigmoid(xt @ v[f"w{g}"] + h @ v[f"u{g}"]) for g in "zr")
        return (1 - z) * h + z * jnp.tanh(xt @ v["wh"] + (r * h) @ v["uh"]), None

    return lax.scan(step, jnp.zeros((x.shape[0], 5)), x.swapaxes(0, 1))[0] @ v["h"]


def experts(v, x):
    gates, which = lax.top_k(jax.nn.softmax(x @ v["r"]), 2)
    mixed = (jax.nn.one_hot(which, 3) * gates[..., None]).sum(-2)
    y = jnp.einsum("btef,efd->bted", jax.nn.gelu(jnp.einsum("btd,edf->btef", x, v["w1"])), v["w2"])
    return (x + (y * mixed[..., None]).sum(2)).mean(1) @ v["h"]


def sorted_experts(v, x):
    flat = x.reshape(-1, D) @ v["w"]
    chosen = jnp.argmax(flat @ v["r"], -1)
    order = jnp.argsort(chosen)
    sizes = jnp.bincount(chosen, length=3).astype(jnp.int32)
    mixed = lax.ragged_dot(flat[order], v["w1"], sizes)
    return jnp.zeros_like(flat).at[order].set(mixed).reshape(x.shape).mean(1) @ v["h"]


def spectral(v, x):
    z = jnp.einsum("bkd,kde->bke", jnp.fft.rfft(x, axis=1)[:, :2], v["r"] + 1j * v["i"])
    y = jnp.fft.irfft(jnp.pad(z, ((0, 0), (0, 1), (0, 0))), n=T, axis=1)
    return jax.nn.gelu(y + x @ v["w"]).mean(1) @ v["h"]


def state_space(v, x):
    u = jax.nn.silu(x @ v["in"])
    a = jax.nn.sigmoid(u @ v["dt"])
    b = (u @ v["B"]) * (1 - a)
    _, s = lax.associative_scan(lambda p, q: (p[0] * q[0], q[0] * p[1] + q[1]), (a, b), axis=1)
    return (x + (s * u) @ v["out"]).mean(1) @ v["h"]


def gated_convs(v, x):  # GLU, pixel shuffle, maxout
    a, b = jnp.split(conv(x, v["c1"]), 2, -1)
    n, height, width, _ = a.shape
    y = conv(a * jax.nn.sigmoid(b), v["c2"]).reshape(n, height, width, 2, 2, 2)
    y = y.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * height, 2 * width, 2)
    return conv(y, v["c3"]).reshape(n, 2 * height, 2 * width, 4, 2).max(-1).mean((1, 2)) @ v["h"]


def shuffled(v, x):  # channel shuffle between grouped convolutions, squeeze and excitation
    x = conv(jax.nn.relu(conv(x, v["c1"])), v["g"], groups=2)
    x = x.reshape(*x.shape[:3], 2, 4).swapaxes(3, 4).reshape(x.shape)
    s = jax.nn.sigmoid(jax.nn.relu(x.mean((1, 2)) @ v["s1"]) @ v["s2"])
    return jax.nn.relu(x * s[:, None, None]).mean((1, 2)) @ v["h"]


def windows(v, x):  # shifted windows
    y = conv(x, v["embed"], stride=2)
    n, side, _, c = y.shape
    z = jnp.roll(y, (-1, -1), (1, 2)).reshape(n, 2, side // 2, 2, side // 2, c).swapaxes(2, 3)
    z = jnp.tanh(z.reshape(-1, side * side // 4, c) @ v["w"]) @ v["o"]
    z = z.reshape(n, 2, 2, side // 2, side // 2, c).swapaxes(2, 3).reshape(y.shape)
    return (y + jnp.roll(z, (1, 1), (1, 2))).mean((1, 2)) @ v["h"]


def film(v, x):
    y = conv(x, v["c"]) * v["scale"]
    s, b = jnp.split(jax.nn.relu(y).mean((1, 2)) @ v["f"], 2, -1)
    return jax.nn.relu(y * s[:, None, None] + b[:, None, None]).mean((1, 2)) @ v["h"]


def neighbours(v, x):  # local response normalisation
    y = jax.nn.relu(conv(x, v["c"]))
    s = lax.reduce_window(y * y, 0.0, lax.add, (1, 1, 1, 3), (1, 1, 1, 1), "SAME")
    return (y / (1 + s) ** 0.75).mean((1, 2)) @ v["h"]


def resized(v, x):
    small = jax.nn.relu(conv(x, v["c1"], stride=2))
    large = jax.image.resize(small, (*x.shape[:3], small.shape[-1]), "bilinear")
    return jax.nn.relu(conv(jnp.concatenate([large, x], -1), v["c2"])).mean((1, 2)) @ v["h"]


def early_exit(v, x):
    step = lambda c: (c[0] + 1, jnp.tanh(c[1] @ v["a"]))  # noqa: E731
    return lax.while_loop(lambda c: c[0] < 3, step, (0, x))[1].mean(1) @ v["h"]


def two_layers(between):
    """A function of the hidden layer, and of the leaves, between two dense layers."""
    return written(lambda v, x: between(x @ v["a"]).mean(1) @ v["h"], a=(D, D))


def sharded(v, x):
    mesh, P = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("d",)), jax.sharding.PartitionSpec
    inner = lambda x, a, h: jax.nn.relu(x @ a).mean(1) @ h  # noqa: E731
    return jax.shard_map(inner, mesh=mesh, in_specs=(P("d"), P(), P()), out_specs=P("d"))(x, v["a"], v["h"])


def mapped(v, x):
    return jax.pmap(lambda x, v: jax.nn.relu(x @ v["a"]).mean(1) @ v["h"], in_axes=(0, None))(x[None], v)[0]


@jax.custom_vjp
def leaky(x):
    return jnp.where(x > 0, x, 0.1 * x)


leaky.defvjp(lambda x: (leaky(x), x), lambda _, g: (g,))


def _double(source, target):
    target[...] = jnp.maximum(source[...], 0) * 2


def kernel_call(x):
    return pallas.pallas_call(_double, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)


def callback(x):
    return jax.pure_callback(np.asarray, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims")


def dequantised():  # blocks with scales and zero points of their own, as GPTQ stores them
    def apply_fn(v, x):
        blocks = v["q"].reshape(2, 3, D).astype(jnp.float32) - v["z"][:, None]
        return jax.nn.relu(x @ (blocks * v["s"][:, None]).reshape(D, D)).mean(1) @ v["h"]

    shapes = {"s": (2, D), "z": (2, D), "h": (D, K)}
    v = zoo.randomise({name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()})
    return apply_fn, {**v, "q": jnp.arange(D * D, dtype=jnp.int8).reshape(D, D) % 16}, zoo.images(T, D)


def tokens():
    def apply_fn(v, x):
        embedded = v["e"][x]
        return (embedded + jax.nn.relu(embedded @ v["w1"]) @ v["w2"]) @ v["e"].T

    structs = {name: jax.ShapeDtypeStruct(s, np.float32) for name, s in (("e", (9, D)), ("w1", (D, 5)), ("w2", (5, D)))}
    return apply_fn, zoo.randomise(structs), np.arange(3 * T).reshape(3, T).astype(np.int32) % 9


class Lstm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(K)(nn.RNN(nn.LSTMCell(4))(x)[:, -1])


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(D)(nn.gelu(nn.Dense(5)(nn.LayerNorm()(x)))), None


class Stacked(nn.Module):
    @nn.compact
    def __call__(self, x):
        scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return nn.Dense(K)(scan()(nn.Dense(D)(x), None)[0].mean(1))


class Normed(nn.Module):
    kind: type

    @nn.compact
    def __call__(self, x):
        options = {"update_stats": False} if self.kind is nn.SpectralNorm else {}
        return nn.Dense(K)(nn.relu(self.kind(nn.Dense(D))(x, **options)).mean(1))


class EquinoxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    linear: eqx.nn.Linear

    def __init__(self):
        first, second = jax.random.split(jax.random.key(0))
        self.conv = eqx.nn.Conv2d(3, 4, 3, key=first)
        self.norm = eqx.nn.BatchNorm(4, "batch", mode="batch")
        self.linear = eqx.nn.Linear(4, K, key=second)

    def __call__(self, x, state):
        x, state = self.norm(self.conv(x), state, inference=True)
        return self.linear(jax.nn.relu(x).mean((1, 2))), state


def equinox_raw():
    model, state = eqx.nn.make_with_state(EquinoxNet)()
    arrays, static = eqx.partition(model, eqx.is_array)

    def apply_fn(v, x):
        one = lambda xi: eqx.combine(v["model"], static)(xi, v["state"])[0]  # noqa: E731
        return jax.vmap(one, axis_name="batch")(x)

    variables = {"model": arrays, "state": state}
    leaves, structure = jax.tree.flatten(variables)
    drawn = [leaf if leaf.ndim == 0 else jnp.abs(leaf) + 0.1 * k for k, leaf in enumerate(leaves)]
    return apply_fn, jax.tree.unflatten(structure, drawn), zoo.images(3, 6, 6)


def equinox_adapted():
    model, state = eqx.nn.make_with_state(EquinoxNet)()
    network = from_equinox(model, (6, 6, 3), state, channels_last=True)
    drawn = zoo.randomise(network.variables, seed=5)
    return network.apply_fn, {**drawn, "batch_stats": jax.tree.map(jnp.abs, drawn["batch_stats"])}, zoo.images(6, 6, 3)


def nnx_adapted():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)
            self.head = nnx.Linear(4, K, rngs=rngs)

        def __call__(self, x):
            return self.head(self.drop(nnx.relu(self.norm(self.conv(x))).mean((1, 2))))

    model = Net(nnx.Rngs(0))
    model.eval()
    network = from_nnx(model, (6, 6, 3))
    return network.apply_fn, zoo.randomise(network.variables), zoo.images(6, 6, 3)


def haiku_adapted():
    def net(x, is_training):
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Conv2D(4, 3)(x), is_training))
        return hk.Linear(K)(x.mean((1, 2)))

    transformed, images = hk.transform_with_state(net), zoo.images(6, 6, 3)
    params, state = transformed.init(jax.random.key(0), images, True)
    network = from_haiku(transformed, params, state, images, is_training=False)
    drawn = zoo.randomise(network.variables)  # haiku's averages are positive
    drawn["batch_stats"] = jax.tree.map(jnp.abs, drawn["batch_stats"])
    return network.apply_fn, drawn, images


IMAGE = (8, 8, 3)
WRITTEN = {
    "rotary attention, SwiGLU": written(
        attention, q=(D, 8), k=(D, 4), v=(D, 4), o=(8, D), norm=(D,), gate=(D, 5), up=(D, 5), down=(5, D)
    ),
    "GRU": written(gru, head=5, **{f"w{g}": (D, 5) for g in "zrh"}, **{f"u{g}": (5, 5) for g in "zrh"}),
    "experts": written(experts, r=(D, 3), w1=(3, D, 5), w2=(3, 5, D)),
    "sorted experts": written(sorted_experts, w=(D, D), r=(D, 3), w1=(3, D, D)),
    "FFT": written(lambda v, x: jax.nn.gelu((x + jnp.fft.fft2(x).real) @ v["w"]).mean(1) @ v["h"], w=(D, D)),
    "spectral convolution": written(spectral, r=(2, D, D), i=(2, D, D), w=(D, D)),
    "state space": written(state_space, dt=(5, 5), B=(5, 5), out=(5, D), **{"in": (D, 5)}),
    "GLU, maxout, pixel shuffle": written(gated_convs, IMAGE, 4, c1=(3, 3, 3, 8), c2=(3, 3, 4, 8), c3=(3, 3, 2, 8)),
    "channel shuffle": written(shuffled, IMAGE, 8, c1=(3, 3, 3, 8), g=(3, 3, 4, 8), s1=(8, 2), s2=(2, 8)),
    "shifted windows": written(windows, IMAGE, D, embed=(2, 2, 3, D), w=(D, 5), o=(5, D)),
    "FiLM": written(film, IMAGE, 4, c=(3, 3, 3, 4), scale=(4,), f=(4, 8)),
    "local response norm": written(neighbours, IMAGE, 4, c=(3, 3, 3, 4)),
    "resized": written(resized, IMAGE, 4, c1=(3, 3, 3, 4), c2=(3, 3, 7, 4)),
    "side adapter": written(
        lambda v, x: jax.nn.relu(x @ v["w"] + (x @ v["A"]) @ v["B"]).mean(1) @ v["h"], w=(D, D), A=(D, 2), B=(2, D)
    ),
    "a kernel used three times": written(
        lambda v, x: functools.reduce(lambda c, _: jnp.tanh(c @ v["w"]), range(3), x).mean(1) @ v["h"], w=(D, D)
    ),
    "a kernel and its transpose": written(
        lambda v, x: jnp.tanh(jnp.tanh(x @ v["w"]) @ v["w"].T).mean(1) @ v["h"], w=(D, D)
    ),
    "branches": written(
        lambda v, x: (
            lax.cond(x.sum() > 0, lambda x: jax.nn.relu(x @ v["a"]), lambda x: jnp.tanh(x @ v["b"]), x).mean(1) @ v["h"]
        ),
        a=(D, D),
        b=(D, D),
    ),
    "early exit": written(early_exit, a=(D, D)),
    "bfloat16": written(
        lambda v, x: jax.nn.relu(x.astype("bfloat16") @ v["a"].astype("bfloat16")).astype("float32").mean(1) @ v["h"],
        a=(D, D),
    ),
    "sorted pooling": written(
        lambda v, x: jnp.sort(jax.nn.relu(x @ v["a"]), 1)[:, -2:].reshape(x.shape[0], -1) @ v["h"], head=2 * D, a=(D, D)
    ),
    "ramp": two_layers(lambda y: jax.nn.relu(y + jnp.arange(6.0) / 6)),
    "hard sigmoid behind a bias": written(
        lambda v, x: (jnp.clip((x @ v["a"] + v["b"]) + 3.0, 0, 6) / 6).mean(1) @ v["h"], a=(D, D), b=(D,)
    ),
    "custom derivative": two_layers(jax.checkpoint(leaky)),
    "callback": two_layers(callback),
    "pallas": two_layers(kernel_call),
    "shard_map": written(sharded, a=(D, D)),
    "pmap": written(mapped, a=(D, D)),
    "blocks of integers": dequantised,
    "tied embedding": tokens,
    "linen LSTM": lambda: zoo.linen(Lstm(), T, D),
    "linen scan": lambda: zoo.linen(Stacked(), T, D),
    "linen weight norm": lambda: zoo.linen(Normed(nn.WeightNorm), T, D),
    "linen spectral norm": lambda: zoo.linen(Normed(nn.SpectralNorm), T, D),
    "equinox": equinox_raw,
    "from_equinox": equinox_adapted,
    "from_nnx": nnx_adapted,
    "from_haiku": haiku_adapted,
}
