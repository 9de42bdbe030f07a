"""Fine-pruning as a theft: cut the quietest channels, a few at a time, and fine-tune in between.

Not the defense of that name, which looks at the last hidden layer and stops where accuracy falls: a thief prunes
everywhere, as far as he likes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import surgery, training
from jaxguard.graph import ChannelGraph, pairing
from jaxguard.theft import protocol
from jaxguard.theft.protocol import Network, TheftError, TheftReport
from jaxguard.theft.recipe import Recipe, Schedule
from jaxguard.training import Augment, CrossEntropyGradient, Progress
from jaxguard.types import Batch, TrainFn, Variables

Scope = Literal["layer", "network"]
Dormancy = Literal["magnitude", "mean"]


class Snapshot(NamedTuple):
    """A copy on the way.

    Attributes:
        share: of the hidden channels that are cut.
        network: the copy.
        report: how it was made.
    """

    share: float
    network: Network
    report: TheftReport


@dataclass(frozen=True)
class Pruned:
    """A training-mode model whose cut channels stay cut; a value, so that all cuts share a compiled step.

    Its variables are `{"params": ..., "state": ..., "keep": ...}`, `keep` like the parameters: 0 where cut, else 1.

    Attributes:
        train_fn: the whole model.
    """

    train_fn: TrainFn

    def __call__(self, variables: Variables, images: jax.Array) -> tuple[jax.Array, Variables]:
        """Logits, and the variables after the batch."""
        params = jax.tree.map(jnp.multiply, variables["params"], variables["keep"])
        logits, after = self.train_fn(training.combine(params, variables["state"]), images)
        return logits, {**variables, "state": training.partition(after)[1]}


def prunable(graph: ChannelGraph, *, only_convolutions: bool = False) -> tuple[pairing.Layer, ...]:
    """Hidden layers whose channels may be cut, each kernel once.

    Args:
        graph: the model's channel graph.
        only_convolutions: whether dense layers are left alone.

    Returns:
        The layers, in program order.

    Raises:
        TheftError: there are none.
    """
    found: dict[str, str] = {}
    for number, producer in enumerate(graph.producers):
        if number not in graph.outputs and (producer.is_convolution or not only_convolutions):
            found.setdefault(repr(producer.kernel), producer.name)
    if not found:
        raise TheftError(
            f"expected hidden layers to prune, came none among {len(graph.producers)} in fine_pruning() with "
            f"{only_convolutions=}; a model with nothing but an output layer has none"
        )
    return tuple(pairing.alone(graph, name) for name in found.values())


@partial(jax.jit, static_argnums=(0, 1), static_argnames="dormancy")
def activations(
    graph: ChannelGraph,
    layers: tuple[pairing.Layer, ...],
    variables: Variables,
    images: jax.Array,
    *,
    dormancy: Dormancy = "magnitude",
) -> list[jax.Array]:
    """Mean activation of every channel over images and positions, behind its own bias and norm, before the ReLU.

    Args:
        graph: the model's channel graph.
        layers: of `prunable`.
        variables: its weights.
        images: `[N, ...]`.
        dormancy: mean of the absolute value (`magnitude`), or of the value itself (`mean`).

    Returns:
        float32 `[C]` per layer.
    """
    program = graph.program_at(images)
    values = program.evaluate({**graph.leaves(program, variables), program.images: images})
    found = []
    for layer in layers:
        producer = graph.producer(layer.name)
        value = values[producer.gate].astype(jnp.float32)
        value = jnp.abs(value) if dormancy == "magnitude" else value
        others = [axis for axis in range(value.ndim) if axis not in producer.gate_axes]
        found.append(jnp.transpose(value, (*others, *producer.gate_axes)).mean(range(len(others))).reshape(-1))
    return found


def quietest(measured: Sequence[np.ndarray], masks: Sequence[np.ndarray], count: int, scope: Scope) -> list[Any]:
    """Cuts more channels, those of the smallest activation; one channel of each layer always stays.

    Args:
        measured: `[C]` per layer, of `activations`.
        masks: bool `[C]` per layer, what is cut already.
        count: how many more.
        scope: whether channels are compared within their `layer`, which cuts the same share of each, or all over the
            `network`.

    Returns:
        The new masks.

    Example:
        >>> loud, quiet = np.array([5.0, 7.0, 6.0, 8.0]), np.array([1.0, 2.0, 3.0, 4.0])
        >>> none = [np.zeros(4, bool)] * 2
        >>> [int(mask.sum()) for mask in quietest([loud, quiet], none, 4, "layer")]
        [2, 2]
        >>> [int(mask.sum()) for mask in quietest([loud, quiet], none, 4, "network")]
        [1, 3]
    """
    keys = []
    for activation, mask in zip(measured, masks, strict=True):
        ranks = np.argsort(np.argsort(np.where(mask, -np.inf, activation), kind="stable"), kind="stable")
        key = (ranks + 0.5) / len(ranks) if scope == "layer" else activation.astype(np.float64)
        keys.append(np.where(mask | (ranks == len(ranks) - 1), np.inf, key))
    flat = np.concatenate(keys)
    chosen = np.argsort(flat, kind="stable")[:count]
    cut = np.isin(np.arange(len(flat)), chosen[np.isfinite(flat[chosen])])
    edges = np.cumsum([len(mask) for mask in masks])[:-1]
    return [mask | more for mask, more in zip(masks, np.split(cut, edges), strict=True)]


def snapshots(
    owner: Network,
    data: Batch | None,
    key: jax.Array,
    *,
    shares: Sequence[float] = tuple(k / 20 for k in range(1, 17)),
    every: int = 50,
    scope: Scope = "layer",
    dormancy: Dormancy = "magnitude",
    only_convolutions: bool = False,
    burst: int = 2056,
    epochs: int = 1,
    batch_size: int = 512,
    learning_rate: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Schedule = "constant",
    augment: Augment | None = None,
    progress: Progress | None = None,
) -> Iterator[Snapshot]:
    """Copies of more and more channels cut, in one walk; for the arguments see `fine_pruning`.

    Args:
        owner: the stolen model.
        data: the thief's images and labels.
        key: draws images, batches and augmentation.
        shares: of the hidden channels, rising; a copy is handed out at each. By default 5 % to 80 %.
        every: channels cut between two bursts of fine-tuning.
        scope: what activations are compared within.
        dormancy: of what activations are the mean.
        only_convolutions: whether dense layers are left alone.
        burst: images of a burst.
        epochs: passes over them.
        batch_size: images per step.
        learning_rate: of SGD.
        momentum: of SGD.
        weight_decay: of SGD.
        schedule: how the rate falls within a burst.
        augment: `(key, images) -> images`.
        progress: told how far each burst is.

    Yields:
        A snapshot per share.

    Raises:
        TheftError: something is missing or out of range, or a loss diverged.
        DataError: no images, or labels the model has no class for.
    """
    data = protocol.require_data(data, "fine_pruning")
    recipe = Recipe(
        "fine_pruning", epochs, batch_size, learning_rate, momentum, weight_decay, schedule, augment
    )  # fmt: skip
    rising = list(shares) == sorted(shares) and all(0 <= share < 1 for share in shares)
    if not rising or min(every, burst) < 1 or scope not in get_args(Scope) or dormancy not in get_args(Dormancy):
        raise TheftError(
            "expected shares in [0, 1) that rise, every and burst >= 1, a scope of layer or network and a dormancy of "
            f"magnitude or mean, came {tuple(shares)}, {every=}, {burst=}, {scope=}, {dormancy=} in fine_pruning(); "
            "SAC's are 0.05, 0.1, ..., 50 and 2056"
        )
    train_fn = protocol.require_training(owner.train_fn, "fine_pruning")
    graph = protocol.require_graph(owner, "fine_pruning")
    protocol.require_labels(data, protocol.num_classes(owner.apply_fn, owner.variables, data.images), "fine_pruning")
    protocol.require_finite(owner.variables, "fine_pruning")
    layers = prunable(graph, only_convolutions=only_convolutions)
    masks: list[Any] = [np.zeros(layer.channels, bool) for layer in layers]
    total = sum(layer.channels for layer in layers)
    variables: Any = owner.variables
    pruner, gradient_fn = _Pruner(graph, layers), CrossEntropyGradient(Pruned(train_fn))
    losses, bursts, count = [], 0, 0
    options = {
        "every": every,
        "scope": scope,
        "dormancy": dormancy,
        "only_convolutions": only_convolutions,
        "burst": burst,
    }
    for share in shares:
        wanted = min(round(share * total), total - len(layers))
        while count < wanted:
            key_burst, key_learn = jax.random.split(jax.random.fold_in(key, bursts))
            chosen = jax.random.permutation(key_burst, len(data.images))[:burst]
            drawn = Batch(*(jnp.asarray(part)[chosen] for part in data))
            seen = activations(graph, layers, variables, drawn.images[:batch_size], dormancy=dormancy)
            masks = quietest(jax.device_get(seen), masks, min(every, wanted - count), scope)
            count = sum(int(mask.sum()) for mask in masks)
            parts, loss = recipe.learn(gradient_fn, pruner.split(variables, masks), drawn, key_learn, progress=progress)
            variables = pruner.join(parts, variables)
            losses.append(loss)
            bursts += 1
        note = (
            f"{count} of {total} hidden channels in {len(layers)} layers were cut, with {bursts} bursts of fine-tuning."
        )
        curves = {"loss": np.concatenate([*losses, np.zeros(0, np.float32)])}
        report = TheftReport("fine-pruning", {"share": share, **options, **recipe.options()}, (note,), curves)
        yield Snapshot(share, replace(owner, variables=variables), report)


@dataclass(frozen=True)
class _Pruner:
    """The layers of a model that are pruned."""

    graph: ChannelGraph
    layers: tuple[pairing.Layer, ...]

    def cut(self, variables: Variables, masks: Sequence[np.ndarray]) -> Any:
        """Variables in which the masked channels are zero."""
        for layer, mask in zip(self.layers, masks, strict=True):
            if mask.any():
                variables = surgery.cut(self.graph, variables, layer, mask)
        return variables

    def split(self, variables: Variables, masks: Sequence[np.ndarray]) -> dict[str, Any]:
        """Variables of `Pruned`."""
        params, state = training.partition(self.cut(variables, masks))
        keep = self.cut(jax.tree.map(jnp.ones_like, variables), masks)
        return {"params": params, "state": state, "keep": training.partition(keep)[0]}

    def join(self, parts: Variables, like: Variables) -> Any:
        """The whole model's variables."""
        leaves = jax.tree.leaves(training.combine(parts["params"], parts["state"]))
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


def fine_pruning(
    owner: Network,
    data: Batch | None,
    key: jax.Array,
    *,
    share: float = 0.5,
    every: int = 50,
    scope: Scope = "layer",
    dormancy: Dormancy = "magnitude",
    only_convolutions: bool = False,
    burst: int = 2056,
    epochs: int = 1,
    batch_size: int = 512,
    learning_rate: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Schedule = "constant",
    augment: Augment | None = None,
    progress: Progress | None = None,
) -> tuple[Network, TheftReport]:
    """Cuts a share of the hidden channels, those of the smallest mean absolute activation, and fine-tunes on the way.

    SAC's code for CIFAR-10 cuts filters of a VGG-16, fine-tunes after every 50 on at most 2,056 images and keeps copies
    from 5 % to 80 % (`snapshots`). Channels are gated through the graph: they stay in their place, and at zero. That
    activations are compared within a layer, and the epoch and batch size of a burst, are ours.

    Args:
        owner: the stolen model; its graph and training mode are needed.
        data: the thief's images and labels.
        key: draws images, batches and augmentation.
        share: of the hidden channels, in [0, 1); one of each layer always stays. 0 changes nothing.
        every: channels cut between two bursts of fine-tuning; activations are measured anew for each cut, on a batch.
        scope: whether activations are compared within their `layer`, which cuts the same share of each, or all over the
            `network`.
        dormancy: whether activations, before the ReLU, are means of the `magnitude`, or of the value (`mean`), as in
            the code of SAC's second paper; a channel that is always negative is then cut first.
        only_convolutions: whether dense layers are left alone, as in SAC.
        burst: most images of a burst, drawn anew each time.
        epochs: passes over them; 0 only prunes.
        batch_size: images per step.
        learning_rate: of SGD.
        momentum: of SGD.
        weight_decay: of SGD.
        schedule: how the rate falls within a burst.
        augment: `(key, images) -> images`.
        progress: told how far each burst is.

    Returns:
        The copy and a report with the curve `loss` of all bursts.

    Raises:
        TheftError: something is missing or out of range, or a loss diverged.
        DataError: no images, or labels the model has no class for.
    """
    walk = snapshots(
        owner, data, key,
        shares=(share,), every=every, scope=scope, dormancy=dormancy, only_convolutions=only_convolutions, burst=burst,
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, momentum=momentum,
        weight_decay=weight_decay, schedule=schedule, augment=augment, progress=progress,
    )  # fmt: skip
    _, copy, report = next(walk)
    return copy, report
