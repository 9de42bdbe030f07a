"""What ShapPruning knows of an attack: a few images, the trigger recovered on them, and the class it leads to."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import inversion, training
from jaxguard.defenses.protocol import Context, require_clean
from jaxguard.errors import DefenseError
from jaxguard.graph import ChannelGraph
from jaxguard.types import Batch, RecoveredTrigger, Variables


@dataclass(frozen=True)
class Recovered:
    """A recovered trigger with the images it was found on.

    Attributes:
        images: `N` images and their labels.
        trigger: what the inversion found, for the report.
        target: the suspected class.
        patch: mask `[H, W, 1]` and pattern `[H, W, C]` of that class.
        notes: what a reader must know.
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
    mask, pattern = patch
    return images * (1 - mask) + mask * pattern


def recover(
    variables: Variables,
    context: Context,
    key: jax.Array,
    *,
    target: int | None,
    most: int,
    synthesised: int,
    synthesis_steps: int,
    steps: int,
) -> Recovered:
    """Inverts the model on the clean images, or on images made from it alone.

    Args:
        variables: of the suspect.
        context: its graph, and clean images unless some are synthesised.
        key: draws images and patches.
        target: the suspected class, if it is known; only its trigger is recovered then.
        most: clean images to use; drawn at random where there are more.
        synthesised: images per class to synthesise instead of taking the clean ones; 0 for none.
        synthesis_steps: of the synthesis.
        steps: most steps of the inversion per class.

    Returns:
        The trigger of the flagged class of smallest patch; where none is flagged, of the smallest patch, with a note.

    Raises:
        DefenseError: no clean images, no image of another class, or `target` is no class.
        DataError: images or labels do not fit the model.
    """
    key_images, key_patch = jax.random.split(key)
    graph: ChannelGraph = context.graph
    num_classes = graph.program.shapes[graph.program.logits][-1]
    if target is not None and not 0 <= target < num_classes:
        raise DefenseError(f"expected target to be a class in [0, {num_classes}), came {target}; leave it out")
    if synthesised:
        made = inversion.synthesise(
            graph,
            variables,
            key_images,
            labels=np.repeat(np.arange(num_classes), synthesised),
            steps=synthesis_steps,
            progress=staged(context.progress, "synthesising images"),
        )
        images, source = Batch(np.asarray(made.images), np.repeat(np.arange(num_classes), synthesised)), made.source
    else:
        images = _some(require_clean(context, "shapley"), most, key_images)
        source = f"{len(images.images)} clean images"
    found = inversion.invert(
        context.apply_fn,
        variables,
        images.images,
        images.labels,
        key_patch,
        classes=None if target is None else (target,),
        steps=steps,
        progress=staged(context.progress, "recovering triggers"),
    )
    if target is None:
        trigger, notes = inversion.recovered_trigger(found, source=source), ()
        suspected = int(trigger.shown[0]) if trigger.target is None else trigger.target
        if trigger.target is None:
            notes = (
                f"No class stands out by its patch (highest anomaly index {trigger.anomaly.max():.1f}, flagged above "
                f"2): the model may have no backdoor of this kind. Class {suspected}, of smallest patch, was taken.",
            )
    else:
        trigger, suspected = _named(found, target, num_classes, source), target
        notes = (f"Class {target} was named beforehand, so only its trigger was recovered.",)
    if (np.asarray(images.labels) == suspected).all():
        raise DefenseError(
            f"expected images of other classes than the suspected class {suspected}, came none among {source}; "
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


def _named(found: inversion.Inversion, target: int, num_classes: int, source: str) -> RecoveredTrigger:
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


def staged(progress: training.Progress | None, stage: str) -> training.Progress | None:
    """Progress that also says which stage of a defense is under way."""
    return progress and (lambda done, total, metrics: progress(done, total, {**metrics, "stage": stage}))
