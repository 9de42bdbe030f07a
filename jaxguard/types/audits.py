"""The values that travel through the pipeline.

Shape letters, used in every docstring: `B` batch, `H W` image, `K` classes, `C` channels of a producer, `D` fan-in,
`T` kernel taps, `N` probes, `M` checkpoints in a stack.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

Variables = Mapping[str, Any]
"""A pytree of arrays, for Flax `{"params": ..., "batch_stats": ...}`; never modified in place."""

ApplyFn = Callable[[Variables, jax.Array], jax.Array]
"""`(variables, images [B, H, W, C]) -> logits [B, K]`, in evaluation mode."""

TrainFn = Callable[[Variables, jax.Array], tuple[jax.Array, Variables]]
"""`(variables, images) -> (logits, variables)` in training mode; the result differs in its running statistics only."""


class Batch(NamedTuple):
    """Labelled images.

    Attributes:
        images: `[B, H, W, C]` float32 in [0, 1].
        labels: `[B]` int32 in [0, K).
    """

    images: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits.

    Attributes:
        name: the specification it was loaded from, such as `digits`.
        train: what the model's author trains (and an attacker poisons).
        clean: the few images a defender owns; drawn from the official training split, never in `train`.
        test: what metrics are measured on, and nothing is ever chosen on.
        num_classes: `K`.
    """

    name: str
    train: Batch
    clean: Batch
    test: Batch
    num_classes: int


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
class Verification:
    """What a certificate says of one suspect.

    Attributes:
        suspect: path of its checkpoint, or the address of an endpoint.
        sha256: content hash of its checkpoint; empty for an endpoint.
        distance: the method's own number, in its paper's orientation.
        score: the same, higher is more stolen.
        p_value: how often an independent model would score as high, by the references.
        null_p_value: the same by the method's own null distribution; None for methods without.
        verdict: `copy suspected`, `no evidence`, or `inconclusive` where there are too few references.
    """

    suspect: str
    sha256: str
    distance: float
    score: float
    p_value: float
    null_p_value: float | None
    verdict: str


@dataclass(frozen=True)
class OwnershipReport:
    """Suspects judged by one certificate.

    Attributes:
        owner: name of the owner's checkpoint.
        owner_sha256: its content hash.
        certificate: digest of the certificate, hexadecimal.
        method: row of the FINGERPRINTS table.
        options: of the method.
        num_probes: images that each suspect was asked about.
        alpha: accepted rate of accusing an independent model.
        references: `[R]` scores of models known to be independent.
        reference_names: `[R]` their names.
        verifications: one per suspect.
        sees: thefts the method is made for, in words.
        blind: thefts it cannot see, in words.
        notes: what a reader must know, in whole sentences.
        seconds: wall-clock time, questions included.
    """

    owner: str
    owner_sha256: str
    certificate: str
    method: str
    options: Mapping[str, Any]
    num_probes: int
    alpha: float
    references: np.ndarray
    reference_names: tuple[str, ...]
    verifications: tuple[Verification, ...]
    sees: str = ""
    blind: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class FingerprintMatrix:
    """Every owner against every suspect.

    Attributes:
        method: row of the FINGERPRINTS table.
        options: of the method.
        owners: names, A of them.
        suspects: names, B of them.
        distances: `[A, B]` the method's own numbers.
        scores: `[A, B]` the same, higher is more stolen.
        seconds: wall-clock time.
    """

    method: str
    options: Mapping[str, Any]
    owners: tuple[str, ...]
    suspects: tuple[str, ...]
    distances: np.ndarray
    scores: np.ndarray
    seconds: float = 0.0


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


@dataclass(frozen=True)
class LayerSummary:
    """The channel bounds of one layer in a few numbers, NaN where undefined.

    Attributes:
        name: what was scored, such as `layer1_0/conv1 -> layer1_0/bn1`.
        channels: `C`.
        undefined: channels without a score.
        mean: of the bounds.
        std: of the bounds, `ddof=1`.
        largest: the largest bound.
        channel: which channel that is; -1 where none has a score.
        z: its z-score.
        above: channels above the layer's mean by `u` standard deviations.
    """

    name: str
    channels: int
    undefined: int
    mean: float
    std: float
    largest: float
    channel: int
    z: float
    above: int


@dataclass(frozen=True)
class FleetEntry:
    """What a fleet scan says of one checkpoint.

    Attributes:
        uri: path or URL.
        sha256: content hash, hexadecimal; empty where the file could not be read.
        size: bytes on disk.
        format: row of `jaxguard.checkpoints.FORMATS`; empty where none was recognised.
        architecture: specification, or `unknown`.
        bucket: what it is compared with: checkpoints of one architecture and input, or of the same leaves.
        z: the largest channel z-score of the model; NaN where it could not be scored.
        score: by the reference profile, higher is more suspicious; NaN without one.
        p_value: how often an innocent model of its bucket scores as high; NaN without a profile.
        q_value: the smallest false discovery rate at which it would be among the suspected; NaN without a profile.
        verdict: `backdoor suspected`, `no evidence`, `inconclusive`, or `error`.
        reason: why it is inconclusive, or what the error was; in words.
        deep: whether triggers were searched in it.
        layers: kept for those a reader will ask about, empty for the rest.
    """

    uri: str
    sha256: str
    size: int
    format: str
    architecture: str
    bucket: str
    z: float
    score: float
    p_value: float
    q_value: float
    verdict: str
    reason: str = ""
    deep: bool = False
    layers: tuple[LayerSummary, ...] = ()


@dataclass(frozen=True)
class Reference:
    """What the checkpoints of a bucket were compared with.

    Attributes:
        bucket: see `FleetEntry`.
        scores: `[R]` of models known to be clean, each by a model that was not fitted on it.
        suspects: `[S]` of models known to be backdoored, likewise; may be none.
        power: share of those that would be suspected at `alpha`; NaN where there were none.
        interval: 95 % confidence interval of the power.
    """

    bucket: str
    scores: np.ndarray
    suspects: np.ndarray
    power: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class FleetReport:
    """Everything a fleet scan has to tell.

    Attributes:
        title: headline of the report.
        command: command line that made it.
        entries: one per checkpoint, in the order of discovery.
        skipped: `(path, why)` of files that nobody looked into.
        alpha: accepted false discovery rate.
        profile: path and digest of the reference profile; empty without one.
        references: one per bucket that had any.
        seconds: wall-clock time of the scan.
        bytes_read: bytes that were read in it.
        reused: checkpoints whose results an earlier scan had left.
        notes: what a reader must know, in whole sentences.
        environment: versions, backend: `{name: value}`.
    """

    title: str
    command: str
    entries: tuple[FleetEntry, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    alpha: float = 0.05
    profile: str = ""
    references: tuple[Reference, ...] = ()
    seconds: float = 0.0
    bytes_read: int = 0
    reused: int = 0
    notes: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
