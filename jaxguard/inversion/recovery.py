"""The trigger of a suspected class, recovered on the clean images or on images made from the network alone."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import training
from jaxguard.errors import DefenseError
from jaxguard.inversion.anomaly import recovered_trigger
from jaxguard.inversion.synthesis import synthesise
from jaxguard.inversion.trigger import Inversion, invert
from jaxguard.types import Batch, Network, RecoveredTrigger


@dataclass(frozen=True)
class Recovered:
    """A recovered trigger with the images it was found on.

    Attributes:
        images: `N` images and their labels.
        trigger: what the inversion found, for the report.
        target: the suspected class.
        patch: mask `[H, W, 1]` and pattern `[H, W, C]` of that class.
        notes: remarks for the report.
    """

    images: Batch
    trigger: RecoveredTrigger
    target: int
    patch: tuple[jax.Array, jax.Array]
    notes: tuple[str, ...]

    def stamped_others(self) -> jax.Array:
        """The images of other classes, with the trigger."""
        others = np.asarray(self.images.labels) != self.target
        return stamp(jnp.asarray(self.images.images)[others], self.patch)


def stamp(images: jax.Array, patch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """`x (1 - mask) + pattern mask`, for `[..., H, W, C]`."""
    mask, pattern = (jnp.expand_dims(part, range(images.ndim - 3)) for part in patch)
    return images * (1 - mask) + mask * pattern


def recover(
    network: Network,
    clean: Batch | None,
    key: jax.Array,
    *,
    target: int | None = None,
    most: int,
    synthesised: int = 0,
    synthesis_steps: int = 300,
    steps: int,
    progress: training.Progress | None = None,
) -> Recovered:
    """Inverts the network on the clean images, or on images made from it alone.

    Args:
        network: the suspect.
        clean: the defender's images; None where images are synthesised.
        key: draws images and patches.
        target: the suspected class, if it is known; only its trigger is recovered then.
        most: clean images to use; drawn at random where there are more.
        synthesised: images per class to synthesise where there are no clean ones.
        synthesis_steps: of the synthesis.
        steps: most steps of the inversion per class.
        progress: called as the work proceeds.

    Returns:
        The trigger of the flagged class with the smallest patch; where none is flagged, of the class with the smallest
        patch, with a note.

    Raises:
        DefenseError: no image of another class, or `target` is no class.
        DataError: images or labels do not fit the model.
    """
    key_images, key_patch = jax.random.split(key)
    num_classes = network.num_classes
    if target is not None and not 0 <= target < num_classes:
        raise DefenseError(f"expected target to be a class in [0, {num_classes}), got {target}; leave it out")
    if clean is None:
        labels = np.repeat(np.arange(num_classes), synthesised)
        made = synthesise(
            network.graph,
            network.variables,
            key_images,
            labels=labels,
            steps=synthesis_steps,
            progress=training.staged(progress, "synthesising images"),
        )
        images, source = Batch(np.asarray(made.images), labels), made.source
    else:
        images = _some(clean, most, key_images)
        source = f"{len(images.images)} clean images"
    found = invert(
        network.apply_fn,
        network.variables,
        images.images,
        images.labels,
        key_patch,
        classes=None if target is None else (target,),
        steps=steps,
        progress=training.staged(progress, "recovering triggers"),
    )
    if target is None:
        trigger, notes = recovered_trigger(found, source=source), ()
        suspected = int(trigger.shown[0]) if trigger.target is None else trigger.target
        if trigger.target is None:
            notes = (
                f"No class stands out by its patch (highest anomaly index {trigger.anomaly.max():.1f}, flagged above "
                f"2): the model may have no backdoor of this kind. Class {suspected}, with the smallest, was taken.",
            )
    else:
        trigger, suspected = _named(found, target, num_classes, source), target
        notes = (f"Class {target} was named beforehand, so only its trigger was recovered.",)
    if (np.asarray(images.labels) == suspected).all():
        raise DefenseError(
            f"expected images of other classes than the suspected class {suspected}, got none among {source}; "
            "give at least one image of each class"
        )
    row = list(trigger.shown).index(suspected)
    return Recovered(
        images, trigger, suspected, (jnp.asarray(trigger.masks[row]), jnp.asarray(trigger.patterns[row])), notes
    )


def _some(clean: Batch, most: int, key: jax.Array) -> Batch:
    """At most so many of the images, in their order."""
    if len(clean.images) <= most:
        return clean
    chosen = np.sort(np.asarray(jax.random.permutation(key, len(clean.images)))[:most])
    return Batch(np.asarray(clean.images)[chosen], np.asarray(clean.labels)[chosen])


def _named(found: Inversion, target: int, num_classes: int, source: str) -> RecoveredTrigger:
    """Of the one class that was inverted; nothing is known of the others, nor how far it stands out."""
    unknown = np.full(num_classes, np.nan, np.float32)
    norms, success = unknown.copy(), unknown.copy()
    norms[target], success[target] = found.norms[0], found.success[0]
    return RecoveredTrigger(
        norms=norms,
        success=success,
        anomaly=unknown,
        target=target,
        shown=np.array([target]),
        masks=found.masks,
        patterns=found.patterns,
        source=source,
    )
