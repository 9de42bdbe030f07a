"""Accuracy, attack success and what a defense achieved, over a whole test set in evaluation mode."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import meshes
from jaxguard.attacks import Attack
from jaxguard.errors import DataError
from jaxguard.types import Batch, Metrics, Network, TriggerExample


def _classes(network: Network, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Classes `[B]` and `K` of one forward pass."""
    logits = network(images)
    network.require_classes(logits)
    classes = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    defined = ~jnp.isnan(logits).any(axis=-1)
    return jnp.where(defined, classes, -1), jnp.int32(logits.shape[-1])


def chunked(images: jax.Array | np.ndarray, batch_size: int) -> jax.Array:
    """Images in batches of one size, so that a model is compiled once and mapped over them.

    Args:
        images: `[N, ...]`, N >= 1.
        batch_size: images per batch; all of them where there are fewer.

    Returns:
        `[chunks, B, ...]`; the last batch is filled up with zeros.

    Example:
        >>> chunked(np.arange(3.0)[:, None], 2)[..., 0].tolist()
        [[0.0, 1.0], [2.0, 0.0]]
    """
    images, size = jnp.asarray(images), min(batch_size, len(images))
    num_chunks = -(-len(images) // size)
    padded = jnp.pad(images, ((0, num_chunks * size - len(images)), *[(0, 0)] * (images.ndim - 1)))
    return padded.reshape(num_chunks, size, *images.shape[1:])


def _predict(network: Network, images: jax.Array | np.ndarray, batch_size: int) -> tuple[np.ndarray, int]:
    num_images = len(images)
    if num_images == 0 or batch_size < 1:
        raise DataError(
            f"expected at least one test image and batch_size >= 1, got {num_images} images, {batch_size=} "
            "in evaluation; check how the test set was made"
        )
    classes, num_classes = meshes.chunk_by_chunk(_classes, network, chunked(images, batch_size))
    return np.asarray(classes).reshape(-1)[:num_images], int(num_classes[0])


def predictions(network: Network, images: jax.Array | np.ndarray, *, batch_size: int = 500) -> np.ndarray:
    """The class of every image; compiled once per function and shape of a batch.

    Args:
        network: its variables and function in evaluation mode.
        images: `[N, H, W, C]`, N >= 1.
        batch_size: images per forward pass; the last batch is padded.

    Returns:
        int32 `[N]`, in [0, K); -1 where a logit is NaN, so that a broken model is never right by chance.

    Raises:
        DataError: no image.

    Example:
        >>> brightest = lambda variables, images: images.reshape(len(images), -1)
        >>> predictions(Network({}, brightest, (1, 3, 1)), np.eye(3).reshape(3, 1, 3, 1)).tolist()
        [0, 1, 2]
    """
    return _predict(network, images, batch_size)[0]


def evaluate(
    network: Network,
    test: Batch,
    attack: Attack | None = None,
    *,
    batch_size: int = 500,
) -> Metrics:
    """Clean accuracy, and with an attack its success rate and the robust accuracy; exact counts.

    ASR is the share of triggered images given the attacker's label, RA of those given their true one, both over
    the test images whose label is not the attacker's anyway.

    Args:
        network: its variables and function in evaluation mode.
        test: `N` test images.
        attack: the trigger, if one is known.
        batch_size: images per forward pass.

    Returns:
        The metrics.

    Raises:
        DataError: no image, a label the model has no class for, or no image the attack could change.

    Example:
        >>> from jaxguard.attacks import badnets
        >>> test = Batch(jnp.zeros((2, 2, 2, 1)), jnp.array([0, 1]))
        >>> is_dark = lambda variables, images: 1 - images.max((1, 2, 3))
        >>> white_is_0 = lambda *inputs: jnp.stack([0.5 - is_dark(*inputs), is_dark(*inputs) - 0.5], axis=1)
        >>> metrics = evaluate(Network({}, white_is_0, (2, 2, 1)), test, badnets(size=1))
        >>> metrics.acc, metrics.asr, metrics.num_triggered
        (0.5, 1.0, 1)
    """
    labels = np.asarray(test.labels)
    if labels.shape != (len(test.images),):
        raise DataError(
            f"expected one label per image, got {len(test.images)} images and labels of shape {labels.shape} in "
            "evaluate(test=...); check how the test set was made"
        )
    classes, num_classes = _predict(network, test.images, batch_size)
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(
            f"expected labels in [0, {num_classes}), as many as the model has logits, got {labels.min()} to "
            f"{labels.max()} in evaluate(test=...); use the data set the model was trained for"
        )
    acc = float(np.mean(classes == labels))
    if attack is None:
        return Metrics(acc=acc, num_images=len(labels))

    wanted = np.asarray(attack.relabel(labels))
    changeable = wanted != labels
    num_triggered = int(changeable.sum())
    if num_triggered == 0:
        raise DataError(
            f"expected test images that {attack.name} could change, got {len(labels)} that all bear its label in "
            "evaluate(attack=...); use the whole test set, or the attack's true target"
        )
    # Stamping all of them keeps the shape, and so the compiled program.
    classes, _ = _predict(network, attack.stamp(jnp.asarray(test.images)), batch_size)
    return Metrics(
        acc=acc,
        asr=int((classes == wanted)[changeable].sum()) / num_triggered,
        ra=int((classes == labels)[changeable].sum()) / num_triggered,
        num_images=len(labels),
        num_triggered=num_triggered,
    )


def accuracy(network: Network, test: Batch, *, batch_size: int = 500) -> float:
    """Share of test images given their label.

    Args:
        network: its variables and function in evaluation mode.
        test: `N` test images.
        batch_size: images per forward pass.

    Returns:
        A rate in [0, 1].

    Raises:
        DataError: as `evaluate`.
    """
    return evaluate(network, test, batch_size=batch_size).acc


def defense_effectiveness_rate(before: Metrics, after: Metrics) -> float:
    """`DER = [max(0, ASR drop) - max(0, ACC drop) + 1] / 2` (FT-SAM paper, eq. 7).

    1 is a backdoor removed at no cost, 0.5 nothing done, below 0.5 harm.

    Args:
        before: metrics of the backdoored model, with `asr`.
        after: metrics of the repaired one, with `asr`.

    Returns:
        A rate in [0, 1].

    Raises:
        DataError: either was measured without a trigger.

    Example:
        >>> der = defense_effectiveness_rate(Metrics(acc=0.9182, asr=0.9379), Metrics(acc=0.9029, asr=0.0170))
        >>> round(der, 4)  # BadNets, fine-tuning, Table 1
        0.9528

    Reference:
        Zhu et al.: Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization, ICCV 2023.
    """
    if before.asr is None or after.asr is None:
        raise DataError(
            f"expected metrics measured with a trigger, got asr={before.asr} before and asr={after.asr} after in "
            "defense_effectiveness_rate(); evaluate both with attack="
        )
    return (max(0.0, before.asr - after.asr) - max(0.0, before.acc - after.acc) + 1) / 2


def trigger_example(attack: Attack, test: Batch, *, count: int = 8) -> TriggerExample:
    """Pictures of a trigger on the first test images it could change.

    Args:
        attack: the trigger.
        test: images.
        count: how many at most.

    Returns:
        Images without and with the trigger.

    Raises:
        DataError: no test image has a label that the attack changes.
    """
    labels = np.asarray(test.labels)
    chosen = np.flatnonzero(np.asarray(attack.relabel(labels)) != labels)[:count]
    if not chosen.size:
        raise DataError(
            f"expected test images with other labels than {attack.name}'s target, got none; give more images"
        )
    images = np.asarray(test.images)[chosen]
    return TriggerExample(images, np.asarray(attack.stamp(jnp.asarray(images))), attack.name, attack.target)
