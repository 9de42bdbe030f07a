"""The values that travel through the pipeline.

Shape letters, used in every docstring: `B` batch, `H W` image, `K` classes, `C` channels of a producer, `D` fan-in,
`T` kernel taps, `N` probes, `M` checkpoints in a stack.

Names are imported when they are first used: a report on files alone needs no JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from jaxguard.types.network import Network, Outputs
    from jaxguard.types.ownership import (
        FingerprintMatrix,
        OwnershipReport,
        Verification,
    )
    from jaxguard.types.reports import Report
    from jaxguard.types.searches import KindResult, TriggerRow, TriggerSearch
    from jaxguard.types.triggers import Trigger

_HOMES = {
    "ApplyFn": "graph.program",
    "Batch": "types.data",
    "Dataset": "types.data",
    "Finding": "types.findings",
    "FingerprintMatrix": "types.ownership",
    "KindResult": "types.searches",
    "LayerScores": "types.audits",
    "LayerSummary": "types.findings",
    "Metrics": "types.audits",
    "Network": "types.network",
    "Outputs": "types.network",
    "OwnershipReport": "types.ownership",
    "Provenance": "types.findings",
    "PruningPath": "types.audits",
    "RecoveredTrigger": "types.audits",
    "Reference": "types.findings",
    "Repair": "types.audits",
    "Report": "types.reports",
    "TrainFn": "types.data",
    "Trigger": "types.triggers",
    "TriggerExample": "types.audits",
    "TriggerRow": "types.searches",
    "TriggerSearch": "types.searches",
    "Variables": "graph.program",
    "Verdict": "types.findings",
    "Verification": "types.ownership",
}
"""Name -> module that it is imported from."""

__all__ = [
    "ApplyFn",
    "Batch",
    "Dataset",
    "Finding",
    "FingerprintMatrix",
    "KindResult",
    "LayerScores",
    "LayerSummary",
    "Metrics",
    "Network",
    "Outputs",
    "OwnershipReport",
    "Provenance",
    "PruningPath",
    "RecoveredTrigger",
    "Reference",
    "Repair",
    "Report",
    "TrainFn",
    "Trigger",
    "TriggerExample",
    "TriggerRow",
    "TriggerSearch",
    "Variables",
    "Verdict",
    "Verification",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"jaxguard.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'jaxguard.types' has no attribute {name!r}")
