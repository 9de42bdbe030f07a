"""Cut channels one after the other, and watch the trigger and the accuracy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import programs, surgery
from jaxguard.graph import Coalitions, pairing
from jaxguard.inversion.recovery import Recovered
from jaxguard.types import PruningPath, Variables


def gates_of(game: Coalitions, order: np.ndarray) -> jax.Array:
    """`[P + 1, N]` gates: all players, then without the first of the order, without the first two, ..."""
    # Each row has one gate less than the one before, which `Coalitions` computes from where they differ.
    gates = np.ones((len(order) + 1, game.players), np.float32)
    for number, player in enumerate(order):
        gates[number + 1 :, player] = 0
    return jnp.asarray(gates)


def walk(
    variables: Variables,
    game: Coalitions,
    order: np.ndarray,
    recovered: Recovered,
    *,
    values: tuple[np.ndarray, np.ndarray],
    worth: np.ndarray,
    stop_attack: float,
    max_drop: float,
) -> PruningPath:
    """Tries every cut of an order and chooses how many to keep; all on the defender's own images.

    Args:
        variables: of the suspect.
        game: that numbers its channels.
        order: `[P]` int, players to cut, first to go first.
        recovered: the images and the trigger.
        values: `[N]` Shapley values and standard errors.
        worth: `[P + 1]` the trigger's worth along the path.
        stop_attack: worth at which enough is cut.
        max_drop: most accuracy that may be lost; the first cut beyond it is not made.

    Returns:
        The path.
    """
    images, stamped = jnp.asarray(recovered.images.images), recovered.stamped_others()
    # Triggered and clean images in one batch: each cut is run once.
    start = programs.jit(game.start)(variables, jnp.concatenate([stamped, images]))
    classes = np.asarray(programs.jit(game.logits)(variables, start, gates_of(game, order)).argmax(-1))
    attack = (classes[:, : len(stamped)] == recovered.target).mean(axis=1)
    accuracy = (classes[:, len(stamped) :] == np.asarray(recovered.images.labels)).mean(axis=1)
    chosen, stop = len(order), f"{len(order)} of {game.players} channels are all that may be cut"
    if (worth[1:] <= stop_attack).any():
        chosen, stop = int(np.argmax(worth[1:] <= stop_attack)) + 1, "the recovered trigger fails"
    # The first cut that costs too much ends the path, even if a later one would happen to recover.
    harmful = accuracy[0] - accuracy > max_drop + 1e-9
    if harmful[: chosen + 1].any():
        chosen, stop = int(np.argmax(harmful)) - 1, "the next cut costs too much accuracy"
    return PruningPath(
        channels=tuple(game.name(int(player)) for player in order),
        values=values[0][order],
        errors=values[1][order],
        attack=attack,
        accuracy=accuracy,
        chosen=chosen,
        stop=stop,
    )


def cut(variables: Variables, game: Coalitions, players: np.ndarray) -> Any:
    """Makes channels exactly zero in the weights, as a gate of 0 does.

    Args:
        variables: of the model, or a tree like them; not modified.
        game: that numbers its channels.
        players: int, which to cut.

    Returns:
        The edited variables.

    Raises:
        GraphError: a channel lies behind a norm without a scale.
    """
    masks = game.split(np.isin(np.arange(game.players), players))
    for producer, mask in zip(game.producers, masks, strict=True):
        if mask.any():
            variables = surgery.cut(game.graph, variables, pairing.alone(game.graph, producer.name), mask)
    return variables
