"""What scans and repairs of single checkpoints tell, and the report that holds all of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxguard.types.ownership import FingerprintMatrix, OwnershipReport


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
class ScanReport:
    """What a scan saw in one checkpoint.

    Attributes:
        checkpoint: path as the user gave it.
        sha256: content hash of the checkpoint, hexadecimal.
        architecture: specification such as `resnet20:width=0.5`.
        method: what scored the channels.
        verdict: `inconclusive` until calibrated against a reference fleet; never `clean`.
        score: the largest channel z-score of the model.
        layers: one entry per scored layer, in program order.
        notes: what a reader must know, in whole sentences.
        seconds: wall-clock time of scoring.
        metrics: measured on a test set, where one was given.
    """

    checkpoint: str
    sha256: str
    architecture: str
    method: str
    verdict: str
    score: float
    layers: tuple[LayerScores, ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    metrics: Metrics | None = None


@dataclass(frozen=True)
class RepairReport:
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
        notes: what a reader must know, in whole sentences.
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


@dataclass(frozen=True)
class AuditReport:
    """Everything one command has to tell; `jaxguard.report` turns it into a table, JSON or HTML.

    Attributes:
        title: headline of the report.
        command: command line that made it.
        scans: one per checkpoint.
        repairs: one per method tried.
        trigger: example pictures, where a trigger is known.
        ownerships: one per certificate that suspects were judged by.
        matrices: owners against suspects.
        environment: versions, backend, seeds: `{name: value}`.
    """

    title: str
    command: str
    scans: tuple[ScanReport, ...] = ()
    repairs: tuple[RepairReport, ...] = ()
    trigger: TriggerExample | None = None
    ownerships: tuple[OwnershipReport, ...] = ()
    matrices: tuple[FingerprintMatrix, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
