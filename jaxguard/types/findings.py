"""Findings of a scan, and what they rest on."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jaxguard.checkpoints.calls import Call
from jaxguard.types.audits import Metrics
from jaxguard.types.searches import TriggerSearch

if TYPE_CHECKING:
    import numpy as np


class Verdict(enum.StrEnum):
    """What a scan says of a checkpoint, or a certificate of a suspect. It never says `clean`.

    A scan suspects a backdoor, a certificate suspects a copy.
    """

    CODE_EXECUTION = "code execution"
    """A loader would run code from the file, whatever its weights are."""

    CONFIRMED = "confirmed"
    """A known trigger turns nearly all test images into the attacker's class."""

    SUSPECTED = "suspected"
    """Clean (or independent) networks score as high too rarely."""

    NO_EVIDENCE = "no evidence"
    """It scores as clean (or independent) networks do; how much that means depends on the measured power."""

    NO_TRIGGER = "no trigger found"
    """No universal trigger of the kinds and sizes searched stands out; of other kinds nothing is known."""

    INCONCLUSIVE = "inconclusive"
    """There is too little to compare it with."""

    ERROR = "error"
    """It could not be read or scored."""


@dataclass(frozen=True)
class Provenance:
    """Where a scanned network came from.

    Attributes:
        name: path or URL of its checkpoint, or the name of a live network.
        sha256: content hash of the checkpoint, hexadecimal; empty where it could not be read or was not computed.
        size: bytes on disk; 0 for a live network.
        format: row of `jaxguard.checkpoints.FORMATS`; empty for a live network or where none was recognised.
        architecture: specification such as `resnet20:width=0.5`, or `unknown`.
        blake3: another content hash, in place of SHA-256 where a fleet is scanned and contents are compared with one
            another alone.
    """

    name: str
    sha256: str = ""
    size: int = 0
    format: str = ""
    architecture: str = "unknown"
    blake3: str = ""

    @property
    def content(self) -> str:
        """Name of the content, equal for equal ones of one scan: SHA-256, or `blake3:` and that; may be empty.

        >>> Provenance("m.npz", "ab").content, Provenance("m.npz", blake3="ab").content, Provenance("m.npz").content
        ('ab', 'blake3:ab', '')
        """
        return self.sha256 or (f"blake3:{self.blake3}" if self.blake3 else "")


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
        threshold: the score they exceed, mean + `u` std; infinite where it is not known or cannot be set.
        scores: `[C]` all bounds; None where only the summary was kept.
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
    threshold: float = math.inf
    scores: np.ndarray | None = None


CODE = "code"
"""The look of a scan that examines files for code alone."""

NOT_ASKED = "it was not asked for"
"""Why no triggers were searched in a scan without a search."""

UNCLEAR = "Not understood: "
"""How the note of a finding begins in which more than a tenth of the weights was not understood."""


@dataclass(frozen=True)
class LeafAccount:
    """What became of one leaf of a checkpoint.

    Attributes:
        name: in the file.
        state: `scored`, `not a layer` or `not understood`.
        reason: why, in words.
        numbers: elements.
        nbytes: bytes in memory.
    """

    name: str
    state: str
    reason: str
    numbers: int
    nbytes: int


@dataclass(frozen=True)
class Finding:
    """The result of scanning one checkpoint or live network.

    Attributes:
        provenance: where it came from.
        verdict: never `clean`.
        reason: why, in words: what the verdict rests on, what is missing, or what the error was.
        cohort: the cohort it is compared with: checkpoints of one architecture and input, or of equal leaves.
        z: the largest channel z-score of the network; NaN where it could not be scored.
        score: by the reference profile, or the gap of a trigger search; higher is more suspicious, NaN without both.
        p_value: how often a clean network scores as high; NaN without a score.
        q_value: the smallest false discovery rate at which it is among the suspected; NaN without a score.
        looks: what was examined: `weights`, `responses`, `triggers`, `universal triggers`.
        layers: kept for the findings that a reader looks into, empty for the rest of a large fleet.
        search: universal triggers of all classes, where they were searched.
        unsearched: why no universal triggers were searched, in words; empty where they were, or nothing was scored.
        metrics: measured on a test set, where one was given.
        notes: caveats for the reader, in full sentences.
        code: what a loader of the file would run.
        leaves: what became of every leaf, for every finding of a checkpoint whose header could be read; findings of
            one structure share the tuple.
        left_out: stored entries that are no leaves of the model, `{name: reason}`.
        aliases: `{leaf: its other names}`, same storage.
        kind: why it could not be scored, one word: `unsupported` (a sound file of a kind that is not read), `damaged`,
            `hostile` (it tries a trick), `unreadable`, `not finite`, `unscorable` or `failed`; empty where it could.
    """

    provenance: Provenance
    verdict: Verdict
    reason: str = ""
    cohort: str = ""
    z: float = math.nan
    score: float = math.nan
    p_value: float = math.nan
    q_value: float = math.nan
    looks: tuple[str, ...] = ()
    layers: tuple[LayerSummary, ...] = ()
    search: TriggerSearch | None = None
    unsearched: str = ""
    metrics: Metrics | None = None
    notes: tuple[str, ...] = ()
    code: tuple[Call, ...] = ()
    leaves: tuple[LeafAccount, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kind: str = ""

    @property
    def counts(self) -> list[tuple[str, int, int, int]]:
        """State, leaves, numbers and bytes; one row per state that occurs, the scored first.

        >>> leaf = LeafAccount("w", "not a layer", "bias", 3, 12)
        >>> Finding(Provenance("m.npz"), Verdict.INCONCLUSIVE, leaves=(leaf, leaf)).counts
        [('not a layer', 2, 6, 24)]
        """
        rows = []
        for state in ("scored", "not a layer", "not understood"):
            members = [one for one in self.leaves if one.state == state]
            if members:
                rows.append((state, len(members), sum(m.numbers for m in members), sum(m.nbytes for m in members)))
        return rows

    @property
    def is_unclear(self) -> bool:
        """Whether more than a tenth of the weights was not understood."""
        return any(note.startswith(UNCLEAR) for note in self.notes)


@dataclass(frozen=True)
class Reference:
    """What the checkpoints of a cohort were compared with.

    Attributes:
        cohort: its name, see `Finding.cohort`.
        scores: `[R]` of networks known to be clean, each by a model that was not fitted on it.
        suspects: `[S]` of networks known to be backdoored, likewise; may be none.
        power: share of those that would be suspected at `alpha`; NaN where there were none.
        interval: 95 % confidence interval of the power.
    """

    cohort: str
    scores: np.ndarray
    suspects: np.ndarray
    power: float
    interval: tuple[float, float]
