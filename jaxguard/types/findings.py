"""What a scan says of checkpoints."""

from __future__ import annotations

import enum


class Verdict(enum.StrEnum):
    """What a scan says of one checkpoint; it never says `clean`."""

    SUSPECTED = "backdoor suspected"
    """Clean networks resemble it too rarely."""

    NO_EVIDENCE = "no evidence"
    """It looks like the clean ones; how much that means, the measured power tells."""

    INCONCLUSIVE = "inconclusive"
    """There is too little to compare it with."""

    ERROR = "error"
    """It could not be read or scored."""
