"""A report for the terminal: the verdicts first, then what they rest on; fits 80 columns, reads the same uncoloured."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jaxguard.report import evidence, headlines, search_table, wording
from jaxguard.types import Finding, FingerprintMatrix, Metrics, OwnershipReport, Reference, Repair, Report, Verdict

MAX_COLUMNS = 8
"""Suspects that stand side by side; of more only the best of each owner are named."""

MAX_BEST = 15
"""Suspects named of one owner; several owners share them, with three each at least."""

MAX_COHORTS = 6
"""Cohorts that are described, those with most suspected checkpoints first; the rest is counted."""

_STYLES: dict[headlines.Tone, str] = {"good": "green", "bad": "red", "open": "yellow"}
_WORDS = {"checkpoint", "verdict", "method", "suspect", "owner", "layer", "cohort"}


def render(report: Report, top: int = 20) -> Group:
    """Tabulates a report: verdicts, then findings, repairs, suspects, matrices, what was not scored, notes.

    Args:
        report: of one finding or a hundred thousand.
        top: findings and layers that get a row, most suspicious first, and files that are named of those that could not
            be scored and of those that were skipped; the rest is counted.

    Returns:
        A renderable for `rich.console.Console.print`.

    Raises:
        DataError: a matrix has not one score per owner and suspect.

    >>> from rich.console import Console
    >>> Console(width=60).print(render(Report("", skipped=(("notes.txt", "no checkpoint"),))))
    ? Nothing was scanned; 1 file skipped.
      Nothing is known of files that were skipped or could not
      be scored.
    <BLANKLINE>
    Skipped
      notes.txt: no checkpoint
    """
    failed = [(one.provenance.name, one.reason) for one in report.findings if one.verdict is Verdict.ERROR]
    sections: list[Iterable[RenderableType]] = [
        _headlines(report),
        _code(report, top),
        _single(report, top) if len(report.findings) == 1 else _many(report, top),
        _repairs(report.repairs),
        *map(_ownership, report.ownerships),
        *map(_matrix, report.matrices),
        _named("Could not be scored", failed if len(report.findings) > 1 else [], top),
        _named("Skipped", report.skipped, top),
        _notes(report),
    ]
    shown = [list(section) for section in sections]
    spaced = [part for section in shown if section for part in (Text(), *section)]
    return Group(*spaced[1:])


def metrics_table(metrics: Metrics, checkpoint: str) -> Table:
    """Tabulates one measurement; rates in percent."""
    table = _table("checkpoint", "ACC %", "ASR %", "RA %", "images", "triggered")
    counts = (str(metrics.num_images), str(metrics.num_triggered) if metrics.asr is not None else "–")
    table.add_row(Text(wording.printable(checkpoint)), *_rates(metrics), *counts)
    return table


def reference_table(references: Sequence[Reference], alpha: float) -> Table:
    """Tabulates what a reference profile holds: cohort, number of references, power with its 95 % interval."""
    table = _table("cohort", "clean", "backdoored", f"found at alpha {alpha:g}")
    for one in references:
        low, high = (100 * end for end in one.interval)
        power = f"{100 * one.power:.0f} % ({low:.0f} to {high:.0f})" if math.isfinite(one.power) else "not measured"
        table.add_row(Text(wording.printable(one.cohort)), str(len(one.scores)), str(len(one.suspects)), power)
    return table


def _headlines(report: Report) -> Iterable[RenderableType]:
    facts = headlines.headlines(report)
    for subject, headline in facts:
        about = f" {wording.printable(subject)}" if subject and len(facts) - len(report.repairs) > 1 else ""
        yield _signed(headline.tone, f"{headline.lead}.", about)
        if headline.detail:
            yield Padding(Text(headline.detail), (0, 0, 0, 2), expand=False)


def _code(report: Report, top: int) -> Iterable[RenderableType]:
    """What loaders would run, before anything else."""
    found = [(one, call) for one in report.findings for call in one.code]
    if found:
        yield Text("Code that a loader would run", style="bold red")
        for one, call in found[:top]:
            name = f"{one.provenance.name}: " if len(report.findings) > 1 else ""
            yield Text(f"  {wording.printable(name + str(call))}")
        if len(found) > top:
            yield Text(f"  and {len(found) - top:,} more, named in the other formats of this report.")


def _single(report: Report, top: int) -> Iterable[RenderableType]:
    (finding,) = report.findings
    where = finding.provenance
    known = {one.cohort: one for one in report.references}
    facts = [("checkpoint", where.name), ("architecture", where.architecture), ("format", where.format)]
    facts += [("size", wording.size(where.size))] if where.size else []
    facts += [("blake3", where.blake3)] if where.blake3 else [("sha256", where.sha256)]
    facts += [("examined", ", ".join(finding.looks))]
    facts += [("triggers", f"not searched: {finding.unsearched}")] if finding.unsearched else []
    facts += [("compared", evidence.reference(known[finding.cohort]))] if finding.cohort in known else []
    facts += [("leaves", _leaves(finding))] if finding.leaves else []
    yield _facts(facts)
    unclear = [one for one in finding.leaves if one.state == "not understood"]
    for one in unclear[:top]:
        yield Text(f"  not understood: {wording.printable(one.name)}: {wording.printable(one.reason)}")
    if len(unclear) > top:
        yield Text(f"  and {len(unclear) - top:,} more leaves")
    if finding.search is not None and finding.search.results:
        yield Text()
        yield search_table.kinds(finding.search)
    if not finding.layers:
        return
    table = _table("layer", "channels", "max z", "channel", "above", "undefined")
    ranked = sorted(finding.layers, key=lambda layer: math.inf if math.isnan(layer.z) else -layer.z)
    for layer in ranked[:top]:
        place = str(layer.channel) if layer.channel >= 0 else "–"
        counts = str(layer.above), str(layer.undefined) if layer.undefined else "–"
        z = f"{layer.z:.2f}" if math.isfinite(layer.z) else "–"
        table.add_row(Text(wording.printable(layer.name)), str(layer.channels), z, place, *counts)
    yield Text()
    yield table
    if len(ranked) > top:
        yield Text(f"The {top} layers of highest z-score, of {len(ranked)}.")


def _leaves(finding: Finding) -> str:
    """Counts by what became of them, and what was stored beside them."""
    facts = [f"{count:,} {state} ({wording.size(size)})" for state, count, _, size in finding.counts]
    facts += [f"{len(finding.left_out):,} left out"] if finding.left_out else []
    facts += [f"{sum(map(len, finding.aliases.values())):,} more names"] if finding.aliases else []
    return ", ".join(facts)


def _many(report: Report, top: int) -> Iterable[RenderableType]:
    """Counts by verdict, the most suspicious findings, and what their cohorts were compared with."""
    counts = {verdict: count for verdict, count in headlines.tally(report).items() if count}
    if not report.findings:
        return
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(justify="right", no_wrap=True)
    for verdict, count in counts.items():
        sign = headlines.SIGNS[verdict]
        grid.add_row(Text(f"  {count:,}", _STYLES[sign.tone]), Text(f"{sign.mark} {sign.label}", _STYLES[sign.tone]))
    yield grid
    scored = [one for one in report.findings if one.verdict is not Verdict.ERROR]
    shown = headlines.by_suspicion(scored)[:top]
    if shown:
        folder = wording.common_folder([one.provenance.name for one in shown])
        yield Text()
        yield _ranking(shown, folder)
        facts = [f"The {len(shown):,} most suspicious of {len(scored):,}."] if len(shown) < len(scored) else []
        facts += [f"Paths below {wording.printable(folder)}."] if folder else []
        if facts:
            yield Text(" ".join(facts))
        reasons = dict.fromkeys(one.reason for one in shown if one.verdict is Verdict.INCONCLUSIVE and one.reason)
        yield from (Text(f"Inconclusive: {wording.printable(reason)}.") for reason in list(reasons)[:3])
    yield from _cohorts(scored, report)


def _ranking(shown: Sequence[Finding], folder: str) -> Table:
    """One row per finding; columns in which nothing is known are left out."""

    def numbers(values: Iterable[float]) -> list[str]:
        return wording.aligned(values)

    def rates(values: Iterable[float]) -> list[str]:
        return list(map(wording.rate, values))

    def percents(values: Iterable[float]) -> list[str]:
        return [wording.percent(v).removesuffix(" %") if math.isfinite(v) else "–" for v in values]

    def metric(name: str) -> list[float]:
        values = (one.metrics and getattr(one.metrics, name) for one in shown)
        return [math.nan if value is None else value for value in values]

    columns: dict[str, tuple[Sequence[float], Callable[[Iterable[float]], list[str]]]] = {
        "score": ([one.score for one in shown], numbers), "p": ([one.p_value for one in shown], rates),
        "q": ([one.q_value for one in shown], rates),
        "ACC %": (metric("acc"), percents), "ASR %": (metric("asr"), percents), "RA %": (metric("ra"), percents),
    }  # fmt: skip
    columns = {name: column for name, column in columns.items() if any(map(math.isfinite, column[0]))}
    texts = [write(values) for values, write in columns.values()]
    table = _table("checkpoint", "verdict", *columns)
    for one, *cells in zip(shown, *texts, strict=True):
        sign = headlines.SIGNS[one.verdict]
        name = Text(wording.printable(one.provenance.name.removeprefix(folder)))
        table.add_row(name, Text(f"{sign.mark} {one.verdict}", _STYLES[sign.tone]), *cells)
    return table


def _cohorts(scored: Sequence[Finding], report: Report) -> Iterable[RenderableType]:
    sizes = Counter(one.cohort for one in scored)
    suspected = Counter(one.cohort for one in scored if one.verdict is Verdict.SUSPECTED)
    known = {one.cohort: one for one in report.references}
    if len(sizes) < 2 and not known:
        return
    yield Text()
    yield Text("Cohorts", style="bold")
    ranked = sorted(sizes, key=lambda cohort: (-suspected[cohort], -sizes[cohort]))
    for cohort in ranked[:MAX_COHORTS]:
        facts = f"{wording.plural(sizes[cohort], 'checkpoint')}, {suspected[cohort]:,} suspected"
        name = wording.printable(cohort) or "unknown structure"
        yield Text(f"  {name}: {facts}; {evidence.reference(known.get(cohort))}")
    rest = ranked[MAX_COHORTS:]
    if rest:
        count = sum(sizes[cohort] for cohort in rest)
        yield Text(f"  {wording.plural(len(rest), 'cohort')} more with {wording.plural(count, 'checkpoint')}")


def _repairs(repairs: Sequence[Repair]) -> Iterable[RenderableType]:
    """One row per method: rates in percent before → after, DER, channels cut; below it what was recovered and cut."""
    if not repairs:
        return
    table = _table("method", "ACC %", "ASR %", "RA %", "DER %", "cut", "s")
    found = []
    for repair in repairs:
        name, (cut, total) = wording.method_name(repair.method), evidence.cut_count(repair.layers)
        changes = zip(_rates(repair.before), _rates(repair.after), strict=True)
        table.add_row(
            Text(name, style="bold"),
            *("–" if old == new == "–" else f"{old} → {new}" for old, new in changes),
            wording.percent(repair.der).removesuffix(" %"),
            f"{cut} of {total}" if repair.layers else "–",
            f"{repair.seconds:.2f}" if repair.seconds < 10 else f"{repair.seconds:.0f}",
        )
        facts = [evidence.suspicion(repair.trigger)] if repair.trigger is not None else []
        facts += [evidence.cuts_kept(repair.path)] if repair.path is not None else []
        found += [Text(f"{name}: {'; '.join(facts)}")] if facts else []
    yield table
    yield from found


def _ownership(one: OwnershipReport) -> Iterable[RenderableType]:
    """One row per suspect; below it what the certificate rests on."""
    if one.verifications:
        with_null = any(found.null_p_value is not None for found in one.verifications)
        table = _table("suspect", "verdict", "score", "p", *(["null p"] if with_null else []))
        scores = wording.aligned(found.score for found in one.verifications)
        for found, score in zip(one.verifications, scores, strict=True):
            sign = headlines.SIGNS[found.verdict]
            verdict = Text(f"{sign.mark} {headlines.copy_verdict(found.verdict)}", _STYLES[sign.tone])
            ps = (found.p_value, found.null_p_value)[: 1 + with_null]
            table.add_row(Text(wording.printable(found.suspect)), verdict, score, *map(wording.rate, ps))
        yield table
    else:
        yield Text("No suspect was judged.")
    options = wording.options(one.options)
    method = f"{wording.method_name(one.method)}, {one.num_probes} queries, {one.seconds:.3g} s"
    yield Text()
    yield _facts([
        ("owner", one.owner),
        ("method", f"{method}; {options}" if options else method),
        ("compared with", evidence.references(one)),
        ("by chance", evidence.accused_by_chance(one)),
        ("made for", one.sees),
        ("blind to", one.blind),
        ("certificate", one.certificate),
    ])  # fmt: skip


def _matrix(matrix: FingerprintMatrix) -> Iterable[RenderableType]:
    """Scores of owners against suspects; with many suspects, the best of each owner."""
    size = f"{len(matrix.owners)} × {len(matrix.suspects)} models"
    yield Text(f"{wording.method_name(matrix.method)} scores of {size}, higher is more alike", style="bold")
    if len(matrix.suspects) <= MAX_COLUMNS:
        texts = wording.aligned(evidence.checked_scores(matrix).ravel())
        numbers = [str(index) for index in range(1, len(matrix.suspects) + 1)]
        table = _table("owner", *numbers)
        for row, owner in enumerate(matrix.owners):
            table.add_row(Text(wording.printable(owner)), *texts[row * len(numbers) : (row + 1) * len(numbers)])
        yield table
        yield Padding(_facts(zip(numbers, matrix.suspects, strict=True)), (1, 0, 1, 0), expand=False)
    else:
        table = _table("owner", "suspect", "score")
        count = max(MAX_BEST // max(len(matrix.owners), 1), 3)
        for owner, found in evidence.best_suspects(matrix, count):
            for place, (suspect, score) in enumerate(found):
                first = "" if place else wording.printable(owner)
                table.add_row(Text(first), Text(wording.printable(suspect)), score)
        yield table
        yield Text(f"The {count} best of {len(matrix.suspects)} suspects of each owner.")
    yield Text("Only scores against the same owner compare, and they accuse nobody: that takes independent models.")


def _named(heading: str, files: Sequence[tuple[str, str]], top: int) -> Iterable[RenderableType]:
    """Files by the reason they share, the first of each named."""
    if not files:
        return
    yield Text(heading, style="bold")
    by_reason: dict[str, list[str]] = {}
    for path, why in files:
        by_reason.setdefault(why.removeprefix(f"{path}: "), []).append(path)
    for why, paths in list(by_reason.items())[:top]:
        first = wording.printable(paths[0])
        more = f" and {wording.plural(len(paths) - 1, 'more file')}" if len(paths) > 1 else ""
        yield Text(f"  {first}{more}{f': {wording.printable(why)}' if why else ''}")
    left = sum(map(len, list(by_reason.values())[top:]))
    if left or any(len(paths) > 1 for paths in by_reason.values()):
        others = f"  {wording.plural(left, 'file')} for other reasons; all" if left else "  All"
        yield Text(f"{others} are named in the other formats of this report.")


def notes(report: Report) -> list[tuple[str, str]]:
    """All notes, each with what it is about, none twice."""
    found = [("scan", note) for note in report.notes]
    single = [(wording.printable(one.provenance.name), note) for one in report.findings for note in one.notes]
    repairs = [(wording.method_name(one.method), note) for one in report.repairs for note in one.notes]
    owners = [(wording.method_name(one.method), note) for one in report.ownerships for note in one.notes]
    return list(dict.fromkeys([*found, *single, *repairs, *owners]))


def _notes(report: Report) -> Iterable[RenderableType]:
    lines = [Text(f"[{owner}] {wording.printable(note)}") for owner, note in notes(report)]
    return [Text("Notes", style="bold"), *lines] if lines else []


def _table(*headings: str) -> Table:
    """A table without frame; columns of words stand left, columns of numbers right, nothing is cut off."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in _WORDS else "right", overflow="fold")
    return table


def _facts(facts: Iterable[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        if value:
            grid.add_row(Text(name, style="bold"), Text(wording.printable(value)))
    return grid


def _signed(tone: headlines.Tone, words: str, more: str = "") -> Text:
    """Words with the sign and the colour of their tone."""
    return Text.assemble((f"{headlines.SYMBOLS[tone]} {words}", _STYLES[tone]), more)


def _rates(metrics: Metrics | None) -> tuple[str, str, str]:
    values = (None, None, None) if metrics is None else (metrics.acc, metrics.asr, metrics.ra)
    acc, asr, ra = (wording.percent(value).removesuffix(" %") for value in values)
    return acc, asr, ra
