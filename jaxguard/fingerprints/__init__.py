"""Published fingerprints, one per file; `FINGERPRINTS` is the table of them.

A fingerprint makes probes for an owner's model, turns any model's answers to them into a signature, and measures how
far two signatures are apart. Whether a distance accuses is decided by models known to be independent.
"""

from collections.abc import Callable

from jaxguard.fingerprints.akh import akh
from jaxguard.fingerprints.ipguard import ipguard
from jaxguard.fingerprints.lite_guard import lite_guard
from jaxguard.fingerprints.metav import metav
from jaxguard.fingerprints.protocol import Answers, Fingerprint, Owner, Probes, Space
from jaxguard.fingerprints.sac import sac
from jaxguard.fingerprints.tafa_hinge import tafa_hinge
from jaxguard.fingerprints.zest import zest

FINGERPRINTS: dict[str, Callable[..., Fingerprint]] = {
    "akh": akh,
    "ipguard": ipguard,
    "lite-guard": lite_guard,
    "metav": metav,
    "sac": sac,
    "tafa-hinge": tafa_hinge,
    "zest": zest,
}
"""Name on the command line -> `(**options) -> Fingerprint`."""

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
