"""TAFA-style fingerprints: where the hidden units of a ReLU network switch, for any task and without data.

Every copy made from the weights inherits the hyperplanes on which hidden units switch: fine-tuned, pruned, quantised,
with neurons permuted or rescaled. Probes are lines across such hyperplanes (`hinges`); along them a copy's outputs bend
where the owner's do (`hinge_statistics`). Outputs may be logits, a regression or an image.

Task-agnostic fingerprints of ReLU networks are the idea of Pan, Zhang, Lu, Yang: TAFA: A Task-Agnostic Fingerprinting
Algorithm for Neural Networks, ESORICS 2021. Its algorithm was not available to us: this is a reconstruction from the
abstract, and all numbers are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge

from jaxguard.errors import FingerprintError
from jaxguard.fingerprints import hinge_layers, hinge_statistics, hinges
from jaxguard.fingerprints.protocol import Fingerprint, Owner, Probes, Space, factory
from jaxguard.fingerprints.spaces import to_space
from jaxguard.methods import Count, Positive
from jaxguard.training import Progress

Statistic = Literal["profile", "cka"]

WIDEST = 0.49
"""Upper limit of the distance that points keep from 0 and 1; the rest is the box they are drawn in."""

ROUNDING = 1e-6
"""Extra margin, so that rounding moves no query out of [0, 1]."""

SEES = "copies made from the owner's weights: fine-tuned, pruned or quantised lightly, permuted or rescaled."
BLIND = (
    "extraction and distillation, which form other hyperplanes; copies changed until little of the weights is "
    "left, or with a retrained head of one output; networks without ReLU; probabilities rounded to few decimals."
)


@factory
def tafa_hinge(
    *,
    num_probes: Count = 100,
    candidates_per_probe: Count = 8,
    layers: Sequence[Count] | str = (1, 2),
    scale: Positive = 0.03,
    points: Annotated[int, Ge(7)] = 25,
    statistic: Statistic = "profile",
    space: Literal["logits", "clr"] = "logits",
    controls: bool = True,
) -> Fingerprint:
    """Lines across hyperplanes of hidden units; the score is the similarity of the outputs' bends along them.

    Args:
        num_probes: `N`, lines to keep.
        candidates_per_probe: candidates per line; those that bend the outputs most, far from other hyperplanes, are
            kept.
        layers: depths of the units: 1 for ReLUs with no other before them, 2 with one, ...; as text, `1,2`.
        scale: largest change of a pixel within delta, of [0, 1]. A larger one survives stronger changes of a copy, but
            more independent models agree by chance. Lines extend 3 deltas to either side, 4 with controls: points
            keep that distance from 0 and 1.
        points: queries along each line, `6 k + 1`.
        statistic: `profile`, the mean cosine, or `cka`, which compares outputs of other widths or with a new head.
        space: of the outputs. `logits`: unchanged, for outputs of any kind; `clr`: centred, for a suspect that returns
            probabilities, whose logarithms are logits up to a constant; small ones need all their digits.
        controls: whether to query 2 more points per line, which give a p-value without other models.

    Returns:
        The fingerprint. Making probes raises FingerprintError for a network without ReLUs, or with too few
        hyperplanes.

    Raises:
        FingerprintError: an option is out of range.

    Example:
        >>> from jaxguard import models
        >>> model = models.build("mlp:hidden=16x16", num_classes=3, input_shape=(4, 4, 1))
        >>> network = model.network(model.init(jax.random.key(0)))
        >>> method = tafa_hinge(num_probes=4)
        >>> probes = method.make(Owner(network), jax.random.key(1))
        >>> probes.images.shape  # 4 lines of 25 + 2 points
        (108, 4, 4, 1)
        >>> outputs = network(probes.images)[None]
        >>> signature = method.signature_fn(probes, outputs)
        >>> method.distance_fn(probes, signature[0], signature).round(4).tolist()
        [1.0]
    """
    depths = _depths(layers)
    reach = hinge_statistics.FARTHEST if controls else hinge_statistics.REACH
    if points % 6 != 1 or scale * reach >= WIDEST:
        raise FingerprintError(
            f"expected points = 6 k + 1 and scale below {WIDEST / reach:.3g}, got {points=}, {scale=} in tafa_hinge; "
            "leave them out for the defaults"
        )

    def make(owner: Owner, key: jax.Array, progress: Progress | None) -> Probes:
        count = num_probes * candidates_per_probe
        found, notes = _search(owner, key, depths, count, scale=scale, reach=reach, space=space, progress=progress)
        kept = _best(found, num_probes, depths)
        offsets = hinge_statistics.offsets(points, controls=controls)
        steps = (offsets[None] * kept.deltas[:, None]).astype(np.float32)
        shape = kept.points.shape[1:]
        lines = kept.points[:, None] + steps.reshape(*steps.shape, *[1] * len(shape)) * kept.directions[:, None]
        arrays = {
            "x": kept.points, "u": kept.directions, "delta": kept.deltas, "offsets": offsets, "layer": kept.depths,
            "unit": kept.units,
        }  # fmt: skip
        note = (
            f"{len(kept.points)} of {int(found.usable.sum())} hinges found among {len(found.points)} candidates; "
            f"{_counted(kept.depths)}."
        )
        return Probes(lines.reshape(-1, *shape), arrays, (note, *notes))

    def signature(probes: Probes, outputs: jax.Array) -> jax.Array:
        return hinge_statistics.profiles(_answers(probes, outputs, space), points)

    def distance(probes: Probes, owner: jax.Array, suspects: jax.Array) -> jax.Array:
        del probes
        if statistic == "cka":
            return hinge_statistics.profile_cka(owner, suspects)
        if owner.shape[-1] != suspects.shape[-1]:
            raise FingerprintError(
                f"expected suspects with {owner.shape[-1]} outputs, as the owner has, got {suspects.shape[-1]} in "
                "tafa_hinge(); pass statistic='cka', which compares other widths too"
            )
        return hinge_statistics.profile_similarity(owner, suspects)

    def null(probes: Probes, outputs: jax.Array) -> np.ndarray:
        return hinge_statistics.self_null(np.asarray(_answers(probes, outputs, space)), points)

    return Fingerprint(
        make_fn=make,
        signature_fn=signature,
        distance_fn=distance,
        stolen="high",
        sees=SEES,
        blind=BLIND,
        across_classes=statistic == "cka",
        of_classes=space != "logits",
        null_fn=null if controls else None,
    )


def _depths(layers: Sequence[int] | str) -> tuple[int, ...]:
    try:
        depths = tuple(sorted({int(part) for part in (layers.split(",") if isinstance(layers, str) else layers)}))
    except ValueError:
        depths = ()
    if not depths or depths[0] < 1:  # text, or no layers at all
        raise FingerprintError(
            f"expected layers >= 1, such as (1, 2) or '1,2', got {layers!r} in tafa_hinge(); leave it out for the "
            "first two"
        )
    return depths


def _search(
    owner: Owner,
    key: jax.Array,
    depths: tuple[int, ...],
    count: int,
    *,
    scale: float,
    reach: int,
    space: Space,
    progress: Progress | None,
) -> tuple[hinges.Hinges, tuple[str, ...]]:
    """Candidates of all depths, and notes about the network."""
    graph = owner.network.graph
    found, smooth = hinge_layers.hinge_layers(graph)
    chosen = hinge_layers.of_depths(found, depths)
    notes = []
    if smooth and space != "clr":
        notes.append(
            f"The outputs are not piecewise linear, from {smooth} on: second differences are not only due to hinges."
        )
    if missing := sorted(set(depths) - chosen.keys()):
        notes.append(f"The model has no ReLU layer {missing}; hinges are of {sorted(chosen)}.")
    linear = tuple(layer for layer in found if layer.is_linear)
    parts = []
    for depth, layers in chosen.items():
        key_layer = jax.random.fold_in(key, depth)
        parts.append(
            hinges.search(
                graph, owner.network.variables, key_layer, layers, -(-count // len(chosen)), linear=linear, scale=scale,
                margin=reach * scale + ROUNDING, space=space, progress=progress,
            )
        )  # fmt: skip
    return hinges.Hinges(*(np.concatenate(column) for column in zip(*parts, strict=True))), tuple(notes)


def _best(found: hinges.Hinges, number: int, depths: tuple[int, ...]) -> hinges.Hinges:
    usable = np.flatnonzero(found.usable)
    if len(usable) < number:
        near = int((found.distances < hinges.NEAR).sum())
        raise FingerprintError(
            f"expected at least {number} hinges, got {len(usable)} among {len(found.points)} candidates of layers "
            f"{depths} in tafa_hinge(): {near} are on their hyperplane, but not all of them bend the outputs; "
            "raise candidates_per_probe, lower num_probes, or pass other layers"
        )
    return found.take(usable[np.argsort(-found.ranks[usable], kind="stable")[:number]])


def _answers(probes: Probes, outputs: jax.Array, space: Space) -> jax.Array:
    """Outputs `[S, N, T, m]`, in the space that is compared."""
    number, points = len(probes.arrays["delta"]), len(probes.arrays["offsets"])
    if outputs.ndim < 2 or outputs.shape[1] != number * points:
        raise FingerprintError(
            f"expected outputs [S, {number * points}, ...], {points} for each of {number} hinges, got shape "
            f"{tuple(outputs.shape)} in tafa_hinge(); query all of probes.images, in order"
        )
    if space == "clr" and outputs.shape[-1] == 1:
        raise FingerprintError(
            "expected two outputs or more with space='clr', got one, which centring makes zero, in tafa_hinge(); pass "
            "space='logits'"
        )
    answers = to_space(jnp.asarray(outputs), space)
    return answers.reshape(len(outputs), number, points, -1)


def _counted(depths: np.ndarray) -> str:
    return ", ".join(f"{int((depths == depth).sum())} of layer {depth}" for depth in np.unique(depths))
