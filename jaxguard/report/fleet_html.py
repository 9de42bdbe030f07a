"""A fleet report as one self-contained HTML page, whose table sorts and filters without a server.

The rows lie in the page as JSON columns that no browser runs. The one script is `fleet.js`; the page's policy names its
digest, so that nothing else in the page can run, whatever a file is called.
"""

import base64
import datetime
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxguard.report import fleet_figures, fleet_rows, fleet_wording, page, wording
from jaxguard.types import FleetEntry, FleetReport, LayerSummary

MAX_BUCKETS = 6
"""Buckets whose scores are drawn; the rest is counted."""

MAX_FLAGGED = 20
"""Suspected checkpoints that are shown with their layers; the rest is in the table."""

MAX_LAYERS = 3
"""Layers told of each, those of highest z-score first."""

COLUMNS = {
    "path": "Checkpoint", "verdict": "Verdict", "score": "Score", "p": "p", "q": "q", "z": "Highest z",
    "architecture": "Architecture", "size": "Size",
}  # fmt: skip
"""Columns of the table, each with its heading."""

STATIC_ROWS = 100
"""Rows for browsers without scripts."""


class Bucket(NamedTuple):
    """What the page shows of checkpoints that were compared with each other.

    Attributes:
        name: of the bucket.
        facts: how many they are, and what they were compared with.
        drawing: `<svg>` of their scores.
    """

    name: str
    facts: str
    drawing: str


class Flagged(NamedTuple):
    """What the page shows of a suspected checkpoint.

    Attributes:
        entry: which.
        drawing: `<svg>` of its layers, may be empty.
        layers: the `MAX_LAYERS` of highest z-score.
    """

    entry: FleetEntry
    drawing: str
    layers: list[LayerSummary]


def to_html(report: FleetReport, *, written: datetime.datetime | None = None) -> str:
    """Renders the page: the verdict in large type, the scores, the suspected checkpoints, then the table of all files.

    Args:
        report: of any size; 100,000 checkpoints make a page of some 20 MB.
        written: time of writing shown on the page; now, in UTC, by default.

    Returns:
        A complete HTML document.
    """
    import markupsafe

    environment = page.environment()
    environment.filters |= {
        "printable": lambda text: wording.printable(str(text)),
        "rate": fleet_wording.rate,
        "number": lambda value: wording.number(value) if math.isfinite(value) else "–",
        "size": fleet_wording.size,
        "tight": lambda text: text.replace(" %", "\u00a0%"),
    }
    script = page.read("fleet.js")
    signs = {name: (verdict.tone, verdict.sign, verdict.label) for name, verdict in fleet_wording.VERDICTS.items()}
    ranked = fleet_rows.rows(report)
    columns = fleet_rows.columns(ranked)
    buckets, left_out = _buckets(ranked, report)
    suspected = [entry for entry in ranked if entry.verdict == "backdoor suspected"]
    return environment.get_template("fleet.html.jinja").render(
        report=report,
        headline=fleet_wording.headline(report),
        tally=list(zip(fleet_wording.VERDICTS.items(), fleet_wording.tally(report), strict=True)),
        verdicts=fleet_wording.VERDICTS,
        shown=fleet_wording.shown,
        symbols=wording.SYMBOLS,
        buckets=buckets,
        left_out=left_out,
        is_judged=any(math.isfinite(entry.score) for entry in ranked),
        flagged=[_flagged(entry, f"layers{index}") for index, entry in enumerate(suspected[:MAX_FLAGGED])],
        suspected=len(suspected),
        folder=columns["folder"],
        columns=list(COLUMNS.items()),
        signs=markupsafe.Markup(fleet_rows.embedded(signs)),
        static=ranked[:STATIC_ROWS],
        total=len(ranked),
        rows=markupsafe.Markup(fleet_rows.embedded(columns)),
        script=markupsafe.Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
        speed=_speed(report),
        written=page.written_at(written),
    )


def _buckets(ranked: Sequence[FleetEntry], report: FleetReport) -> tuple[list[Bucket], tuple[int, int]]:
    """Draws the buckets with most suspected checkpoints, then the largest; counts buckets and checkpoints left out."""
    import markupsafe

    members: dict[str, list[FleetEntry]] = {}
    for entry in ranked:
        if math.isfinite(entry.score) or math.isfinite(entry.z):
            members.setdefault(entry.bucket, []).append(entry)
    suspects = Counter(entry.bucket for entry in ranked if entry.verdict == "backdoor suspected")
    order = sorted(members, key=lambda name: (-suspects[name], -len(members[name])))
    references = {found.bucket: found for found in report.references}
    shown = []
    for index, name in enumerate(order[:MAX_BUCKETS]):
        found = references.get(name)
        facts = f"{fleet_wording.plural(len(members[name]), 'checkpoint')}, {fleet_wording.reference(found)}"
        drawing = fleet_figures.score_distribution(members[name], found, name=f"scores{index}")
        shown.append(Bucket(name, facts, markupsafe.Markup(drawing)))
    rest = order[MAX_BUCKETS:]
    return shown, (len(rest), sum(len(members[name]) for name in rest))


def _flagged(entry: FleetEntry, name: str) -> Flagged:
    import markupsafe

    drawing = markupsafe.Markup(fleet_figures.layer_profile(entry.layers, name=name))
    known = [layer for layer in entry.layers if math.isfinite(layer.z)]
    return Flagged(entry, drawing, sorted(known, key=lambda layer: -layer.z)[:MAX_LAYERS])


def _speed(report: FleetReport) -> dict[str, Any]:
    """What a reader may want to know of the scan's pace, in words."""
    told = {}
    if report.seconds > 0:
        rates = [f"{(len(report.entries) - report.reused) / report.seconds:,.3g} checkpoints/s"]
        rates += [f"{fleet_wording.size(round(report.bytes_read / report.seconds))}/s"] if report.bytes_read else []
        told["Scan took"] = f"{fleet_wording.duration(report.seconds)}, {', '.join(rates)}"
    if report.bytes_read:
        told["Read"] = fleet_wording.size(report.bytes_read)
    if report.reused:
        told["Not read again"] = f"{fleet_wording.plural(report.reused, 'checkpoint')}, known from an earlier scan"
    return told
