"""ShapPruning: find the few channels that carry a backdoor by their Shapley values, and cut them.

After Guan, Tu, He and Tao, "Few-Shot Backdoor Defense Using Shapley Estimation", CVPR 2022. There is no public code and
the paper's settings are not known here: this is a reconstruction from its abstract (a trigger is reversed, channels are
ranked by Shapley values estimated with a discarding threshold and an epsilon-greedy order, the first few are cut; one
image per class or none is enough), and no figure of the paper can be compared with.

    images    -> recovered trigger of the suspected class       jaxguard.inversion
    game      -> how well it still works with channels gated    jaxguard.graph.Coalitions
    ranking   -> Shapley value of every channel                 jaxguard.kernels.shapley
    path      -> cut by falling value until the trigger fails or the model suffers
    repair    -> those cuts in the weights, and what they cost restored
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxguard import training
from jaxguard.defenses.protocol import Context, DefenseReport, require_graph
from jaxguard.defenses.pruning_path import cut, gates_of, walk
from jaxguard.defenses.recovery import recover, staged
from jaxguard.defenses.restoration import SHIFT, restore
from jaxguard.defenses.shapley_estimation import permutation_sampling
from jaxguard.errors import DefenseError
from jaxguard.graph import ChannelGraph, Coalitions, State
from jaxguard.kernels import shapley
from jaxguard.scores.channel_bounds import require_finite
from jaxguard.types import LayerScores, Variables

Worth = Literal["probability", "rate", "margin"]
Estimator = Literal["permutations", "epsilon-greedy"]
MARGIN = 5.0
"""Logit margins are clipped here, so that no single image decides."""


@dataclass(frozen=True)
class AttackValue:
    """How well the recovered trigger works under each set of gates; a `jaxguard.kernels.shapley.ValuesFn`.

    Attributes:
        game: the model's channels as players.
        target: the suspected class.
        worth: `probability` of the class, mean over the images; `rate` of images given it, in steps of one image;
            `margin` of its logit over the next one, clipped at 5 and scaled to [0, 1].
    """

    game: Coalitions
    target: int
    worth: Worth

    def __call__(self, variables: Variables, start: State, gates: jax.Array) -> jax.Array:
        """Values `[B]` in [0, 1].

        Args:
            variables: of the model.
            start: of the game, on images with the trigger.
            gates: `[B, N]`.

        Returns:
            `[B]`.
        """
        logits = self.game.logits(variables, start, gates).astype(jnp.float32)
        if self.worth == "rate":
            return jnp.mean(logits.argmax(-1) == self.target, axis=-1)
        if self.worth == "probability":
            return jax.nn.softmax(logits)[..., self.target].mean(-1)
        others = jnp.where(jnp.arange(logits.shape[-1]) == self.target, -jnp.inf, logits).max(-1)
        margin = jnp.clip(logits[..., self.target] - others, -MARGIN, MARGIN)
        return (margin / (2 * MARGIN) + 0.5).mean(-1)


def shapley_pruning(
    variables: Variables,
    context: Context,
    key: jax.Array,
    *,
    target: int | None = None,
    images: int = 50,
    data_free: bool = False,
    synthesised: int = 10,
    synthesis_steps: int = 300,
    inversion_steps: int = 800,
    worth: Worth = "probability",
    estimator: Estimator = "permutations",
    samples: int = 20,
    discard: float | None = 0.1,
    epsilon: float = 0.2,
    stop_attack: float | None = None,
    max_share: float = 0.01,
    max_drop: float | None = None,
    restore_steps: int = 200,
    augment: training.Augment | None = None,
    chunk: int = 32,
) -> tuple[Any, DefenseReport]:
    """Cuts the channels that the recovered trigger works through, and restores what that cost.

    Players are all channels but those of the logits. A coalition's value is how well the recovered trigger works on
    the defender's images of other classes while the channels outside of it are exactly zero, behind their own bias and
    BatchNorm. Settings that the abstract does not name are ours, chosen on the networks of `jaxguard.demo`, seeds
    10-14; so is the restoration, without which a narrow network pays for each cut with several points of accuracy.

    Args:
        variables: of the suspect; not modified.
        context: its graph, and a few clean images, one per class or more; none are needed with `data_free`.
        key: draws patches, images and orders.
        target: the suspected class, if it is known; otherwise the one of the smallest patch.
        images: most clean images used, drawn at random, since each coalition takes a forward pass of them.
        data_free: synthesise the images from the model's BatchNorm statistics, whether there are clean ones or not;
            done anyway where there are none.
        synthesised: images per class to synthesise.
        synthesis_steps: of the synthesis.
        inversion_steps: most steps of the inversion per class.
        worth: see `AttackValue`.
        estimator: `permutations` in antithetic pairs, unbiased but for `discard`; `epsilon-greedy` orders as in the
            abstract: uniform passes give the values, all passes the ranking.
        samples: pairs of permutations, or twice as many epsilon-greedy passes.
        discard: a pass ends where the value has fallen to this share of the whole model's; no value is off by more.
            None ends no pass.
        epsilon: share of uniform orders among the epsilon-greedy ones.
        stop_attack: the path ends where the value has fallen to this; by default 0.05 without restoration, and with it
            not at all: the recovered trigger is the smallest there is, and may fail where the true one still works.
        max_share: most channels cut, a share of all, rounded up.
        max_drop: a cut that brings the loss of accuracy above this is taken back, and the path ends; by default 0.02
            without restoration and 0.5 with it.
        restore_steps: see `jaxguard.defenses.restoration.restore`; 0 only prunes.
        augment: of the images that restore; small shifts by default.
        chunk: coalitions evaluated together.

    Returns:
        The repaired variables, and a report with the Shapley value and standard error of every channel, the recovered
        trigger and the pruning path.

    Raises:
        DefenseError: no graph, or an option out of range.
        DataError: images or labels do not fit the model.
        GraphError: a channel lies behind a norm without a scale and cannot be cut.
    """
    options = {name: value for name, value in locals().items() if name not in ("variables", "context", "key")}
    graph = _require(context, options)
    require_finite(variables)
    key_recover, key_order, key_restore = jax.random.split(key, 3)
    recovered = recover(
        variables,
        context,
        key_recover,
        target=target,
        most=images,
        synthesised=synthesised if data_free or context.clean is None else 0,
        synthesis_steps=synthesis_steps,
        steps=inversion_steps,
    )
    game = Coalitions(graph)
    value = Partial(
        AttackValue(game, recovered.target, worth), variables, game.start(variables, recovered.stamped_others())
    )
    values, errors, ranking, notes = _estimate(value, game, key_order, options, context)
    order = np.argsort(-ranking, kind="stable")[: math.ceil(max_share * game.players)]
    path = walk(
        variables,
        game,
        order,
        recovered,
        values=(values, errors),
        worth=np.asarray(value(gates_of(game, order))),
        stop_attack=stop_attack if stop_attack is not None else (-1.0 if restore_steps else 0.05),
        max_drop=max_drop if max_drop is not None else (0.5 if restore_steps else 0.02),
    )
    chosen = order[: path.chosen]
    repaired = cut(variables, game, chosen)
    if restore_steps and path.chosen:
        repaired = restore(
            context.apply_fn,
            repaired,
            recovered,
            key_restore,
            suspect=variables,
            keep=cut(jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), variables), game, chosen),
            steps=restore_steps,
            augment=augment or SHIFT,
            progress=staged(context.progress, "restoring"),
        )
    mask = np.isin(np.arange(game.players), chosen)
    layers = tuple(
        LayerScores(producer.name, own, float("inf"), is_cut, np.zeros(len(own), bool), error)
        for producer, own, error, is_cut in zip(game.producers, *map(game.split, (values, errors, mask)), strict=True)
    )
    notes = (*recovered.notes, *notes)
    return repaired, DefenseReport("shapley", options, layers, notes, trigger=recovered.trigger, path=path)


def _require(context: Context, options: dict[str, Any]) -> ChannelGraph:
    graph = require_graph(context.graph)
    for name, known in (("worth", get_args(Worth)), ("estimator", get_args(Estimator))):
        if options[name] not in known:
            raise DefenseError(
                f"expected {name} to be {' or '.join(known)}, came {options[name]!r} in shapley_pruning()"
            )
    counts = {
        name: options[name]
        for name in ("images", "synthesised", "synthesis_steps", "inversion_steps", "samples", "chunk")
    }
    shares = {name: options[name] for name in ("discard", "epsilon", "stop_attack", "max_share", "max_drop")}
    if min(counts.values()) < 1 or not all(value is None or 0 <= value <= 1 for value in shares.values()):
        raise DefenseError(
            f"expected counts >= 1 and shares in [0, 1], came {counts | shares} in shapley_pruning(); "
            "leave them out for the defaults"
        )
    return graph


def _estimate(
    value: Partial, game: Coalitions, key: jax.Array, options: dict[str, Any], context: Context
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Shapley values, their standard errors, what to rank by, and notes."""
    whole = float(value(jnp.ones((1, game.players)))[0])
    threshold = None if options["discard"] is None else options["discard"] * whole
    samples, chunk = options["samples"], options["chunk"]
    progress = staged(context.progress, "estimating Shapley values")
    if options["estimator"] == "permutations":
        found = permutation_sampling(
            value,
            game.players,
            key,
            samples=samples,
            threshold=threshold,
            chunk=chunk,
            progress=progress and (lambda done, total: progress(done, total, {})),
        )
        ranking = found.values
    else:
        found, greedy = shapley.epsilon_greedy(
            value,
            game.players,
            key,
            samples=2 * samples,
            epsilon=options["epsilon"],
            warmup=min(10, samples),
            threshold=threshold,
            chunk=chunk,
        )
        counts = found.counts + greedy.counts
        ranking = (found.values * found.counts + greedy.values * greedy.counts) / counts
    notes = (
        f"Shapley values from {int(found.counts[0])} independent samples, {int(found.evaluations):,} coalitions of "
        f"{game.players:,} channels; the trigger's whole worth was {whole:.2f}.",
    )
    return np.asarray(found.values), np.asarray(found.standard_errors), np.asarray(ranking), notes
