"""SAC, sample correlation: a copy relates images to each other as its owner does.

The number is the mean absolute difference of two models' matrices of distances between their own outputs on the probes
(`jaxguard.kernels.correlation`), so that models with other classes can be compared as well. What differs between the
papers' variants is the probes:

    jc        JPEG-compressed images (SAC-JC)
    cutmix    images with a box of another pasted in (SAC-m)
    wrong     images that the owner gets wrong, and surrogates with it where there are any (SAC-w)
    normal    images as they are (SAC-normal)

Guan, Liang, He: Are You Stealing My Model? Sample Correlation for Fingerprinting Deep Neural Networks, NeurIPS 2022.
Guan, Liang, Wang, He: Sample Correlation for Fingerprinting Deep Face Recognition, IJCV 2024.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge

from jaxguard import execution
from jaxguard.errors import FingerprintError
from jaxguard.fingerprints import cutmix, jpeg, owner_images
from jaxguard.fingerprints.protocol import Fingerprint, Owner, Probes, Space, factory
from jaxguard.fingerprints.spaces import to_space
from jaxguard.kernels import correlation
from jaxguard.methods import Positive
from jaxguard.training import Progress

Variant = Literal["jc", "normal", "wrong", "cutmix"]

NUM_PROBES: Mapping[Variant, int] = {"jc": 800, "normal": 10_000, "wrong": 100, "cutmix": 100}
"""The papers'; that of `wrong` is not stated."""

_SPECIFIC = {
    "quality": ("jc",), "transpose": ("jc", "cutmix"), "alpha": ("cutmix",), "side": ("cutmix",),
    "corner": ("cutmix",), "one_box": ("cutmix",), "least": ("wrong",), "surrogates": ("wrong",),
}  # fmt: skip
"""Option -> the variants it means anything to."""

_SEES = {
    "logits": "fine-tuned, pruned and distilled copies, also for other classes.",
    "clr": "fine-tuned, pruned and distilled copies, also for other classes.",
    "probs": "fine-tuned copies, where a model tells probabilities alone.",
    "labels": "copies that answer alike, as far as classes alone can tell.",
}
_BLIND = {
    "logits": "networks trained on the labels alone that a model gives, which have logits of their own.",
    "clr": "networks trained on the labels alone that a model gives, which have logits of their own.",
    "probs": "heavily pruned copies, which are less sure, and networks trained on labels; compare logits if possible.",
    "labels": "most changes: equal classes say little; compare scores where they can be had.",
}


@factory
def sac(
    *,
    variant: Variant = "jc",
    num_probes: Annotated[int | None, Ge(2)] = None,
    space: Space = "logits",
    kernel: correlation.Kernel = "cosine",
    halved: bool | None = None,
    label_only: bool = False,
    quality: jpeg.Quality = jpeg.QUALITY,
    transpose: bool = False,
    alpha: Positive = 1.0,
    side: cutmix.Side = None,
    corner: bool = False,
    one_box: bool = False,
    least: Annotated[int, Ge(2)] = owner_images.LEAST,
    surrogates: np.ndarray | None = None,
) -> Fingerprint:
    """Sample correlation; the number is a distance, in [0, 2] or halved in [0, 1].

    Args:
        variant: which probes, see above.
        num_probes: images; by default `NUM_PROBES`. Where there are fewer, all are taken, and a note says so.
        space: what is compared, given a model's logits; the papers compare logits. Where an API gives probabilities,
            their logarithms are as good as logits for `probs` and `clr`.
        kernel: `cosine`, or `rbf`, a monotone map of it.
        halved: whether cosine distances are divided by two, as SAC's code does and SAC-JC's does not; by default as
            the variant's. Thresholds differ by that factor, ranks do not.
        label_only: compares the classes alone; `space` is ignored.
        quality: of `jc`, see `jaxguard.fingerprints.jpeg`.
        transpose: of `jc` and `cutmix`: swaps height and width of the probes, as in the authors' with flip.
        alpha: of `cutmix`, as are `side`, `corner` and `one_box`: see `jaxguard.fingerprints.cutmix`. The authors'
            probes are those of `side=0.2`, `corner`, `one_box` and `transpose`.
        side: of `cutmix`.
        corner: of `cutmix`.
        one_box: of `cutmix`.
        least: of `wrong`: mistakes without which it fails.
        surrogates: of `wrong`: `[M, N]` classes that models trained on the owner's answers give all its images; only
            images that they get wrong too are probes. No certificate keeps them.

    Returns:
        The fingerprint. Making probes raises FingerprintError where the owner has too few images or mistakes.

    Raises:
        FingerprintError: an option belongs to another variant.

    Example:
        >>> from jaxguard.types import Batch, Network
        >>> halves = lambda variables, images: images.reshape(len(images), 2, -1).mean(-1)
        >>> data = Batch(np.random.default_rng(0).random((20, 8, 8, 1)), np.zeros(20, int))
        >>> method = sac(num_probes=20)
        >>> probes = method.make(Owner(Network({}, halves, (8, 8, 1)), data), jax.random.key(0))
        >>> own = halves({}, jnp.asarray(probes.images))
        >>> signatures = method.signature_fn(probes, jnp.stack([own, 3 * own, -own[::-1]]))
        >>> distances = method.distance_fn(probes, signatures[0], signatures)
        >>> bool(distances[1] < 1e-6 < distances[2])
        True
    """
    given: dict[str, Any] = {
        "quality": quality, "transpose": transpose, "alpha": alpha, "side": side, "corner": corner, "one_box": one_box,
        "least": least, "surrogates": surrogates,
    }  # fmt: skip
    _check(variant, given)
    wanted = NUM_PROBES[variant] if num_probes is None else num_probes
    halves = variant != "jc" if halved is None else halved
    compared = "labels" if label_only else space
    own = {name: value for name, value in given.items() if variant in _SPECIFIC[name]}

    def make(owner: Owner, key: jax.Array, progress: Progress | None) -> Probes:
        del progress
        key_images, key_boxes = jax.random.split(key)
        if variant == "wrong":
            mistakes = owner_images.misclassified(owner, wanted, key_images, method="sac", **own)
            return Probes(mistakes.images, {}, owner_images.notes(mistakes, wanted))
        present = 2 if owner.data is None else max(2, min(wanted, len(owner.data.images)))
        images = owner_images.draw(owner, present, key_images, method="sac")
        if variant == "jc":
            images = jpeg.compressed(images, quality=quality)
        elif variant == "cutmix":
            images = cutmix.cutmix(images, key_boxes, alpha=alpha, side=side, corner=corner, one_box=one_box)
        notes = (f"The owner has {present} images, fewer than the {wanted} wanted.",) if present < wanted else ()
        return Probes(_transposed(images) if transpose else images, {}, notes)

    def signature(probes: Probes, outputs: jax.Array) -> jax.Array:
        del probes
        if not label_only:
            return correlation.unit_rows(to_space(outputs, space))
        labels = jnp.where(jnp.isnan(outputs).any(-1), -1, outputs.argmax(-1))
        return correlation.label_rows(labels, outputs.shape[-1])

    return Fingerprint(
        make_fn=make,
        signature_fn=signature,
        distance_fn=lambda probes, owner, suspects: distances(owner, suspects, kernel=kernel, halved=halves),
        stolen="low",
        sees=_SEES[compared],
        blind=_BLIND[compared],
        answers="labels" if label_only else "scores",
        across_classes=True,
    )


def distances(
    owner: jax.typing.ArrayLike,
    suspects: jax.typing.ArrayLike,
    *,
    kernel: correlation.Kernel = "cosine",
    halved: bool = False,
    workers: int | None = None,
) -> jax.Array:
    """`jaxguard.kernels.correlation.distances`, with the suspects shared out among host threads.

    Args:
        owner: `[N, K]` unit rows.
        suspects: `[S, N, K']` unit rows.
        kernel: as there.
        halved: as there.
        workers: host threads; by default `jaxguard.execution.workers()`. The result does not depend on it.

    Returns:
        `[S]`.

    Raises:
        ValueError: an unknown kernel.
    """
    owner, suspects = jnp.asarray(owner), jnp.asarray(suspects)
    workers = max(1, min(execution.workers() if workers is None else workers, len(suspects)))
    share = -(-len(suspects) // workers)
    # Of equal length, for one compiled program: the last ones overlap where workers do not divide the suspects.
    starts = [min(worker * share, len(suspects) - share) for worker in range(workers)]

    def compare(start: int) -> jax.Array:
        own = suspects[start : start + share]
        return jax.block_until_ready(correlation.distances(owner, own, kernel=kernel, halved=halved))

    parts = execution.in_threads(compare, starts, threads=workers)
    return jnp.concatenate([part[worker * share - starts[worker] :] for worker, part in enumerate(parts)])


def _check(variant: Variant, given: Mapping[str, Any]) -> None:
    """Refuses options of other variants: they would change nothing, in silence."""
    for name, value in given.items():
        default = inspect.signature(sac).parameters[name].default
        unused = variant not in _SPECIFIC[name]
        if unused and not (value is default or (np.ndim(value) == 0 and value == default)):
            raise FingerprintError(
                f"expected {name} with variant {' or '.join(_SPECIFIC[name])}, got {name}={value!r} with {variant} in "
                "sac; leave it out, or take that variant"
            )


def _transposed(images: np.ndarray) -> np.ndarray:
    if images.shape[1] != images.shape[2]:
        raise FingerprintError(
            f"expected square images to transpose, got {images.shape[1:]} in sac(transpose=True); leave it out"
        )
    return np.ascontiguousarray(images.swapaxes(1, 2))
