"""Contents of references by their BLAKE3 too, so that fleets that are judged by a profile need no SHA-256."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from jaxguard import checkpoints, execution
from jaxguard.checkpoints import hashing
from jaxguard.detection.profile import CohortProfile, Profile
from jaxguard.detection.records import Record
from jaxguard.errors import JaxguardError


def with_blake3(profile: Profile, records: Iterable[Record]) -> Profile:
    """A new profile that recognises its references by BLAKE3 as well; their files are read once more.

    A cohort with references that are not files of this machine, or went away, is left as it is: its suspects are named
    by SHA-256. A network from memory needs no hash, as no file has its content.

    Args:
        profile: of `jaxguard.detection.calibration.calibrate`.
        records: what it was made of.
    """
    paths = {one.sha256: one.name for one in records if one.provenance.format}

    def names(cohort: CohortProfile) -> dict[str, str] | None:
        wanted = sorted(cohort.contents & paths.keys())
        if any(checkpoints.is_url(paths[sha256]) for sha256 in wanted):
            return None
        try:
            found = execution.in_threads(lambda sha256: checkpoints.load(paths[sha256]).content("blake3"), wanted)
            return {content.removeprefix(hashing.BLAKE3): sha256 for content, sha256 in zip(found, wanted, strict=True)}
        except (JaxguardError, OSError):
            return None

    return replace(profile, cohorts={name: replace(one, blake3=names(one)) for name, one in profile.cohorts.items()})
