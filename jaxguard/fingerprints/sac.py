"""SAC, sample correlation: a copy relates images to each other as the original does.

For each model, take the matrix of distances between its outputs on the probes; the score is the mean absolute
difference of two such matrices (`jaxguard.kernels.correlation`), so that models with different classes can be compared
too. The papers' variants differ in the probes:

    jc        JPEG-compressed images (SAC-JC)
    cutmix    images with a box of another pasted in (SAC-m)
    wrong     images that the owner, and surrogates if given, misclassify (SAC-w)
    normal    unmodified images (SAC-normal)

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
"""From the papers; that of `wrong` is not stated there."""

_SPECIFIC = {
    "quality": ("jc",), "transpose": ("jc", "cutmix"), "alpha": ("cutmix",), "side": ("cutmix",),
    "corner": ("cutmix",), "one_box": ("cutmix",), "least": ("wrong",), "surrogates": ("wrong",),
}  # fmt: skip
"""Option -> the variants that use it."""

_SEES = {
    "logits": "fine-tuned, pruned and distilled copies, also for other classes.",
    "clr": "fine-tuned, pruned and distilled copies, also for other classes.",
    "probs": "fine-tuned copies, if a model returns only probabilities.",
    "labels": "copies that predict the same classes.",
}
_BLIND = {
    "logits": "networks trained only on a model's predicted labels, whose logits differ.",
    "clr": "networks trained only on a model's predicted labels, whose logits differ.",
    "probs": "heavily pruned copies, which are less confident, and networks trained on labels; compare logits if "
    "possible.",
    "labels": "most changes: equal classes say little; compare scores if possible.",
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
    """Sample correlation; the score is a distance, in [0, 2], or in [0, 1] if halved.

    Args:
        variant: kind of probes, see above.
        num_probes: number of images, by default `NUM_PROBES`; all, with a note, if the owner has fewer.
        space: in which outputs are compared; logits in the papers. For an API that returns probabilities, pass their
            logarithms: they serve as logits for `probs` and `clr`.
        kernel: `cosine`, or `rbf`, a monotone map of it.
        halved: whether to divide cosine distances by two, as SAC's code does and SAC-JC's does not; by default as the
            variant's code. Thresholds change by that factor, ranks do not.
        label_only: whether to compare only classes; `space` is then ignored.
        quality: of `jc`, see `jaxguard.fingerprints.jpeg`.
        transpose: of `jc` and `cutmix`: swaps height and width of the probes, as in the authors' code with flip.
        alpha: of `cutmix`, as are `side`, `corner` and `one_box`: see `jaxguard.fingerprints.cutmix`. The authors'
            code has `side=0.2`, `corner`, `one_box` and `transpose`.
        side: of `cutmix`.
        corner: of `cutmix`.
        one_box: of `cutmix`.
        least: of `wrong`: fewest mistakes to accept.
        surrogates: of `wrong`: `[M, N]` classes that models trained on the owner's outputs give all its images; only
            images that they misclassify too are probes. Not kept in certificates.

    Returns:
        The fingerprint. Making probes raises FingerprintError if the owner has too few images or mistakes.

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
    number = NUM_PROBES[variant] if num_probes is None else num_probes
    halves = variant != "jc" if halved is None else halved
    compared = "labels" if label_only else space
    own = {name: value for name, value in given.items() if variant in _SPECIFIC[name]}

    def make(owner: Owner, key: jax.Array, progress: Progress | None) -> Probes:
        del progress
        key_images, key_boxes = jax.random.split(key)
        if variant == "wrong":
            mistakes = owner_images.misclassified(owner, number, key_images, method="sac", **own)
            return Probes(mistakes.images, {}, owner_images.notes(mistakes, number))
        present = 2 if owner.data is None else max(2, min(number, len(owner.data.images)))
        images = owner_images.draw(owner, present, key_images, method="sac")
        if variant == "jc":
            images = jpeg.compressed(images, quality=quality)
        elif variant == "cutmix":
            images = cutmix.cutmix(images, key_boxes, alpha=alpha, side=side, corner=corner, one_box=one_box)
        notes = (f"The owner has {present} images, fewer than {number}.",) if present < number else ()
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
    """`jaxguard.kernels.correlation.distances`, with the suspects distributed over host threads and devices.

    `workers` is the number of threads, by default `jaxguard.execution.workers()`, at least one for each device; the
    result does not depend on it.
    """
    owner, suspects = jnp.asarray(owner), jnp.asarray(suspects)
    places = execution.devices()
    workers = max(execution.workers() if workers is None else workers, len(places))
    workers = max(1, min(workers, len(suspects)))
    share = -(-len(suspects) // workers)
    # Shares of equal length compile once: the last ones overlap if workers do not divide the suspects.
    starts = [min(worker * share, len(suspects) - share) for worker in range(workers)]

    def compare(worker: int) -> np.ndarray:
        own = suspects[starts[worker] : starts[worker] + share]
        given = (owner, own) if len(places) == 1 else jax.device_put((owner, own), places[worker % len(places)])
        return np.asarray(correlation.distances(*given, kernel=kernel, halved=halved))

    parts = execution.in_threads(compare, range(workers), threads=workers)
    return jnp.concatenate([part[worker * share - starts[worker] :] for worker, part in enumerate(parts)])


def _check(variant: Variant, given: Mapping[str, Any]) -> None:
    """Refuses options of other variants, which would be ignored silently."""
    for name, value in given.items():
        default = inspect.signature(sac).parameters[name].default
        unused = variant not in _SPECIFIC[name]
        if unused and not (value is default or (np.ndim(value) == 0 and value == default)):
            raise FingerprintError(
                f"expected {name} with variant {' or '.join(_SPECIFIC[name])}, got {name}={value!r} with {variant} in "
                "sac; leave it out, or pass that variant"
            )


def _transposed(images: np.ndarray) -> np.ndarray:
    if images.shape[1] != images.shape[2]:
        raise FingerprintError(
            f"expected square images to transpose, got {images.shape[1:]} in sac(transpose=True); leave it out"
        )
    return np.ascontiguousarray(images.swapaxes(1, 2))
