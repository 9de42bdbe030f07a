"""`jaxguard methods`: every defense, attack and fingerprint, from the rows of their tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxguard.cli import console, options

if TYPE_CHECKING:
    from jaxguard.methods import Method


def methods(
    name: Annotated[str | None, typer.Argument(help="A method, to show its options.", show_default=False)] = None,
    as_json: options.AsJson = False,
) -> None:
    """List the defenses, attacks and fingerprints, or the options of one."""
    from jaxguard.attacks import ATTACKS
    from jaxguard.defenses import DEFENSES
    from jaxguard.fingerprints import FINGERPRINTS
    from jaxguard.methods import find

    tables: dict[str, Mapping[str, Method[..., Any]]] = {
        "defenses": DEFENSES,
        "attacks": ATTACKS,
        "fingerprints": FINGERPRINTS,
    }
    if name is not None:
        row = find({key: row for rows in tables.values() for key, row in rows.items()}, name, "method")
        print(json.dumps(_row(row))) if as_json else console.out.print(_options(row))
    elif as_json:
        print(json.dumps({kind: {key: _row(row) for key, row in rows.items()} for kind, rows in tables.items()}))
    else:
        console.out.print(Group(*(_list(kind, rows) for kind, rows in tables.items())))


def _row(row: Method[..., Any]) -> dict[str, Any]:
    chosen = row.record()
    return {
        "title": row.title,
        "needs": sorted(row.needs),
        "paper": row.paper,
        "options": {
            option.name: {"default": chosen[option.name], "expects": option.expects, "help": option.help}
            for option in row.parameters.values()
        },
    }


def _list(kind: str, rows: Mapping[str, Method[..., Any]]) -> Group:
    table = _table("name", "what it does", "needs", "paper")
    for name, row in rows.items():
        table.add_row(name, Text(row.title), ", ".join(sorted(row.needs)) or "nothing", Text(row.paper))
    return Group(Text(kind, style="bold"), table, Text())


def _options(row: Method[..., Any]) -> Group:
    needs = ", ".join(sorted(row.needs)) or "nothing"
    head = Text(f"{row.name}: {row.title}. Needs {needs}. {row.paper}", style="bold")
    table = _table("option", "default", "expects", "")
    for name, option in _row(row)["options"].items():
        default = option["default"]
        text = default if isinstance(default, str) else json.dumps(default)
        table.add_row(name, Text(text), Text(option["expects"]), Text(option["help"]))
    return Group(head, Text(), table)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
