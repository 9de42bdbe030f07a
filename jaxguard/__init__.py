"""Audit neural-network checkpoints in JAX: find backdoors, take them out, recognise stolen copies.

    suspect = jaxguard.load("model.safetensors")                           # bytes -> Network and where it came from
    report = jaxguard.scan(suspect)                                        # a verdict, never a bare threshold
    repaired, report = jaxguard.repair(suspect, "clp", jax.random.key(0))  # a row of defenses.DEFENSES
    jaxguard.save(repaired, "repaired.safetensors")                        # in the source's layout and format

    network = jaxguard.from_nnx(model, example)                            # a live model of any JAX library
    report = jaxguard.scan(network)
    jaxguard.to_nnx(network, model)                                        # back, in place

Names are imported when they are first used, so that `import jaxguard` and `jaxguard --help` are instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxguard import (
        attacks,
        checkpoints,
        data,
        defenses,
        endpoints,
        evaluation,
        fingerprints,
        fleet,
        fusion,
        graph,
        inversion,
        kernels,
        models,
        scores,
        suspects,
        training,
        types,
    )
    from jaxguard.adapters.equinox import from_equinox, to_equinox
    from jaxguard.adapters.haiku import from_haiku, to_haiku
    from jaxguard.adapters.linen import from_linen
    from jaxguard.adapters.nnx import from_nnx, to_nnx
    from jaxguard.fusion import fuse
    from jaxguard.ownership import certify, matrix, verify
    from jaxguard.programs import precision
    from jaxguard.repairs import repair, repair_all
    from jaxguard.scanning import calibrate, scan
    from jaxguard.suspects import load, save
    from jaxguard.types import Network, Verdict

__version__ = "0.1.0"

_HOMES = {
    "Network": "types",
    "Verdict": "types",
    "calibrate": "scanning",
    "certify": "ownership",
    "from_equinox": "adapters.equinox",
    "from_haiku": "adapters.haiku",
    "from_linen": "adapters.linen",
    "from_nnx": "adapters.nnx",
    "fuse": "fusion",
    "load": "suspects",
    "matrix": "ownership",
    "precision": "programs",
    "repair": "repairs",
    "repair_all": "repairs",
    "save": "suspects",
    "scan": "scanning",
    "to_equinox": "adapters.equinox",
    "to_haiku": "adapters.haiku",
    "to_nnx": "adapters.nnx",
    "verify": "ownership",
}
"""Name -> module that it is imported from.

No module directly below `jaxguard` may bear one of these names: importing it would put it in the function's place.
"""

__all__ = [
    "Network",
    "Verdict",
    "attacks",
    "calibrate",
    "certify",
    "checkpoints",
    "data",
    "defenses",
    "endpoints",
    "evaluation",
    "fingerprints",
    "fleet",
    "from_equinox",
    "from_haiku",
    "from_linen",
    "from_nnx",
    "fuse",
    "fusion",
    "graph",
    "inversion",
    "kernels",
    "load",
    "matrix",
    "models",
    "precision",
    "repair",
    "repair_all",
    "save",
    "scan",
    "scores",
    "suspects",
    "to_equinox",
    "to_haiku",
    "to_nnx",
    "training",
    "types",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"jaxguard.{_HOMES[name]}"), name)
    if name in __all__:
        return import_module(f"jaxguard.{name}")
    raise AttributeError(f"module 'jaxguard' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
