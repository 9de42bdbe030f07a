"""Fine-pruning as a theft: cut the quietest channels, a few at a time, and fine-tune in between.

Not the defense of that name, which prunes the last hidden layer and stops where accuracy falls: a thief prunes
everywhere, as far as he likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval

from jaxguard import programs, surgery, training
from jaxguard.errors import TheftError
from jaxguard.graph import ChannelGraph, pairing
from jaxguard.methods import Count, NonNegative, Steps, checked, options_of
from jaxguard.theft import protocol
from jaxguard.theft.protocol import TheftReport
from jaxguard.theft.sgd import SGD
from jaxguard.training import CrossEntropyGradient, Progress
from jaxguard.types import Batch, Network, TrainFn, Variables

MAX_BURST = 2056
"""Most images of a burst of fine-tuning, redrawn each time: SAC's number."""


@checked
@options_of(SGD)
def fine_pruning(
    owner: Network,
    data: Batch,
    key: jax.Array,
    *,
    share: Annotated[float, Interval(ge=0, lt=1)] = 0.5,
    every: Count = 50,
    epochs: Steps = 1,
    learning_rate: NonNegative = 1e-3,
    progress: Progress | None = None,
    **sgd: Any,
) -> tuple[Network, TheftReport]:
    """Cuts a share of each hidden layer's channels, those of the smallest mean absolute activation, and fine-tunes.

    SAC's code for CIFAR-10 cuts filters of a VGG-16, fine-tunes after every 50 on at most 2,056 images and keeps copies
    from 5 % to 80 %: prune a copy again for the next one, since its channels at zero are the quietest and go first.
    Channels are gated through the graph: they stay in their place, and at zero. That activations are compared within a
    layer and dense layers are cut too, and the epoch and batch size of a burst, are ours.

    Args:
        owner: the stolen model, with its training mode.
        data: the thief's images and labels.
        key: draws images, batches and augmentation.
        share: of the hidden channels, in [0, 1); one of each layer always stays. 0 changes nothing.
        every: channels cut between two bursts of fine-tuning; activations are measured again for each cut, on a batch.
        epochs: of a burst; 0 only prunes.
        learning_rate: of its first step.
        progress: called as the work proceeds.
        sgd: other fields of `SGD`.

    Returns:
        The copy, with the curve `loss` of all bursts.

    Raises:
        TheftError: something is missing or out of range, or a loss diverged.
        DataError: labels the model has no class for.
    """
    how = SGD(epochs, learning_rate, **sgd)
    pruned, graph = Pruned(protocol.require_training(owner)), owner.graph
    protocol.require_labels(data, owner.num_classes)
    layers = prunable(graph)
    masks: list[Any] = [np.zeros(layer.channels, bool) for layer in layers]
    total = sum(layer.channels for layer in layers)
    wanted = min(round(share * total), total - len(layers))
    variables: Any = owner.variables
    losses, bursts, count = [np.zeros(0, np.float32)], 0, 0
    while count < wanted:
        key_burst, key_learn = jax.random.split(jax.random.fold_in(key, bursts))
        chosen = jax.random.permutation(key_burst, len(data.images))[:MAX_BURST]
        drawn = Batch(*(jnp.asarray(part)[chosen] for part in data))
        seen = activations(graph, layers, variables, drawn.images[: how.batch_size])
        masks = quietest(jax.device_get(seen), masks, min(every, wanted - count))
        count, bursts = sum(int(mask.sum()) for mask in masks), bursts + 1
        parts = pruned.split(variables, kept(graph, layers, variables, masks))
        parts, loss = how.learn(CrossEntropyGradient(pruned), parts, drawn, key_learn, progress=progress)
        variables = pruned.join(parts, like=variables)
        losses.append(loss)
    note = f"{count} of {total} hidden channels in {len(layers)} layers were cut, with {bursts} bursts of fine-tuning."
    return owner.with_variables(variables), TheftReport({"loss": np.concatenate(losses)}, (note,))


@dataclass(frozen=True)
class Pruned:
    """A training-mode model whose cut weights stay cut; a value, so that all cuts share a compiled step.

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

    def split(self, variables: Variables, keep: Variables) -> dict[str, Any]:
        """The whole model's variables in parts, cut weights set to zero; `keep` is like the variables."""
        params, state = training.partition(variables)
        mask, _ = training.partition(keep)
        return {"params": jax.tree.map(jnp.multiply, params, mask), "state": state, "keep": mask}

    def join(self, parts: Variables, like: Variables) -> Any:
        """Undoes `split`; weights that are cut stay zero."""
        params = jax.tree.map(jnp.multiply, parts["params"], parts["keep"])
        leaves = jax.tree.leaves(training.combine(params, parts["state"]))
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


def prunable(graph: ChannelGraph) -> tuple[pairing.Layer, ...]:
    """Hidden layers whose channels may be cut, each kernel once, in program order.

    Raises:
        TheftError: there are none.
    """
    found: dict[str, str] = {}
    for number, producer in enumerate(graph.producers):
        if number not in graph.outputs:
            found.setdefault(repr(producer.kernel), producer.name)
    if not found:
        raise TheftError(
            f"expected hidden layers to prune, got none among {len(graph.producers)}; a model with nothing but an "
            "output layer has none"
        )
    return tuple(pairing.alone(graph, name) for name in found.values())


def kept(
    graph: ChannelGraph, layers: Sequence[pairing.Layer], variables: Variables, masks: Sequence[np.ndarray]
) -> Any:
    """A tree like the variables: 0 in the masked channels `[C]` of each layer, 1 elsewhere."""
    keep: Any = jax.tree.map(jnp.ones_like, variables)
    for layer, mask in zip(layers, masks, strict=True):
        if mask.any():
            keep = surgery.cut(graph, keep, layer, mask)
    return keep


@partial(programs.jit, static_argnums=(0, 1))
def activations(
    graph: ChannelGraph, layers: tuple[pairing.Layer, ...], variables: Variables, images: jax.Array
) -> list[jax.Array]:
    """Mean absolute activation of every channel, after its own bias and norm, before the ReLU.

    Returns float32 `[C]` per layer of `prunable`, the mean over images and positions.
    """
    program = graph.program_at(images)
    values = program.evaluate({**graph.leaves(program, variables), program.images: images})
    found = []
    for layer in layers:
        producer = graph.producer(layer.name)
        value = jnp.abs(values[producer.gate].astype(jnp.float32))
        # Channels may run over several axes, as heads and their dimensions do: those last, in order, then flattened.
        others = [axis for axis in range(value.ndim) if axis not in producer.gate_axes]
        found.append(jnp.transpose(value, (*others, *producer.gate_axes)).mean(range(len(others))).reshape(-1))
    return found


def quietest(measured: Sequence[np.ndarray], masks: Sequence[np.ndarray], count: int) -> list[Any]:
    """Cuts more channels, those of the lowest rank in their layer; one channel of each layer always stays.

    Args:
        measured: `[C]` per layer, of `activations`.
        masks: bool `[C]` per layer, what is cut already.
        count: how many more.

    Returns:
        The new masks.

    Example:
        >>> loud, quiet = np.array([5.0, 7.0, 6.0, 8.0]), np.array([1.0, 2.0, 3.0, 4.0])
        >>> none = [np.zeros(4, bool)] * 2
        >>> [int(mask.sum()) for mask in quietest([loud, quiet], none, 4)]
        [2, 2]
    """
    keys = []
    for activation, mask in zip(measured, masks, strict=True):
        # Ranks within the layer, from 0 for the quietest; what is cut already ranks first, and is not taken twice.
        ranks = np.argsort(np.argsort(np.where(mask, -np.inf, activation), kind="stable"), kind="stable")
        keys.append(np.where(mask | (ranks == len(ranks) - 1), np.inf, (ranks + 0.5) / len(ranks)))
    flat = np.concatenate(keys)
    chosen = np.argsort(flat, kind="stable")[:count]
    cut = np.isin(np.arange(len(flat)), chosen[np.isfinite(flat[chosen])])
    edges = np.cumsum([len(mask) for mask in masks])[:-1]
    return [mask | more for mask, more in zip(masks, np.split(cut, edges), strict=True)]
