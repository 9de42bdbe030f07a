"""An architecture with its image shape, classes and normalisation."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax import tree_util

from jaxguard.errors import DataError
from jaxguard.models import initialization
from jaxguard.models.layers import Classifier
from jaxguard.types import Network, Variables


@dataclass(frozen=True)
class Model:
    """Pure functions of one architecture; holds no weights, hashable, made by `jaxguard.models.build`.

    Attributes:
        spec: canonical specification such as `resnet20:width=0.5`.
        module: the Flax module.
        input_shape: `(H, W, C)` of one image.
        num_classes: `K`.
        mean: per channel, subtracted from images in [0, 1]; None for zero.
        std: per channel, positive; the centred images are divided by it; None for one.
    """

    spec: str
    module: Classifier
    input_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def apply_fn(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Logits in evaluation mode.

        Args:
            variables: `{"params": ..., "batch_stats": ...}`.
            images: `[B, H, W, C]` floating point in [0, 1], not normalised.

        Returns:
            `[B, K]` float32.

        Raises:
            DataError: the images have another shape or are not floating point; under tracing too.
        """
        logits = self.module.apply(variables, self._normalize(images), train=False)
        return _at_least_float32(logits)

    def train_fn(self, variables: Variables, images: jax.Array) -> tuple[jax.Array, Variables]:
        """Logits in training mode, which normalises by batch statistics and updates the running ones.

        Args:
            variables: as for `apply_fn`.
            images: as for `apply_fn`.

        Returns:
            `[B, K]` float32 logits, and the variables with new `batch_stats`; the others are the same objects.

        Raises:
            DataError: as for `apply_fn`.
        """
        images = self._normalize(images)
        logits, updates = self.module.apply(variables, images, train=True, mutable=["batch_stats"])
        return _at_least_float32(logits), {**variables, **updates}

    def network(self, variables: Variables) -> Network:
        """The network of this architecture with the given variables; `shapes()` suffices for the graph.

        Networks of equal models have identical functions, so that all checkpoints of one architecture share one channel
        graph and one set of compiled programs.
        """
        model = _first_equal(self)  # bound methods are equal only if they belong to the same object
        return Network(variables, model.apply_fn, jax.ShapeDtypeStruct(self.input_shape, np.float32), model.train_fn)

    def shapes(self) -> dict[str, Any]:
        """The variables as `jax.ShapeDtypeStruct`s; nothing is allocated or compiled."""
        return jax.tree.map(lambda leaf: leaf, _shapes(self))  # a copy: the cached one must not be edited

    def init(self, key: jax.Array) -> Variables:
        """Random float32 variables, reproducible from `key` on every backend; see `jaxguard.models.initialization`.

        >>> from jaxguard import models
        >>> variables = models.build("cnn", num_classes=10, input_shape=(16, 16, 1)).init(jax.random.key(0))
        >>> variables["params"]["conv1"]["kernel"].shape
        (3, 3, 1, 16)
        """

        def fill(path: tree_util.KeyPath, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
            name = tree_util.keystr(path, simple=True, separator="/")
            return initialization.fill(name, leaf.shape, leaf.dtype, key)

        return jax.device_put(tree_util.tree_map_with_path(fill, _shapes(self)))

    def _normalize(self, images: jax.Array) -> jax.Array:
        if images.ndim != 4 or images.shape[1:] != self.input_shape:
            raise DataError(
                f"expected images {_shape_text(('B', *self.input_shape))} for {self.spec}, got "
                f"{_shape_text(images.shape)}; convert the images, or build the model with their input_shape"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise DataError(
                f"expected floating-point images in [0, 1] for {self.spec}, got {images.dtype}; divide 8-bit by 255"
            )
        if self.mean is not None:
            images = images - jnp.asarray(self.mean, images.dtype)[None, None, None]
        if self.std is not None:
            images = images / jnp.asarray(self.std, images.dtype)[None, None, None]
        return images


def _at_least_float32(logits: Any) -> jax.Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _shape_text(shape: tuple[Any, ...]) -> str:
    return f"[{', '.join(str(length) for length in shape)}]"


@functools.lru_cache(maxsize=128)
def _first_equal(model: Model) -> Model:
    return model


@functools.lru_cache(maxsize=256)  # identification tries every architecture
def _shapes(model: Model) -> dict[str, Any]:
    images = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
    return jax.eval_shape(lambda x: model.module.init(jax.random.key(0), x), images)
