"""Fine-tuning of all layers or of the last ones: the owner's weights, moved a little by the thief's labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import numpy as np

from jaxguard.graph.program import leaf_paths
from jaxguard.theft import protocol
from jaxguard.theft.last_layers import last_layers, parameters
from jaxguard.theft.protocol import Network, TheftError, TheftReport
from jaxguard.theft.recipe import Recipe, Schedule
from jaxguard.training import Augment, CrossEntropyGradient, Progress, RunningStatistics
from jaxguard.types import Batch, TrainFn, Variables

Statistics = Literal["move", "stay"]


@dataclass(frozen=True)
class Frozen:
    """A training-mode model of which some leaves are learned; gradients are taken of those alone.

    Its variables are `{"params": {path: leaf}, "rest": {path: leaf}}`.

    Attributes:
        train_fn: the whole model.
        structure: of its variables.
        paths: of its leaves, in order.
        learned: paths of the leaves that are learned.
    """

    train_fn: TrainFn
    structure: Any
    paths: tuple[str, ...]
    learned: frozenset[str]

    def split(self, variables: Variables) -> dict[str, dict[str, Any]]:
        """The whole model's variables in two parts."""
        leaves = dict(zip(self.paths, jax.tree.leaves(variables), strict=True))
        return {
            "params": {path: leaf for path, leaf in leaves.items() if path in self.learned},
            "rest": {path: leaf for path, leaf in leaves.items() if path not in self.learned},
        }

    def join(self, parts: Mapping[str, Mapping[str, Any]]) -> Any:
        """Undoes `split`."""
        leaves = {**parts["params"], **parts["rest"]}
        return jax.tree.unflatten(self.structure, [leaves[path] for path in self.paths])

    def __call__(self, variables: Variables, images: jax.Array) -> tuple[jax.Array, Variables]:
        """Logits, and the parts after the batch."""
        logits, after = self.train_fn(self.join(variables), images)
        return logits, self.split(after)


def tune(
    network: Network,
    data: Batch,
    key: jax.Array,
    recipe: Recipe,
    *,
    layers: int | None,
    statistics: Statistics,
    progress: Progress | None = None,
) -> tuple[Network, np.ndarray]:
    """Learns labels by all layers or by the last ones.

    Args:
        network: where to start; left untouched.
        data: images and labels.
        key: draws batches and augmentation.
        recipe: how.
        layers: how many of the last layers learn; None for all parameters.
        statistics: whether running statistics move, as in training mode, or stay, as in evaluation mode.
        progress: told how far the training is.

    Returns:
        The network with other variables, and the loss of every step.

    Raises:
        TheftError: the training-mode model or the graph is missing, there are fewer layers, or the loss diverged.
        DataError: a label the model has no class for.
    """
    method = recipe.method
    if statistics not in ("move", "stay"):
        raise TheftError(f"expected statistics to be move or stay, came {statistics!r} in {method}()")
    protocol.require_labels(data, protocol.num_classes(network.apply_fn, network.variables, data.images), method)
    train_fn = RunningStatistics(network.apply_fn)
    if statistics == "move":
        train_fn = protocol.require_training(network.train_fn, method)
    if layers is None:
        tuned, losses = recipe.learn(CrossEntropyGradient(train_fn), network.variables, data, key, progress=progress)
        return replace(network, variables=tuned), losses
    graph = protocol.require_graph(network, method)
    learned = parameters(graph, last_layers(graph, layers, method), method)
    structure, paths = jax.tree.structure(network.variables), leaf_paths(network.variables)
    frozen = Frozen(train_fn, structure, paths, learned)
    parts = frozen.split(network.variables)
    tuned, losses = recipe.learn(CrossEntropyGradient(frozen), parts, data, key, progress=progress)
    return replace(network, variables=frozen.join(tuned)), losses


def fine_tuning(
    owner: Network,
    data: Batch | None,
    key: jax.Array,
    *,
    layers: int | None = None,
    statistics: Statistics = "move",
    epochs: int = 30,
    batch_size: int = 512,
    learning_rate: float = 5e-4,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Schedule = "constant",
    augment: Augment | None = None,
    progress: Progress | None = None,
) -> tuple[Network, TheftReport]:
    """Fine-tunes all layers (FTAL) or the last ones (FTLL) on the thief's labels.

    The defaults are those of SAC's code for CIFAR-10. Its last layers are the three dense ones of a VGG-16, `layers=3`,
    and the running statistics of the others still move.

    Args:
        owner: the stolen model.
        data: the thief's images and labels.
        key: draws batches and augmentation.
        layers: how many of the last layers learn, 1 for the one that makes the logits; None for all parameters.
        statistics: whether BatchNorms work as in training, and their running statistics `move`, or as in evaluation,
            and they `stay`.
        epochs: passes over the images; 0 changes nothing.
        batch_size: images per step.
        learning_rate: of SGD.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD.
        schedule: how the rate falls.
        augment: `(key, images) -> images`.
        progress: told how far the training is.

    Returns:
        The copy and a report with the curve `loss`, `[steps]`.

    Raises:
        TheftError: something is missing or out of range, or the loss diverged.
        DataError: no images, or labels the model has no class for.

    Example:
        >>> linear = lambda w, images: images.reshape(len(images), -1) @ w
        >>> owner = Network(np.eye(4), linear, lambda w, images: (linear(w, images), w))
        >>> data = Batch(np.eye(4).reshape(4, 2, 2, 1), np.arange(4))
        >>> copy, report = fine_tuning(owner, data, jax.random.key(0), epochs=3, learning_rate=0.1)
        >>> copy.variables.shape, bool(report.curves["loss"][-1] < report.curves["loss"][0])
        ((4, 4), True)

    Reference:
        Guan, Liang, He: Are You Stealing My Model? Sample Correlation for Fingerprinting Deep Neural Networks,
        NeurIPS 2022.
    """
    data = protocol.require_data(data, "fine_tuning")
    recipe = Recipe(
        "fine_tuning", epochs, batch_size, learning_rate, momentum, weight_decay, schedule, augment
    )  # fmt: skip
    copy, losses = tune(owner, data, key, recipe, layers=layers, statistics=statistics, progress=progress)
    options = {"layers": layers, "statistics": statistics, **recipe.options()}
    return copy, TheftReport("fine-tuning", options, curves={"loss": losses})
