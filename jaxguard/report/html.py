"""A report as one self-contained HTML page: no script, nothing loaded from elsewhere, hostile strings escaped."""

import datetime
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxguard.report import (
    class_norms,
    figures,
    matrix_figures,
    ownership_figures,
    ownership_wording,
    page,
    pictures,
    pruning,
    wording,
)
from jaxguard.types import (
    AuditReport,
    FingerprintMatrix,
    LayerScores,
    OwnershipReport,
    PruningPath,
    RecoveredTrigger,
    RepairReport,
    ScanReport,
    Verification,
)

MAX_CUTS = 20
"""Rows of the table of cut channels; the rest is counted."""

BEST = 3
"""Suspects told of each owner where a heat map has no room for numbers."""


class Recovery(NamedTuple):
    """What the page shows of a recovered trigger.

    Attributes:
        repair: whose it is.
        found: the trigger.
        scale: what the anomaly indices are measured on.
        is_adjusted: whether a class counts with another norm than its own.
        drawing: `<svg>` of all classes' norms, may be empty.
        patches: pictures of the classes shown.
        beside: the same images with the known and with the recovered trigger, where both exist.
    """

    repair: RepairReport
    found: RecoveredTrigger
    scale: class_norms.Scale
    is_adjusted: bool
    drawing: str
    patches: list[pictures.Patch]
    beside: pictures.Comparison | None


class Pruning(NamedTuple):
    """What the page shows of channels that were cut by estimated scores.

    Attributes:
        repair: whose they are.
        path: the pruning path, where there is one.
        curve: `<svg>` of the path, may be empty.
        ranking: `<svg>` of the highest scores, may be empty.
        cuts: the first `MAX_CUTS` that were kept: `(channel, value ± error, attack, accuracy after it)`.
    """

    repair: RepairReport
    path: PruningPath | None
    curve: str
    ranking: str
    cuts: list[tuple[str, str, float, float]]


class Judgement(NamedTuple):
    """What the page shows of a certificate.

    Attributes:
        report: what was judged by it.
        drawing: `<svg>` of the scores, may be empty.
        rows: `(verification, tone, score in words)`.
        has_null: whether the method has a null distribution of its own.
    """

    report: OwnershipReport
    drawing: str
    rows: list[tuple[Verification, wording.Tone, str]]
    has_null: bool


class Comparison(NamedTuple):
    """What the page shows of owners against suspects.

    Attributes:
        matrix: the scores.
        drawing: `<svg>` heat map, may be empty.
        best: each owner with its `BEST` suspects; empty where the heat map holds all numbers.
    """

    matrix: FingerprintMatrix
    drawing: str
    best: list[tuple[str, list[tuple[str, str]]]]


def to_html(report: AuditReport, *, written: datetime.datetime | None = None) -> str:
    """Renders the page: verdicts in large type, then the evidence, then how it was made.

    Args:
        report: any report; sections without content are left out.
        written: time of writing shown on the page; now, in UTC, by default.

    Returns:
        A complete HTML document.

    Raises:
        DataError: the trigger example is not a pair of equal image arrays, or the arrays of a recovered trigger, of a
            pruning path or of a fingerprint matrix do not fit each other.
    """
    environment = page.environment()
    environment.filters |= {
        "percent": wording.percent,
        "number": wording.number,
        "pixels": wording.pixels,
        "deviations": wording.deviations,
        "printable": lambda text: wording.printable(str(text)),
        "method": wording.method_name,
        "p_value": ownership_wording.p_value,
        "sentence": lambda text: f"{text[:1].upper()}{text[1:]}.",
        "tight": lambda text: text.replace(" %", "\u00a0%").replace(" → ", "\u00a0→ "),
    }
    return environment.get_template("template.html.jinja").render(
        report=report,
        verdicts=_verdicts(report),
        any_undefined=any(wording.undefined_count(scan.layers) for scan in report.scans),
        strips=pictures.trigger_strips(report.trigger) if report.trigger else None,
        bars=[
            (repair, _safe(drawing))
            for index, repair in enumerate(report.repairs)
            if (drawing := figures.rate_bars(repair, name=f"rates{index}"))
        ],
        layer_drawings=[
            (heading, _safe(figures.channel_strips(layers, name=f"layers{index}", cut_label=cut_label)))
            for index, (heading, cut_label, layers) in enumerate(_distinct_layers(report))
        ],
        recoveries=_recoveries(report),
        prunings=_prunings(report),
        judgements=_judgements(report),
        matrices=_comparisons(report),
        flagged_anomaly=wording.FLAGGED_ANOMALY,
        scan_rows=[(scan, wording.scan_headline(scan), _counts(scan.layers)) for scan in report.scans],
        repair_rows=[(repair, wording.repair_headline(repair), _counts(repair.layers)) for repair in report.repairs],
        notes=_notes(report),
        symbols=wording.SYMBOLS,
        change=wording.change,
        suspicion=wording.suspicion,
        is_named=wording.is_named,
        references=ownership_wording.references,
        accused_by_chance=ownership_wording.accused_by_chance,
        cuts_kept=wording.cuts_kept,
        removed_asr=wording.REMOVED_ASR,
        harmful_acc_drop=wording.HARMFUL_ACC_DROP,
        written=page.written_at(written),
    )


def _safe(drawing: str) -> str:
    """Marks what was drawn here as HTML: matplotlib escapes the text in it."""
    import markupsafe

    return markupsafe.Markup(drawing)


def _recoveries(report: AuditReport) -> list[Recovery]:
    return [
        Recovery(
            repair,
            repair.trigger,
            patches=pictures.recovered_patches(repair.trigger),  # checks the shapes
            scale=class_norms.scale(repair.trigger),
            is_adjusted=not np.array_equal(
                class_norms.counted_norms(repair.trigger), repair.trigger.norms, equal_nan=True
            ),
            drawing=_safe(class_norms.class_norms(repair.trigger, name=f"norms{index}")),
            beside=pictures.compare_triggers(report.trigger, repair.trigger) if report.trigger else None,
        )
        for index, repair in enumerate(report.repairs)
        if repair.trigger is not None
    ]


def _prunings(report: AuditReport) -> list[Pruning]:
    prunings = []
    for index, repair in enumerate(report.repairs):
        path, layers = repair.path, repair.layers
        is_ranked = any(layer.errors is not None for layer in layers)
        if path is None and not is_ranked:
            continue
        quantity = "Shapley value" if path is not None else "score"
        ranking = pruning.ranked_scores(layers, name=f"ranking{index}", quantity=quantity) if is_ranked else ""
        curve = pruning.pruning_curve(path, name=f"path{index}") if path is not None else ""
        prunings.append(Pruning(repair, path, _safe(curve), _safe(ranking), _cuts(path) if path is not None else []))
    return prunings


def _judgements(report: AuditReport) -> list[Judgement]:
    judgements = []
    for index, one in enumerate(report.ownerships):
        scores = ownership_wording.aligned(found.score for found in one.verifications)
        drawing = ownership_figures.score_strip(one, name=f"strip{index}")
        has_null = any(found.null_p_value is not None for found in one.verifications)
        rows: list[tuple[Verification, wording.Tone, str]] = [
            (found, ownership_wording.tone(found.verdict), score)
            for found, score in zip(one.verifications, scores, strict=True)
        ]
        judgements.append(Judgement(one, _safe(drawing), rows, has_null))
    return judgements


def _comparisons(report: AuditReport) -> list[Comparison]:
    comparisons = []
    for index, matrix in enumerate(report.matrices):
        has_numbers = max(len(matrix.owners), len(matrix.suspects)) <= matrix_figures.MAX_NUMBERS
        best = [] if has_numbers else ownership_wording.best_suspects(matrix, BEST)
        comparisons.append(Comparison(matrix, _safe(matrix_figures.heat_map(matrix, name=f"heat{index}")), best))
    return comparisons


def _cuts(path: PruningPath) -> list[tuple[str, str, float, float]]:
    rows = slice(min(path.chosen, MAX_CUTS))
    after = slice(1, rows.stop + 1)
    values = wording.estimates(path.values[rows], path.errors[rows])
    return list(zip(path.channels[rows], values, path.attack[after], path.accuracy[after], strict=True))


def _verdicts(report: AuditReport) -> dict[str, list[wording.Headline]]:
    """Groups the headlines by checkpoint: what its scan found, what became of each repair, whose copy it may be."""
    verdicts: dict[str, list[wording.Headline]] = {}
    for scan in report.scans:
        verdicts.setdefault(scan.checkpoint, []).append(wording.scan_headline(scan))
    for repair in report.repairs:
        verdicts.setdefault(repair.checkpoint, []).append(wording.repair_headline(repair))
    for suspect, headline in ownership_wording.headlines(report):
        verdicts.setdefault(suspect, []).append(headline)
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
        is_ranked = any(layer.errors is not None for layer in source.layers)  # shown by `pruning.ranked_scores`
        if source.layers and not is_ranked and not any(_same_layers(source.layers, layers) for layers in known):
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
    ownerships = [(wording.method_name(one.method), note) for one in report.ownerships for note in one.notes]
    return list(dict.fromkeys(scans + repairs + ownerships))
