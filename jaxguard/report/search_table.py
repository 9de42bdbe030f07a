"""A search for triggers in the terminal: a row for each kind, and below them those that were not searched."""

from rich import box
from rich.table import Table
from rich.text import Text

from jaxguard.report import wording
from jaxguard.types import TriggerRow, TriggerSearch


def kinds(search: TriggerSearch) -> Table:
    """Tabulates a search by kinds of triggers.

    Args:
        search: of one network.

    Returns:
        What was searched, the class that leads, by how much, and the share of held-out images that are turned into it.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("searched", overflow="fold")
    for heading in ("class", "lead G", "turned"):
        table.add_column(heading, justify="right", overflow="fold")
    for one in search.results:
        only = TriggerSearch(rows=tuple(row for row in search.rows if row.kind == one.kind), results=(one,))
        row, shown = only.leading, Text(wording.printable(one.label or f"{one.kind}: {one.problem}"))
        numbers = ("–", "–") if row is None else (wording.number(one.gap), wording.percent(only.success))
        table.add_row(shown, _class(row), *numbers)
    if search.unsearched:
        missing = wording.printable(", ".join(search.unsearched))
        table.caption, table.caption_justify = Text(f"not searched: {missing}"), "left"
    return table


def _class(row: TriggerRow | None) -> str:
    if row is None:
        return "–"
    if row.assignments is not None:
        return "each its own"
    target = str(row.classes[row.order[0]])
    return target if row.sources is None else f"{row.sources[row.order[0]]} → {target}"
