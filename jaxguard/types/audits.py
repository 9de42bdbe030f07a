"""What is measured on a checkpoint, recovered from it, and done to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Metrics:
    """Rates in [0, 1] over a whole test set; `asr` and `ra` are None without a trigger.

    Attributes:
        acc: clean accuracy.
        asr: attack success rate: triggered images not of the target class that are given the target class.
        ra: robust accuracy: the same images given their true class.
        num_images: images behind `acc`.
        num_triggered: images behind `asr` and `ra`.
    """

    acc: float
    asr: float | None = None
    ra: float | None = None
    num_images: int = 0
    num_triggered: int = 0


@dataclass(frozen=True)
class LayerScores:
    """Scores of one layer's channels; higher is more suspicious.

    Attributes:
        name: leaf path of what was scored, such as `layer1_0/conv1 -> layer1_0/bn1`.
        scores: `[C]`; NaN where undefined.
        threshold: channels with a score above it are suspicious; infinite where none can be set.
        mask: `[C]` bool, True where a defense edits (cuts) the channel.
        undefined: `[C]` bool, True where no score exists (zero running variance, for one).
        errors: `[C]` standard errors, where the scores are estimates.
    """

    name: str
    scores: np.ndarray
    threshold: float
    mask: np.ndarray
    undefined: np.ndarray
    errors: np.ndarray | None = None


@dataclass(frozen=True)
class RecoveredTrigger:
    """What an inversion found: for every class the smallest patch that turns images into it.

    Where one class was named beforehand, only its norm and success are known; the rest is NaN.

    Attributes:
        norms: `[K]` L1 norm of each class's mask, in pixels.
        success: `[K]` share of the images of other classes that the patch turns into the class.
        anomaly: `[K]` deviations of the norm below the median, in units of 1.4826 MAD; negative above it.
        target: the suspected class; None where no class stands out.
        shown: `[R]` classes whose patches are kept for pictures, smallest mask first.
        masks: `[R, H, W, 1]` opacity in [0, 1].
        patterns: `[R, H, W, C]` in [0, 1].
        source: what images it was found on, such as `10 clean images` or `10 synthesised images`.
    """

    norms: np.ndarray
    success: np.ndarray
    anomaly: np.ndarray
    target: int | None
    shown: np.ndarray
    masks: np.ndarray
    patterns: np.ndarray
    source: str


@dataclass(frozen=True)
class PruningPath:
    """What became of a model as channels were cut one after the other; all measured on the defender's own images.

    Attributes:
        channels: `[P]` what was cut, in this order, such as `layer2_0/conv1[17]`.
        values: `[P]` Shapley value of each.
        errors: `[P]` its standard error.
        attack: `[P + 1]` share of images that the recovered trigger turns into the target, before any cut and after
            each.
        accuracy: `[P + 1]` accuracy on the clean images.
        chosen: cuts that were kept; those after it were only tried.
        stop: why it ended there, in a few words.
    """

    channels: tuple[str, ...]
    values: np.ndarray
    errors: np.ndarray
    attack: np.ndarray
    accuracy: np.ndarray
    chosen: int
    stop: str


@dataclass(frozen=True)
class Repair:
    """What a defense did to one checkpoint, with proof where test data was given.

    Attributes:
        checkpoint: path as the user gave it.
        method: row of the DEFENSES table.
        options: hyper-parameters as used.
        layers: scores and cut channels, where the method cuts channels.
        change: relative L2 change of each edited leaf, `{leaf path: ratio}`.
        before: metrics of the input model, None without test data.
        after: metrics of the repaired model, None without test data.
        der: defense effectiveness rate in [0, 1], None without a trigger.
        notes: caveats for the reader, in full sentences.
        seconds: wall-clock time of the repair.
        trigger: what an inversion recovered, where the method inverts.
        path: the pruning path, where the method has one.
    """

    checkpoint: str
    method: str
    options: Mapping[str, Any]
    layers: tuple[LayerScores, ...] = ()
    change: Mapping[str, float] = field(default_factory=dict)
    before: Metrics | None = None
    after: Metrics | None = None
    der: float | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    trigger: RecoveredTrigger | None = None
    path: PruningPath | None = None


@dataclass(frozen=True)
class TriggerExample:
    """Pictures of an attack: test images as they are and with the trigger, `[N, H, W, C]` in [0, 1].

    `target` is None for an attack whose target depends on the true label.
    """

    clean: np.ndarray
    triggered: np.ndarray
    attack: str
    target: int | None
