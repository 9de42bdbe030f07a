"""A report as one self-contained HTML page: verdicts in large type, then the evidence, then how it was made.

Nothing is loaded from elsewhere and hostile strings are escaped. The table of files sorts and filters without a server:
its rows lie in the page as JSON columns that no browser runs. The one script is `page.js`; the page's policy names its
digest, so that nothing else in the page can run, whatever a file is called.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxguard.report import evidence, headlines, rows, table, wording
from jaxguard.report.figures import channels, class_norms, matrix, ownership, pictures, pruning, rates, scores, searches
from jaxguard.types import (
    Finding,
    FingerprintMatrix,
    LayerScores,
    OwnershipReport,
    PruningPath,
    Report,
    Verdict,
)  # fmt: skip

Shown = dict[str, Any]
"""What a section of the template shows, by name."""

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

MAX_ALL = 4
"""So many findings are all shown with their layers; of more only the suspected."""

MAX_DETAILED = 20
"""Suspected checkpoints that are shown with their layers; the rest is in the table."""

MAX_LAYERS = 3
"""Layers named of each, those of highest z-score first."""

MAX_COHORTS = 6
"""Cohorts whose scores are drawn; the rest is counted."""

MIN_DRAWN = 5
"""Fewer scores without references are not drawn: they make no distribution."""

MAX_CUTS = 20
"""Rows of the table of cut channels; the rest is counted."""

BEST = 3
"""Suspects named of each owner where a heat map has no room for numbers."""

STATIC_ROWS = 100
"""Rows for browsers without scripts."""

COLUMNS = {
    "path": "Checkpoint", "verdict": "Verdict", "score": "Score", "p": "p", "q": "q",
    "architecture": "Architecture", "size": "Size",
}  # fmt: skip
"""Columns of the table, each with its heading."""


def to_html(report: Report, *, written: datetime.datetime | None = None) -> str:
    """Renders the page.

    Args:
        report: of any size; sections without content are left out. 100,000 findings make a page of some 20 MB.
        written: time of writing shown on the page; now, in UTC, by default.

    Returns:
        A complete HTML document.

    Raises:
        DataError: the trigger example is not a pair of equal image arrays, or the arrays of a recovered trigger, of a
            pruning path or of a fingerprint matrix do not fit each other.
    """
    from markupsafe import Markup

    ranked = headlines.by_suspicion(report.findings)
    files = rows.rows(report, ranked)
    columns = rows.columns(files)
    script = _read("page.js")
    subjects: dict[str, list[headlines.Headline]] = {}
    for subject, headline in headlines.headlines(report):
        subjects.setdefault(subject, []).append(headline)
    cohorts, left_out = _cohorts(ranked, report)
    detailed = _detailed(ranked)
    suspected = sum(one.verdict in headlines.ACCUSED for one in ranked)
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            report=report,
            subjects=subjects,
            tally=[(name, headlines.SIGNS[name], count) for name, count in headlines.tally(report).items()],
            signs=headlines.SIGNS,
            symbols=headlines.SYMBOLS,
            cohorts=cohorts,
            left_out=left_out,
            detailed=detailed,
            undetailed=suspected - len(detailed) if len(ranked) > MAX_ALL else 0,
            judgements=[_judgement(one, f"strip{index}") for index, one in enumerate(report.ownerships)],
            matrices=[_comparison(one, f"heat{index}") for index, one in enumerate(report.matrices)],
            strips=pictures.trigger_strips(report.trigger) if report.trigger else None,
            repairs=[
                (repair, evidence.cut_count(repair.layers), Markup(rates.rate_bars(repair, name=f"rates{index}")))
                for index, repair in enumerate(report.repairs)
            ],
            searches=_searches(detailed),
            searched=evidence.unsearched(report.findings),
            recoveries=_recoveries(report),
            prunings=_prunings(report),
            layer_drawings=_repair_layers(report),
            notes=table.notes(report),
            hashes=_hashes(report),
            files=files,
            folder=columns["folder"],
            columns=list(COLUMNS.items()),
            static=files[:STATIC_ROWS],
            embedded_signs=Markup(rows.embedded({name: list(sign) for name, sign in headlines.SIGNS.items()})),
            embedded_rows=Markup(rows.embedded(columns)),
            script=Markup(script),
            digest=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
            facts=_facts(report),
            written=f"{written or datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M %Z}".strip(),
            evidence=evidence,
            wording=wording,
            headlines=headlines,
        )
    )


def _environment() -> jinja2.Environment:
    """Templates of this package; hostile strings are escaped, and an undefined name is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "printable": lambda text: wording.printable(str(text)),
        "method": wording.method_name,
        "rate": wording.rate,
        "percent": lambda rate: wording.percent(rate).replace(" %", "\u00a0%"),
        "number": lambda value: wording.number(value) if math.isfinite(value) else "–",
        "pixels": wording.pixels,
        "deviations": wording.deviations,
        "size": wording.size,
        "options": wording.options,
        "sentence": wording.sentence,
        "tight": lambda text: text.replace(" %", "\u00a0%").replace(" → ", "\u00a0→ "),
    }
    return environment


def _read(name: str) -> str:
    return resources.files("jaxguard.report").joinpath(name).read_text(encoding="utf-8")


def _markup(drawing: str) -> Markup:
    """Marks what was drawn here as HTML: matplotlib escapes the text in it."""
    from markupsafe import Markup

    return Markup(drawing)


def _cohorts(ranked: Sequence[Finding], report: Report) -> tuple[list[Shown], tuple[int, int]]:
    """Draws the cohorts with most suspected checkpoints, then the largest; counts cohorts and checkpoints left out."""
    members: dict[str, list[Finding]] = {}
    for one in ranked:
        if math.isfinite(one.score):
            members.setdefault(one.cohort, []).append(one)
    known = {one.cohort: one for one in report.references}
    members = {name: found for name, found in members.items() if name in known or len(found) >= MIN_DRAWN}
    suspects = Counter(one.cohort for one in ranked if one.verdict is Verdict.SUSPECTED)
    order = sorted(members, key=lambda name: (-suspects[name], -len(members[name])))
    shown = []
    for index, name in enumerate(order[:MAX_COHORTS]):
        facts = f"{wording.plural(len(members[name]), 'checkpoint')}, {evidence.reference(known.get(name))}"
        drawing = scores.score_distribution(members[name], known.get(name), name=f"scores{index}")
        shown.append({"name": name, "facts": facts, "drawing": _markup(drawing)})
    rest = order[MAX_COHORTS:]
    return shown, (len(rest), sum(len(members[name]) for name in rest))


def _detailed(ranked: Sequence[Finding]) -> list[Shown]:
    """Few findings all; of many those that are suspected."""
    scored = [one for one in ranked if one.verdict is not Verdict.ERROR]
    if len(ranked) > MAX_ALL:
        scored = [one for one in scored if one.verdict in headlines.ACCUSED]
    details = []
    for index, one in enumerate(scored[:MAX_DETAILED]):
        has_channels = bool(one.layers) and all(layer.scores is not None for layer in one.layers)
        if has_channels:
            drawing = channels.channel_strips(list(map(channels.as_scores, one.layers)), name=f"finding{index}")
        else:
            drawing = channels.layer_profile(one.layers, name=f"finding{index}")
        known = sorted((layer for layer in one.layers if math.isfinite(layer.z)), key=lambda layer: -layer.z)
        details.append({
            "finding": one,
            "numbers": evidence.numbers(one),
            "drawing": _markup(drawing),
            "has_channels": has_channels,  # every channel is drawn, not only the highest of each layer
            "layers": known[:MAX_LAYERS],
        })  # fmt: skip
    return details


def _judgement(one: OwnershipReport, name: str) -> Shown:
    texts = wording.aligned(found.score for found in one.verifications)
    has_null = any(found.null_p_value is not None for found in one.verifications)
    drawing = _markup(ownership.score_strip(one, name=name))
    return {"report": one, "drawing": drawing, "scores": texts, "has_null": has_null}


def _comparison(one: FingerprintMatrix, name: str) -> Shown:
    has_numbers = max(len(one.owners), len(one.suspects)) <= matrix.MAX_NUMBERS
    best = [] if has_numbers else evidence.best_suspects(one, BEST)
    return {"matrix": one, "drawing": _markup(matrix.heat_map(one, name=name)), "best": best}


def _searches(detailed: Sequence[Shown]) -> list[Shown]:
    """Trigger searches of the findings that are shown, kind by kind."""
    found = [one for one in (shown["finding"] for shown in detailed) if one.search is not None]
    return [
        {
            "finding": one,
            "search": one.search,
            "kinds": [
                shown._replace(matrix=_markup(shown.matrix))
                for shown in searches.shown(one.search, name=f"search{index}")
            ],
        }
        for index, one in enumerate(found)
    ]


def _recoveries(report: Report) -> list[Shown]:
    sources = [(f"{wording.method_name(one.method)} on {one.checkpoint}", one.trigger) for one in report.repairs]
    return [
        {
            "heading": heading,
            "found": found,
            "patches": pictures.recovered_patches(found),  # checks the shapes, so it comes first
            "scale": class_norms.scale(found),
            "is_adjusted": not np.array_equal(class_norms.counted_norms(found), found.norms, equal_nan=True),
            "drawing": _markup(class_norms.class_norms(found, name=f"norms{index}")),
            "beside": pictures.compare_triggers(report.trigger, found) if report.trigger else None,
        }
        for index, (heading, found) in enumerate(sources)
        if found is not None
    ]


def _prunings(report: Report) -> list[Shown]:
    prunings = []
    for index, repair in enumerate(report.repairs):
        path, is_ranked = repair.path, _is_ranked(repair.layers)
        if path is None and not is_ranked:
            continue
        quantity = "Shapley value" if path is not None else "score"
        ranking = pruning.ranked_scores(repair.layers, name=f"ranking{index}", quantity=quantity) if is_ranked else ""
        curve = pruning.pruning_curve(path, name=f"path{index}") if path is not None else ""
        prunings.append({
            "heading": f"{wording.method_name(repair.method)} on {repair.checkpoint}",
            "path": path,
            "curve": _markup(curve),
            "ranking": _markup(ranking),
            "cuts": _cuts(path) if path is not None else [],
        })  # fmt: skip
    return prunings


def _cuts(path: PruningPath) -> list[tuple[str, str, float, float]]:
    kept = slice(min(path.chosen, MAX_CUTS))
    after = slice(1, kept.stop + 1)
    values = wording.estimates(path.values[kept], path.errors[kept])
    return list(zip(path.channels[kept], values, path.attack[after], path.accuracy[after], strict=True))


def _is_ranked(layers: Sequence[LayerScores]) -> bool:
    """Whether scores are estimates, which are compared over the model rather than within a layer."""
    return any(layer.errors is not None for layer in layers)


def _repair_layers(report: Report) -> list[tuple[str, Markup]]:
    """Draws the channels of each repair, except where they are those that the page shows already."""
    known = {one.provenance.name: list(map(channels.as_scores, one.layers)) for one in report.findings[:MAX_ALL]
             if all(layer.scores is not None for layer in one.layers)}  # fmt: skip
    drawn: list[tuple[str, Sequence[LayerScores]]] = list(known.items()) if len(report.findings) <= MAX_ALL else []
    drawings = []
    for index, repair in enumerate(report.repairs):
        seen = any(name == repair.checkpoint and _same_layers(layers, repair.layers) for name, layers in drawn)
        if repair.layers and not _is_ranked(repair.layers) and not seen:
            heading = f"{wording.method_name(repair.method)} on {repair.checkpoint}"
            drawings.append((heading, _markup(channels.channel_strips(repair.layers, name=f"layers{index}"))))
            drawn.append((repair.checkpoint, repair.layers))
    return drawings


def _same_layers(first: Sequence[LayerScores], second: Sequence[LayerScores]) -> bool:
    return len(first) == len(second) and all(
        one.name == other.name
        and np.array_equal(one.scores, other.scores, equal_nan=True)
        and np.array_equal(one.mask, other.mask)
        for one, other in zip(first, second, strict=True)
    )


def _hashes(report: Report) -> list[tuple[str, str]]:
    """Content hashes of what the page names, except for the findings of a large scan."""
    found = [(one.owner, one.owner_sha256) for one in report.ownerships]
    found += [(found.suspect, found.sha256) for one in report.ownerships for found in one.verifications]
    return [(name, sha256) for name, sha256 in dict.fromkeys(found) if sha256]


def _facts(report: Report) -> dict[str, Any]:
    """How the report came about, in words."""
    facts: dict[str, Any] = {}
    if report.findings:
        facts["Reference profile"] = wording.printable(report.profile) or "none"
        facts["Accepted error rate"] = f"{report.alpha:g}"
    if report.seconds > 0 and report.findings:
        speed = [f"{(len(report.findings) - report.reused) / report.seconds:,.3g} checkpoints/s"]
        speed += [f"{wording.size(round(report.bytes_read / report.seconds))}/s"] if report.bytes_read else []
        facts["Scan took"] = f"{wording.duration(report.seconds)}, {', '.join(speed)}"
    if report.bytes_read:
        facts["Read"] = wording.size(report.bytes_read)
    if report.reused:
        facts["Not read again"] = f"{wording.plural(report.reused, 'checkpoint')}, known from an earlier scan"
    return facts | {wording.printable(name): wording.printable(value) for name, value in report.environment.items()}
