"""More reference networks for trigger searches: clean ones of a user's own, searched as a scan searches them."""

from __future__ import annotations

import os

from jaxguard import scanning
from jaxguard.detection import trigger_reference
from jaxguard.detection.trigger_reference import TriggerReference
from jaxguard.errors import DataError
from jaxguard.fleet.executors import Executor
from jaxguard.scanning import Listener
from jaxguard.suspects import ModelOptions
from jaxguard.types import Report


def extend_reference(
    clean: scanning.Suspects,
    *,
    reference: TriggerReference | str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
    options: ModelOptions | None = None,
    listener: Listener | None = None,
) -> tuple[TriggerReference, Report]:
    """Add clean networks of your own to those that trigger searches are compared with.

    Args:
        clean: known to be clean; everything that `scan` takes. All that can be run are searched, without data.
        reference: to add to; None for the one that ships with the package.
        executor: see `scan`; with `Stream(out=...)` what was found is kept.
        options: see `scan`.
        listener: see `scan`.

    Returns:
        The reference, which `jaxguard.detection.trigger_reference.to_json` writes, and the scan of the networks
        against it as it was, which names what could not be searched.

    Raises:
        DataError: no network could be searched.
    """
    known = trigger_reference.opened(reference)
    found = scanning.scan(clean, deep="all", reference=known, executor=executor, options=options, listener=listener)
    searches = {
        one.provenance.sha256 or one.provenance.name: (one.provenance.architecture, one.search)
        for one in found.findings
        if one.search is not None
    }
    more = trigger_reference.extended(known, searches)
    if not searches.keys() & {one.sha256 for one in more.networks}:
        raise DataError(
            f"expected clean networks in which triggers can be searched, got none among {len(found.findings)} in "
            "extend_reference(); `jaxguard scan` says why"
        )
    return more, found
