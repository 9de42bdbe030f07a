"""What a scan of many checkpoints tells."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


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
        alpha: accepted error rate.
        control: what of: `fdr`, of all that are suspected; `each`, of every checkpoint as if it were alone.
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
    control: str = "fdr"
    profile: str = ""
    references: tuple[Reference, ...] = ()
    seconds: float = 0.0
    bytes_read: int = 0
    reused: int = 0
    notes: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
