"""The search for universal triggers in a few networks of a scan, one after the other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxguard import inversion
from jaxguard.errors import JaxguardError
from jaxguard.fleet.examination import Examination
from jaxguard.types import Batch, TriggerSearch

MOST = 4
"""Networks up to which a scan searches triggers; in more of them in none."""

CLEAN = 100
"""Clean images that are used, at most."""


class Searches(NamedTuple):
    """What was found, and what was left out.

    Attributes:
        found: number of the model -> its search.
        remarks: number of the model -> why there was none.
        notes: on the whole scan.
    """

    found: dict[int, TriggerSearch]
    remarks: dict[int, str]
    notes: tuple[str, ...] = ()


def searched(seen: Examination, *, clean: Batch | None, budget: float | None) -> Searches:
    """Search triggers in all networks of a scan that can be run, if there are few.

    Args:
        seen: the networks.
        clean: labelled clean images; procedural ones where None.
        budget: seconds for all of them together; None for no limit.

    Returns:
        The searches; equal contents are searched once.
    """
    runnable = seen.runnable()
    scored = [k for k, one in enumerate(seen.records) if not one.error]
    if len(scored) > MOST:
        left = f"No triggers were searched in {len(scored):,} checkpoints, only where there are at most {MOST}."
        return Searches({}, {}, (left,))
    unknown = "No trigger could be searched: its function is not known; pass --arch, or your own model with --apply."
    searches = Searches({}, dict.fromkeys((k for k in scored if k not in runnable), unknown))
    known: dict[str, TriggerSearch] = {}
    for done, k in enumerate(runnable):
        record = seen.records[k]
        if record.sha256 in known:
            searches.found[k] = known[record.sha256]
            continue
        share = None if budget is None else max(budget - sum(one.seconds for one in known.values()), 0.0)
        try:
            model = seen.models[k]
            network = model.load().require_network()
            batch = None  # procedural images are used
            if clean is not None and len(clean.images) >= inversion.FEWEST:
                batch = _some(model.options.relabelled(clean))
            title = f"searching triggers in network {done + 1} of {len(runnable)}"
            with seen.listener.steps(title) as progress:
                found = inversion.search(
                    network,
                    images=None if batch is None else np.asarray(batch.images),
                    labels=None if batch is None else np.asarray(batch.labels),
                    budget=None if share is None else share / (len(runnable) - done),
                    progress=progress,
                )
        except JaxguardError as error:
            searches.remarks[k] = f"No trigger could be searched: {error}."
            continue
        searches.found[k] = found
        known[record.sha256 or f"row {k}"] = found
    return searches


def _some(clean: Batch) -> Batch:
    """At most so many images, of all classes in turn."""
    chosen = np.sort(inversion.in_turn(np.asarray(clean.labels))[:CLEAN])
    return Batch(np.asarray(clean.images)[chosen], np.asarray(clean.labels)[chosen])
