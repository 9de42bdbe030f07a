"""The values that travel through the pipeline.

Shape letters, used in every docstring: `B` batch, `H W` image, `K` classes, `C` channels of a producer, `D` fan-in,
`T` kernel taps, `N` probes, `M` checkpoints in a stack.
"""

from jaxguard.graph.program import ApplyFn, Variables
from jaxguard.types.audits import (
    LayerScores,
    Metrics,
    PruningPath,
    RecoveredTrigger,
    Repair,
    TriggerExample,
)
from jaxguard.types.data import Batch, Dataset, TrainFn
from jaxguard.types.findings import Finding, LayerSummary, Provenance, Reference, Verdict
from jaxguard.types.network import Network
from jaxguard.types.ownership import (
    FingerprintMatrix,
    OwnershipReport,
    Verification,
)
from jaxguard.types.reports import Report

__all__ = [
    "ApplyFn",
    "Batch",
    "Dataset",
    "Finding",
    "FingerprintMatrix",
    "LayerScores",
    "LayerSummary",
    "Metrics",
    "Network",
    "OwnershipReport",
    "Provenance",
    "PruningPath",
    "RecoveredTrigger",
    "Reference",
    "Repair",
    "Report",
    "TrainFn",
    "TriggerExample",
    "Variables",
    "Verdict",
    "Verification",
]
