"""A report as one self-contained HTML page: no script, nothing loaded from elsewhere, hostile strings escaped."""

import datetime
from collections.abc import Sequence
from importlib import resources

import numpy as np

from jaxguard.report import figures, pictures, wording
from jaxguard.types import AuditReport, LayerScores, ScanReport

_TEMPLATE = "template.html.jinja"


def to_html(report: AuditReport, *, written: datetime.datetime | None = None) -> str:
    """Renders the page: verdicts in large type, then the evidence, then how it was made.

    Args:
        report: any report; sections without content are left out.
        written: time of writing shown on the page; now, in UTC, by default.

    Returns:
        A complete HTML document.

    Raises:
        DataError: the trigger example is not a pair of equal image arrays.
    """
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": wording.percent,
        "number": wording.number,
        "printable": lambda text: wording.printable(str(text)),
        "method": wording.method_name,
        "tight": lambda text: text.replace(" %", "\u00a0%").replace(" → ", "\u00a0→ "),
    }
    source = resources.files("jaxguard.report").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(
        report=report,
        verdicts=_verdicts(report),
        any_undefined=any(wording.undefined_count(scan.layers) for scan in report.scans),
        strips=pictures.trigger_strips(report.trigger) if report.trigger else None,
        bars=[
            (repair, markupsafe.Markup(drawing))  # drawn here; matplotlib escapes the text in it
            for index, repair in enumerate(report.repairs)
            if (drawing := figures.rate_bars(repair, name=f"rates{index}"))
        ],
        layer_drawings=[
            (heading, markupsafe.Markup(figures.channel_strips(layers, name=f"layers{index}", cut_label=cut_label)))
            for index, (heading, cut_label, layers) in enumerate(_distinct_layers(report))
        ],
        scan_rows=[(scan, wording.scan_headline(scan), _counts(scan.layers)) for scan in report.scans],
        repair_rows=[(repair, wording.repair_headline(repair), _counts(repair.layers)) for repair in report.repairs],
        notes=_notes(report),
        symbols=wording.SYMBOLS,
        change=wording.change,
        removed_asr=wording.REMOVED_ASR,
        harmful_acc_drop=wording.HARMFUL_ACC_DROP,
        written=f"{written or datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M %Z}".strip(),
    )


def _verdicts(report: AuditReport) -> dict[str, list[wording.Headline]]:
    """Groups the headlines by checkpoint: first what its scan found, then what became of each repair."""
    verdicts: dict[str, list[wording.Headline]] = {}
    for scan in report.scans:
        verdicts.setdefault(scan.checkpoint, []).append(wording.scan_headline(scan))
    for repair in report.repairs:
        verdicts.setdefault(repair.checkpoint, []).append(wording.repair_headline(repair))
    return verdicts


def _counts(layers: Sequence[LayerScores]) -> dict[str, int]:
    cut, total = wording.cut_count(layers)
    above, _ = wording.above_count(layers)
    return {"cut": cut, "above": above, "total": total, "undefined": wording.undefined_count(layers)}


def _distinct_layers(report: AuditReport) -> list[tuple[str, str, Sequence[LayerScores]]]:
    """Lists what to draw as (heading, meaning of the mask, layers): every scan, then repairs that differ from it."""
    drawn: list[tuple[str, str, Sequence[LayerScores]]] = []
    for source in (*report.scans, *report.repairs):
        known = (layers for heading, _, layers in drawn if heading.endswith(f" on {source.checkpoint}"))
        if source.layers and not any(_same_layers(source.layers, layers) for layers in known):
            method = wording.method_name(source.method)
            cut_label = f"{method} would cut" if isinstance(source, ScanReport) else "cut"
            drawn.append((f"{method} on {source.checkpoint}", cut_label, source.layers))
    return drawn


def _same_layers(first: Sequence[LayerScores], second: Sequence[LayerScores]) -> bool:
    return len(first) == len(second) and all(
        one.name == other.name
        and np.array_equal(one.scores, other.scores, equal_nan=True)
        and np.array_equal(one.mask, other.mask)
        for one, other in zip(first, second, strict=True)
    )


def _notes(report: AuditReport) -> list[tuple[str, str]]:
    scans = [(wording.printable(scan.checkpoint), note) for scan in report.scans for note in scan.notes]
    repairs = [(wording.method_name(repair.method), note) for repair in report.repairs for note in repair.notes]
    return list(dict.fromkeys(scans + repairs))
