"""Published fingerprints, one per file; `FINGERPRINTS` is the table of them.

A fingerprint makes probes for an owner's model, turns any model's outputs on them into a signature, and measures the
distance between two signatures. Models known to be independent decide which distance counts as evidence of a copy.
"""

from jaxguard import methods
from jaxguard.fingerprints.akh import akh
from jaxguard.fingerprints.ipguard import ipguard
from jaxguard.fingerprints.lite_guard import lite_guard
from jaxguard.fingerprints.metav import metav
from jaxguard.fingerprints.protocol import Answers, Fingerprint, Owner, Probes, Space
from jaxguard.fingerprints.sac import sac
from jaxguard.fingerprints.tafa_hinge import tafa_hinge
from jaxguard.fingerprints.zest import zest
from jaxguard.methods import Method

FINGERPRINTS: dict[str, Method[..., Fingerprint]] = methods.table(
    Method(
        akh,
        "Shared mistakes (Anna Karenina heuristic)",
        frozenset({"labelled images"}),
        "Godinot et al.: Queries, Representation, Detection, AAAI 2025",
    ),
    Method(
        ipguard,
        "Points near decision boundaries",
        frozenset({"images"}),
        "Cao, Jia, Gong: IPGuard, AsiaCCS 2021",
    ),
    Method(
        lite_guard,
        "Learned probes, each with a verifier of its own",
        frozenset({"images", "training mode"}),
        "LiteGuard, ICLR 2026",
    ),
    Method(
        metav,
        "Learned probes with one verifier",
        frozenset({"images", "training mode"}),
        "Pan, Yan, Zhang, Yang: MetaV, KDD 2022",
    ),
    Method(
        sac,
        "Sample correlation",
        frozenset({"images"}),
        "Guan, Liang, He: SAC, NeurIPS 2022; Guan, Liang, Wang, He: SAC-JC, IJCV 2024",
    ),
    Method(
        tafa_hinge,
        "Hyperplanes on which hidden ReLUs switch, TAFA-style",
        frozenset({"ReLUs"}),
        "after Pan, Zhang, Lu, Yang: TAFA, ESORICS 2021",
    ),
    Method(
        zest,
        "Linear models around reference images",
        frozenset({"images"}),
        "Jia et al.: A Zest of LIME, ICLR 2022",
    ),
)
"""Name on the command line -> row, called `(**options) -> Fingerprint`."""

__all__ = [
    "FINGERPRINTS",
    "Answers",
    "Fingerprint",
    "Owner",
    "Probes",
    "Space",
    "akh",
    "ipguard",
    "lite_guard",
    "metav",
    "sac",
    "tafa_hinge",
    "zest",
]
