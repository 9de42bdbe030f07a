"""Small ReLU networks of several tasks, copies and independents of them: what TAFA-style fingerprints are measured on.

A task's images are split into the owner's, everybody else's and a test part. Every network is trained by one recipe;
independents learn the others' part, in two architectures, and thieves have it too.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from sklearn import datasets

from jaxguard import data, models, surgery
from jaxguard.graph.program import leaf_paths
from jaxguard.suspects import Suspect
from jaxguard.theft import SGD, THEFTS, Blueprint
from jaxguard.theft.fine_pruning import Pruned, activations, kept, prunable, quietest
from jaxguard.training import CrossEntropyGradient, GradientFn, LossGradient, RunningStatistics
from jaxguard.types import Batch, Network, TrainFn, Variables

BATCH_SIZE = 64
TEST_SHARE = 0.2
SHARES = (0.2, 0.4, 0.6)
BITS = (8, 4, 3)


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Half the squared error, summed over outputs; targets are `[B, m]`."""
    return ((outputs.reshape(len(outputs), -1) - targets) ** 2).sum(-1).mean() / 2


@dataclass(frozen=True)
class ConvolutionalAutoencoder:
    """Two strided convolutions to a code of 2 x 2, a dense layer back to 4 x 4, twice as large, and a convolution.

    Attributes:
        width: channels of the first convolution, and of the decoder.
        code: channels of the code.
    """

    width: int
    code: int
    input_shape: tuple[int, ...] = (8, 8, 1)

    @property
    def spec(self) -> str:
        """What a table calls it."""
        return f"convolutional autoencoder {self.width}-{self.code}"

    def init(self, key: jax.Array) -> Variables:
        """He normal weights, biases of zero."""
        shapes = {
            "conv1": (3, 3, 1, self.width), "conv2": (3, 3, self.width, self.code),
            "dense": (4 * self.code, 16 * self.width), "conv3": (3, 3, self.width, 1),
        }  # fmt: skip
        keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
        return {
            name: {
                "kernel": jax.random.normal(keys[name], shape)
                * np.sqrt(2 / np.prod(shape[:-1]))
                * (0.1 if name == "conv3" else 1),
                "bias": jnp.zeros(shape[-1]),
            }
            for name, shape in shapes.items()
        }

    def apply_fn(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Images out of images."""

        def conv(name: str, x: jax.Array, stride: int) -> jax.Array:
            layout = ("NHWC", "HWIO", "NHWC")
            layer = variables[name]
            found = lax.conv_general_dilated(x, layer["kernel"], (stride, stride), "SAME", dimension_numbers=layout)
            return found + layer["bias"]

        code = jax.nn.relu(conv("conv2", jax.nn.relu(conv("conv1", images, 2)), 2))
        flat = code.reshape(len(images), -1) @ variables["dense"]["kernel"] + variables["dense"]["bias"]
        small = jax.nn.relu(flat).reshape(len(images), 4, 4, self.width)
        return conv("conv3", small.repeat(2, axis=1).repeat(2, axis=2), 1)

    def network(self, variables: Variables) -> Network:
        """The network with given weights; in training mode nothing moves but those."""
        return Network(variables, self.apply_fn, self.input_shape, RunningStatistics(self.apply_fn))


@dataclass(frozen=True)
class Task:
    """What networks learn.

    Attributes:
        name: of the table's column.
        models: architectures, the owner's first; independents take turns.
        gradient_fn: `training-mode model -> gradient` of the task's loss.
        epochs: of a training from scratch.
        learning_rate: of its first step.
        owners: the owner's images and targets.
        others: everybody else's.
        test: nobody's.
    """

    name: str
    models: tuple[Any, ...]
    gradient_fn: Callable[[TrainFn], GradientFn]
    epochs: int
    learning_rate: float
    owners: Batch
    others: Batch
    test: Batch

    def learn(
        self, train_fn: TrainFn, variables: Variables, batch: Batch, key: jax.Array, *, epochs: int, rate: float
    ) -> Any:
        """Trains by the task's loss."""
        sgd = SGD(epochs, rate, batch_size=BATCH_SIZE, schedule="cosine")
        return sgd.learn(self.gradient_fn(train_fn), variables, batch, key)[0]

    def network(self, model: Blueprint, batch: Batch, key: jax.Array) -> Network:
        """A network from scratch."""
        key_init, key_learn = jax.random.split(key)
        options = {"epochs": self.epochs, "rate": self.learning_rate}
        start = model.network(model.init(key_init))
        assert start.train_fn is not None
        return start.with_variables(self.learn(start.train_fn, start.variables, batch, key_learn, **options))

    def quality(self, network: Network) -> float:
        """On the test part: accuracy, or the share of the variance that is explained (R^2)."""
        outputs = np.asarray(network.apply_fn(network.variables, jnp.asarray(self.test.images)))
        targets = np.asarray(self.test.labels)
        if targets.ndim == 1:
            return float((outputs.argmax(-1) == targets).mean())
        errors = outputs.reshape(targets.shape) - targets
        return float(1 - (errors**2).sum() / ((targets - targets.mean(0)) ** 2).sum())

    def copies(self, owner: Network, key: jax.Array) -> Iterator[tuple[str, Network]]:
        """The owner's network, stolen once in every way."""
        assert owner.train_fn is not None
        short = {"epochs": self.epochs // 3, "rate": self.learning_rate / 5}
        long = {"epochs": self.epochs, "rate": self.learning_rate}
        keys = iter(jax.random.split(key, 4 + 2 * len(SHARES)))
        for name, options in (("fine-tuning", short), ("fine-tuning, long", long)):
            variables = self.learn(owner.train_fn, owner.variables, self.others, next(keys), **options)
            yield name, owner.with_variables(variables)
        cuts = {f"pruning {share:.0%}": largest(owner, share) for share in SHARES}
        cuts |= {f"channels {share:.0%}": loudest(owner, share, self.others.images) for share in SHARES}
        pruned = Pruned(owner.train_fn)
        for name, keep in cuts.items():
            variables = jax.tree.map(jnp.multiply, owner.variables, keep)
            yield name, owner.with_variables(variables)
            parts = self.learn(pruned, pruned.split(variables, keep), self.others, next(keys), **short)
            yield f"{name}, tuned", owner.with_variables(pruned.join(parts, like=variables))
        for bits in BITS:
            yield f"{bits} bits", THEFTS["quantisation"](owner, None, key, bits=bits)[0]
        permuted, _ = THEFTS["permutation"](owner, None, next(keys))
        yield "permutation, rescaling", THEFTS["rescaling"](permuted, None, next(keys))[0]


def largest(network: Network, share: float) -> Any:
    """1 for weights that are kept and 0 for the `share` of each kernel that is smallest; like the variables."""
    leaves = dict(zip(leaf_paths(network.variables), jax.tree.leaves(network.variables), strict=True))
    keep: Any = jax.tree.map(jnp.ones_like, network.variables)
    for view in {repr(producer.kernel): producer.kernel for producer in network.graph.producers}.values():
        sizes = np.abs(np.asarray(leaves[view.path])[view.index])

        def mask(ones: jax.Array, view: Any = view, sizes: np.ndarray = sizes) -> jax.Array:
            whole = np.array(ones)
            whole[view.index] = sizes > np.quantile(sizes, share)
            return jnp.asarray(whole)

        keep = surgery.edit(keep, {view.path: mask})
    return keep


def loudest(network: Network, share: float, images: Any) -> Any:
    """1 for channels that are kept and 0 for the `share` of each hidden layer that is quietest; like the variables."""
    layers = prunable(network.graph)
    seen = activations(network.graph, layers, network.variables, jnp.asarray(images))
    none = [np.zeros(layer.channels, bool) for layer in layers]
    count = round(share * sum(layer.channels for layer in layers))
    return kept(network.graph, layers, network.variables, quietest(jax.device_get(seen), none, count))


def tasks(seed: int) -> tuple[Task, ...]:
    """Classification and autoencoding, dense and convolutional, and regression; the seed splits their data."""
    digits = data.load("digits", image_size=8, seed=seed)
    images = np.concatenate([np.asarray(part.images) for part in (digits.train, digits.clean, digits.test)])
    labels = np.concatenate([np.asarray(part.labels) for part in (digits.train, digits.clean, digits.test)])
    pixels = images.reshape(len(images), -1)
    table, target = (np.asarray(part) for part in datasets.load_diabetes(return_X_y=True))
    table = (table - table.min(0)) / np.ptp(table, axis=0)
    target = (target - target.mean()) / target.std()
    rows, column = table.reshape(-1, 1, 10, 1).astype(np.float32), target[:, None].astype(np.float32)

    def built(outputs: int, shape: tuple[int, ...], *specs: str) -> tuple[Any, ...]:
        return tuple(models.build(spec, num_classes=outputs, input_shape=shape) for spec in specs)

    classifiers = built(10, (8, 8, 1), "mlp:hidden=128x64", "mlp:hidden=96x96")
    norms = built(10, (8, 8, 1), "cnn:width=0.5", "cnn:width=0.375")
    regressors = built(1, (1, 10, 1), "mlp:hidden=64x32", "mlp:hidden=48x48")
    dense = built(64, (8, 8, 1), "mlp:hidden=128x32x128", "mlp:hidden=96x40x96")
    convolutional = (ConvolutionalAutoencoder(16, 16), ConvolutionalAutoencoder(20, 12))
    digits_parts, images_parts = _split(Batch(images, labels), seed), _split(Batch(images, pixels), seed)
    squared = partial(LossGradient, loss_fn=squared_error)
    return (
        Task("classification", classifiers, CrossEntropyGradient, 30, 0.05, *digits_parts),
        Task("convolutional classification", norms, CrossEntropyGradient, 20, 0.05, *digits_parts),
        Task("regression", regressors, squared, 60, 0.02, *_split(Batch(rows, column), seed)),
        Task("autoencoder", dense, squared, 100, 0.02, *images_parts),
        Task("convolutional autoencoder", convolutional, squared, 90, 0.002, *images_parts),
    )


def _split(whole: Batch, seed: int) -> tuple[Batch, Batch, Batch]:
    order = np.random.default_rng(seed).permutation(len(whole.images))
    tested = round(TEST_SHARE * len(order))
    owned = tested + (len(order) - tested) // 2

    def part(rows: np.ndarray) -> Batch:
        return Batch(np.asarray(whole.images)[rows], np.asarray(whole.labels)[rows])

    return part(order[tested:owned]), part(order[owned:]), part(order[:tested])


def suspect_of(name: str, network: Network) -> Suspect:
    """What is queried."""
    return Suspect(name, network)
