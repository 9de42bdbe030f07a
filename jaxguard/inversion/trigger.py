"""Neural Cleanse: for every class the smallest patch that turns images into it, all classes in one program.

A backdoored class needs a much smaller patch than the others. For each class y a mask `m` and a pattern `p` minimise

    CE(f((1 - m) x + m p), y) + c ||m||_1,    m and p = tanh(theta) / (2 + 1e-7) + 1/2, m with one channel

with Adam, while a schedule changes the cost `c`: up if the patch works, down if it does not. The classes share the
weights, so their stamped images are one batch of one forward pass. Each class has its own schedule, best mask and early
stop; when a class stops, a waiting one takes its place.

Wang et al.: Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks, S&P 2019. The settings are
BackdoorBench's for CIFAR-10, with these differences:

- images of class y count neither in its loss nor in its rate, since they say nothing about a patch;
- an epoch is a pass over the defender's images, but 2 to 10 steps: with ten images a pass is one step, and a class
  would stop 25 steps after its last progress. On the demo's networks (seeds 10-14) single steps stopped some classes
  far from their smallest patch, and 2 steps found the same targets as 10 at a quarter of the cost. `steps` limits the
  descent; 800 equals BackdoorBench's 80 epochs of 10;
- the rate of an epoch counts at most its last pass. With all images in one batch, it is the rate of the kept patch; in
  smaller batches the patch changes during the count, and `success` can be lower;
- batches have 128 images instead of 256; first masks and patterns are uniform noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxguard import execution, meshes, programs, training
from jaxguard.errors import DataError, JaxguardError
from jaxguard.inversion.batches import require_labels, require_unit_range, rows_of
from jaxguard.inversion.descent import Descent, Patch, State, stamped_logits
from jaxguard.inversion.workers import run
from jaxguard.types import ApplyFn, Batch, Variables

EPOCH_STEPS = (2, 10)
"""Default limits of the steps of an epoch."""


class Inversion(NamedTuple):
    """The patches of all classes.

    Attributes:
        masks: `[K, H, W, 1]` opacity in [0, 1].
        patterns: `[K, H, W, C]` in [0, 1].
        norms: `[K]` L1 norm of each mask, in pixels.
        success: `[K]` share of the images of other classes that the patch turns into the class.
        reached: `[K]` bool, whether a patch reached the threshold; if none did, the patch is the last one tried.
        steps: `[K]` int, steps taken until the class stopped.
    """

    masks: np.ndarray
    patterns: np.ndarray
    norms: np.ndarray
    success: np.ndarray
    reached: np.ndarray
    steps: np.ndarray


def invert(
    apply_fn: ApplyFn,
    variables: Variables,
    images: jax.Array | np.ndarray,
    labels: jax.Array | np.ndarray | None,
    key: jax.Array,
    *,
    classes: Sequence[int] | None = None,
    steps: int = 800,
    batch_size: int = 128,
    epoch_steps: int | None = None,
    learning_rate: float = 0.1,
    betas: tuple[float, float] = (0.5, 0.9),
    cost: float = 1e-3,
    multiplier: float = 2.0,
    patience: int = 5,
    threshold: float = 0.98,
    stop_patience: int = 25,
    stop_ratio: float = 0.99,
    classes_at_once: int | None = None,
    workers: int | None = None,
    progress: training.Progress | None = None,
) -> Inversion:
    """Recovers a patch for every class.

    The patch of a class depends on the key and the class, not on the other classes inverted with it.

    Args:
        apply_fn: model in evaluation mode, normalisation included; hashable.
        variables: its variables.
        images: `[N, H, W, C]` in [0, 1], one per class or thousands; images of all classes are best.
        labels: int `[N]`; None for the model's own predictions.
        key: draws first masks, patterns and batches.
        classes: to invert, one row of the result each; all by default.
        steps: upper limit per class.
        batch_size: images per step and class, at most `N`. On CPU 32 is cheaper, if there are more.
        epoch_steps: steps between two evaluations of a patch; by default a pass over the images, but at least 2 and
            at most 10 steps. The rate counts the last steps of each, at most a pass.
        learning_rate: of Adam.
        betas: of Adam.
        cost: initial `c`.
        multiplier: factor on `c` after `patience` good epochs; `multiplier**-1.5` after as many bad ones.
        patience: epochs in a row.
        threshold: least share of images in a good epoch, in (0, 1].
        stop_patience: epochs without progress after which a class stops, if its cost has gone up and down.
        stop_ratio: progress is a norm below this share of the previous best.
        classes_at_once: classes in one forward pass; by default what suits the backend. When a class stops, the next
            one takes its place.
        workers: concurrent descents; by default one for each core, or one over several devices.
        progress: called a few times per second; the total is an upper bound.

    Raises:
        DataError: images, labels or classes do not fit each other or the model.
        JaxguardError: the model's logits are not finite.
        ValueError: a hyper-parameter out of range.

    Example:
        >>> brightest = lambda variables, images: 10 * images.reshape(len(images), -1)
        >>> found = invert(brightest, {}, np.eye(4).reshape(4, 2, 2, 1), None, jax.random.key(0), steps=200)
        >>> found.masks.shape, found.success.tolist()
        ((4, 2, 2, 1), [1.0, 1.0, 1.0, 1.0])
    """
    _check_settings(
        steps=steps,
        batch_size=batch_size,
        epoch_steps=epoch_steps,
        patience=patience,
        stop_patience=stop_patience,
        classes_at_once=classes_at_once,
        workers=workers,
    )
    if multiplier <= 1 or not 0 < threshold <= 1:
        raise ValueError(
            f"expected multiplier > 1 and threshold in (0, 1], got {multiplier=}, {threshold=} in invert(); "
            "leave them out for the published values"
        )
    data, num_classes = _checked(apply_fn, variables, images, labels, batch_size)
    targets = list(range(num_classes) if classes is None else classes)
    if not targets or min(targets) < 0 or max(targets) >= num_classes:
        raise DataError(f"expected classes in [0, {num_classes}), got {targets[:10]} in invert(); pass others")
    batch_size = min(batch_size, len(data.images))
    workers = min(workers or execution.searches_at_once(), len(targets))
    share = -(-len(targets) // workers)
    slots = meshes.divisible(min(classes_at_once or max(1, execution.stamped_images_at_once() // batch_size), share))
    epoch_steps = epoch_steps or int(np.clip(training.steps_per_epoch(len(data.images), batch_size), *EPOCH_STEPS))
    descent = Descent(
        apply_fn=apply_fn,
        batch_size=batch_size,
        steps=steps,
        epoch_steps=epoch_steps,
        learning_rate=learning_rate,
        betas=betas,
        cost=cost,
        multiplier=multiplier,
        patience=patience,
        threshold=threshold,
        stop_patience=stop_patience,
        stop_ratio=stop_ratio,
    )
    key_start, key_batch = jax.random.split(key)

    def start(classes: Sequence[int]) -> State:
        return _start(descent, jnp.asarray(classes), data.images.shape[1:], key_start)

    rows = run(
        Partial(descent, *meshes.everywhere((variables, data, key_batch))),
        start,
        targets,
        slots=slots,
        workers=workers,
        progress=progress,
    )
    masks, patterns = (np.stack([row.best[part] for row in rows]) for part in (0, 1))
    classify = partial(_stamped_classes, apply_fn, variables)
    assigned = _classify(classify, np.asarray(data.images), (masks, patterns), (slots, batch_size))
    other = np.asarray(data.labels)[None] != np.asarray(targets)[:, None]
    hits = other & (assigned == np.asarray(targets)[:, None])
    return Inversion(
        masks=masks,
        patterns=patterns,
        norms=masks.sum((1, 2, 3)),
        success=np.where(other.any(1), hits.sum(1) / np.maximum(other.sum(1), 1), np.nan),
        reached=np.array([np.isfinite(row.best_norm) for row in rows]),
        steps=np.array([row.step for row in rows]),
    )


_start = programs.jit(Descent.start, static_argnums=(0, 2))


@partial(programs.jit, static_argnums=0)
def _stamped_classes(apply_fn: ApplyFn, variables: Variables, images: jax.Array, patch: Patch) -> jax.Array:
    return stamped_logits(apply_fn, variables, images, patch).argmax(-1)


def _classify(
    classify: Callable[..., jax.Array], images: np.ndarray, patch: tuple[np.ndarray, np.ndarray], block: tuple[int, int]
) -> np.ndarray:
    """Classes `[K, N]` of all images with all patches, block by block; the last blocks are filled up."""
    patches, columns = (rows_of(total, size) for total, size in zip((len(patch[0]), len(images)), block, strict=True))
    found = [[np.asarray(classify(images[c], (patch[0][p], patch[1][p]))) for c in columns] for p in patches]
    return np.block(found)[: len(patch[0]), : len(images)]


@partial(programs.jit, static_argnums=0)
def _logits(apply_fn: ApplyFn, variables: Variables, images: jax.Array) -> jax.Array:
    return apply_fn(variables, images)


def _check_settings(**settings: int | None) -> None:
    for name, value in settings.items():
        if value is not None and value < 1:
            raise ValueError(f"expected {name} >= 1, got {value} in invert(); leave it out for its default")


def _checked(
    apply_fn: ApplyFn,
    variables: Variables,
    images: jax.Array | np.ndarray,
    labels: jax.Array | np.ndarray | None,
    batch_size: int,
) -> tuple[Batch, int]:
    """Images with labels, by default the model's own predictions, and the number of classes."""
    images = jnp.asarray(images, jnp.float32)
    if images.ndim != 4 or 0 in images.shape:
        raise DataError(f"expected images [N, H, W, C], got {images.shape} in invert(); add the missing axes")
    require_unit_range(images, "invert")
    rows = rows_of(len(images), min(batch_size, len(images)))
    parts = [_logits(apply_fn, variables, images[row]) for row in rows]
    first = parts[0]
    if first.ndim != 2 or len(first) != rows.shape[1] or not jnp.issubdtype(first.dtype, jnp.floating):
        raise DataError(
            f"expected floating-point logits [{rows.shape[1]}, K], got {first.dtype}{list(first.shape)} from apply_fn "
            "in invert(); wrap the model so that it returns one row of logits per image"
        )
    logits = np.concatenate(parts)[: len(images)]
    if not np.isfinite(logits).all():
        raise JaxguardError(
            "expected finite logits of the clean images, got NaN or infinity in invert(); check the model's variables "
            "for NaN and overflow"
        )
    num_classes = logits.shape[-1]
    known = logits.argmax(-1) if labels is None else np.asarray(labels)
    require_labels(known, len(images), num_classes, "invert")
    return Batch(images, jnp.asarray(known, jnp.int32)), num_classes
