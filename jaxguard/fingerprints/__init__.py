"""Published fingerprints, one per file; `FINGERPRINTS` is the table of them.

A fingerprint makes probes for an owner's model, turns any model's answers to them into a signature, and measures how
far two signatures are apart. Whether a distance accuses is decided by models known to be independent.
"""

from collections.abc import Callable

from jaxguard.fingerprints.protocol import Answers, Fingerprint, Owner, Probes, Space

FINGERPRINTS: dict[str, Callable[..., Fingerprint]] = {}
"""Name on the command line -> `(**options) -> Fingerprint`."""

__all__ = ["FINGERPRINTS", "Answers", "Fingerprint", "Owner", "Probes", "Space"]
