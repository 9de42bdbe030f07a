"""ShapPruning: find the few channels that carry a backdoor by their Shapley values, and cut them.

After Guan, Tu, He and Tao, "Few-Shot Backdoor Defense Using Shapley Estimation", CVPR 2022. There is no public code and
the paper's settings are not known here: this is a reconstruction from its abstract (a trigger is reversed, channels are
ranked by Shapley values estimated with a discarding threshold and an epsilon-greedy order, the first few are cut; one
image per class or none is enough), and it cannot be compared with any figure of the paper.

    images    -> recovered trigger of the suspected class       jaxguard.inversion
    game      -> how well it still works with channels gated    jaxguard.graph.Coalitions
    ranking   -> Shapley value of every channel                 jaxguard.kernels.shapley
    path      -> cut by falling value until the trigger fails or the model suffers
    repair    -> those cuts in the weights, and what they cost restored
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxguard import methods, programs, training
from jaxguard.defenses.protocol import Data, DefenseReport, require_clean
from jaxguard.graph import Coalitions, State, cuts, pairing
from jaxguard.graph.program import is_key
from jaxguard.inversion.recovery import recover
from jaxguard.inversion.restoration import SHIFT, restore
from jaxguard.kernels import shapley as estimators
from jaxguard.pruning.path import cut, gates_of, walk
from jaxguard.pruning.shapley_estimation import permutation_sampling
from jaxguard.scores.channel_bounds import require_finite
from jaxguard.types import LayerScores, Network, Variables

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
        """Values `[B]` in [0, 1] of gates `[B, N]`, on the images with the trigger that `start` began with."""
        logits = self.game.logits(variables, start, gates).astype(jnp.float32)
        if self.worth == "rate":
            return jnp.mean(logits.argmax(-1) == self.target, axis=-1)
        if self.worth == "probability":
            return jax.nn.softmax(logits)[..., self.target].mean(-1)
        others = jnp.where(jnp.arange(logits.shape[-1]) == self.target, -jnp.inf, logits).max(-1)
        margin = jnp.clip(logits[..., self.target] - others, -MARGIN, MARGIN)
        return (margin / (2 * MARGIN) + 0.5).mean(-1)


@methods.checked
def shapley(
    network: Network,
    data: Data,
    key: jax.Array,
    *,
    target: methods.Steps | None = None,
    images: methods.Count = 50,
    data_free: bool = False,
    synthesised: methods.Count = 10,
    synthesis_steps: methods.Count = 300,
    inversion_steps: methods.Count = 800,
    worth: Worth = "probability",
    estimator: Estimator = "permutations",
    samples: methods.Count = 20,
    discard: methods.Share | None = 0.1,
    epsilon: methods.Share = 0.2,
    stop_attack: methods.Share | None = None,
    max_share: methods.Share = 0.01,
    max_drop: methods.Share | None = None,
    restore_steps: methods.Steps = 200,
    augment: training.Augmentation = None,
    chunk: methods.Count = 32,
) -> tuple[Network, DefenseReport]:
    """Cuts the channels that the recovered trigger works through, and restores what that cost.

    Players are all channels but those of the logits. A coalition's value is how well the recovered trigger works on
    the defender's images of other classes while the channels outside of it are exactly zero, behind their own bias and
    BatchNorm. Settings that the abstract does not name are ours, chosen on the networks of `jaxguard.demo`, seeds
    10-14; so is the restoration, without which a narrow network pays for each cut with several points of accuracy.

    Args:
        network: the suspect.
        data: a few clean images, one per class or more; none are needed with `data_free`.
        key: draws patches, images and orders.
        target: the suspected class, if it is known; otherwise that of the smallest patch.
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
        restore_steps: see `jaxguard.inversion.restoration.restore`; 0 only prunes.
        augment: of the images that restore; small shifts by default.
        chunk: coalitions evaluated together.

    Returns:
        The repaired network, and a report with the Shapley value and standard error of every channel, the recovered
        trigger and the pruning path.

    Raises:
        DefenseError: `target` is no class, or there is no image of another class.
        UnscorableError: a parameter is not finite.
        DataError: images or labels do not fit the model.
        GraphError: no layer can be cut.
    """
    variables = network.variables
    require_finite(variables)
    key_recover, key_order, key_restore = jax.random.split(key, 3)
    recovered = recover(
        network,
        None if data_free or data.clean is None else require_clean(data, "shapley"),
        key_recover,
        target=target,
        most=images,
        synthesised=synthesised,
        synthesis_steps=synthesis_steps,
        steps=inversion_steps,
        progress=data.progress,
    )
    hidden = [one.name for k, one in enumerate(network.graph.producers) if k not in network.graph.outputs]
    why = {name: cuts.why_uncuttable(network.graph, pairing.alone(network.graph, name)) for name in hidden}
    game = Coalitions(network.graph, [name for name in hidden if why[name] is None])
    uncut = tuple(
        f"The channels of {name} cannot be cut and did not play: {reason}." for name, reason in why.items() if reason
    )
    start = programs.jit(game.start)(variables, recovered.stamped_others())
    value = Partial(AttackValue(game, recovered.target, worth), variables, start)
    whole = float(_values(value, jnp.ones((1, game.players)))[0])
    estimate = _permutations if estimator == "permutations" else functools.partial(_epsilon_greedy, epsilon=epsilon)
    found, ranking = estimate(
        value,
        game.players,
        key_order,
        samples=samples,
        threshold=None if discard is None else discard * whole,
        chunk=chunk,
        progress=training.staged(data.progress, "estimating Shapley values"),
    )
    values, errors = np.asarray(found.values), np.asarray(found.standard_errors)
    order = np.argsort(-np.asarray(ranking), kind="stable")[: math.ceil(max_share * game.players)]
    path = walk(
        variables,
        game,
        order,
        recovered,
        values=(values, errors),
        worth=np.asarray(_values(value, gates_of(game, order))),
        stop_attack=stop_attack if stop_attack is not None else (-1.0 if restore_steps else 0.05),
        max_drop=max_drop if max_drop is not None else (0.5 if restore_steps else 0.02),
    )
    chosen = order[: path.chosen]
    repaired = cut(variables, game, chosen)
    if restore_steps and path.chosen:
        repaired = restore(
            network,
            repaired,
            recovered,
            key_restore,
            keep=cut(
                jax.tree.map(lambda leaf: leaf if is_key(leaf) else np.ones(leaf.shape, leaf.dtype), variables),
                game,
                chosen,
            ),
            steps=restore_steps,
            augment=augment or SHIFT,
            progress=training.staged(data.progress, "restoring"),
        )
    mask = np.isin(np.arange(game.players), chosen)
    layers = tuple(
        LayerScores(producer.name, own, float("inf"), is_cut, np.zeros(len(own), bool), error)
        for producer, own, error, is_cut in zip(game.producers, *map(game.split, (values, errors, mask)), strict=True)
    )
    note = (
        f"Shapley values from {int(found.counts[0])} independent samples, {int(found.evaluations):,} coalitions of "
        f"{game.players:,} channels; the trigger's whole worth was {whole:.2f}."
    )
    return network.with_variables(repaired), DefenseReport(
        layers, (*recovered.notes, note, *uncut), trigger=recovered.trigger, path=path
    )


# One program each: step by step a game is some hundred.
@programs.jit
def _values(value: Partial, gates: jax.Array) -> jax.Array:
    return value(gates)


def _permutations(
    value: Partial,
    players: int,
    key: jax.Array,
    *,
    samples: int,
    threshold: float | None,
    chunk: int,
    progress: training.Progress | None,
) -> tuple[estimators.Estimate, jax.Array]:
    """Shapley values, and what to rank by: the same."""
    found = permutation_sampling(
        value,
        players,
        key,
        samples=samples,
        threshold=threshold,
        chunk=chunk,
        progress=progress and (lambda done, total: progress(done, total, {})),
    )
    return found, found.values


def _epsilon_greedy(
    value: Partial,
    players: int,
    key: jax.Array,
    *,
    samples: int,
    threshold: float | None,
    chunk: int,
    progress: training.Progress | None,
    epsilon: float,
) -> tuple[estimators.Estimate, jax.Array]:
    """Shapley values of the uniform passes, and what to rank by: the mean of all passes, greedy ones included."""
    del progress
    found, greedy = estimators.epsilon_greedy(
        value,
        players,
        key,
        samples=2 * samples,
        epsilon=epsilon,
        warmup=min(10, samples),
        threshold=threshold,
        chunk=chunk,
    )
    counts, greedy_counts = (one.counts.astype(jnp.float32) for one in (found, greedy))
    return found, (found.values * counts + greedy.values * greedy_counts) / (counts + greedy_counts)
