"""What a scan of many checkpoints tells."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxguard.types.findings import LayerSummary, Reference


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
