"""Audit neural-network checkpoints in JAX: find backdoors, take them out.

    suspect = suspects.load("model.safetensors", arch="resnet20")       # bytes -> variables, channel graph
    graph = channel_graph(apply_fn, variables, images)                  # structure, derived from the trace
    bounds = channel_bounds(graph, variables)                           # one number per channel
    report = audit.scan(suspect)                                        # a verdict, never a bare threshold
    repaired, report = audit.repair(suspect, "clp", jax.random.key(0))  # a row of DEFENSES, with proof
    suspects.save(repaired, "repaired.safetensors")                     # in the layout it came in

Names are imported when they are first used, so that `import jaxguard` and `jaxguard --help` are instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxguard import audit, suspects
    from jaxguard.attacks import ATTACKS
    from jaxguard.defenses import DEFENSES, Context, clp, ft_sam
    from jaxguard.evaluation import evaluate
    from jaxguard.graph import channel_graph
    from jaxguard.models import ARCHITECTURES
    from jaxguard.scores.channel_bounds import channel_bounds

__version__ = "0.1.0"

__all__ = [
    "ARCHITECTURES",
    "ATTACKS",
    "DEFENSES",
    "Context",
    "audit",
    "channel_bounds",
    "channel_graph",
    "clp",
    "evaluate",
    "ft_sam",
    "suspects",
]

_HOMES = {
    "ARCHITECTURES": "models",
    "ATTACKS": "attacks",
    "DEFENSES": "defenses",
    "Context": "defenses",
    "channel_bounds": "scores.channel_bounds",
    "channel_graph": "graph",
    "clp": "defenses",
    "evaluate": "evaluation",
    "ft_sam": "defenses",
}


def __getattr__(name: str) -> Any:
    if name in ("audit", "suspects"):
        return import_module(f"jaxguard.{name}")
    if name in _HOMES:
        return getattr(import_module(f"jaxguard.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'jaxguard' has no attribute {name!r}")
