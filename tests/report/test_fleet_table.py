"""The terminal table of a fleet fits, names what nobody could judge, and means the same without colour."""

import io

import pytest
from fleets import fleet, hostile, unjudged
from rich.console import Console
from samples import HOSTILE

from jaxguard.report import fleet_table
from jaxguard.types import FleetReport


def render(report: FleetReport, width: int, *, colour: bool = False, **options) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
        no_color=not colour,
    )
    console.print(fleet_table.fleet_table(report, **options))
    return stream.getvalue()


def rows(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.mark.parametrize("report", [fleet(60), unjudged(), hostile(HOSTILE), hostile("[red]\udcff")])
@pytest.mark.parametrize("width", [60, 80, 200])
def test_fits_without_truncation(report, width):
    text = render(report, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_counts_rows_and_names():
    report = fleet(60)
    lines = rows(render(report, 160, top=5))
    assert "✗ Backdoor suspected in 3 of 60 checkpoints; 2 could not be read, 3 files skipped." in lines
    counts = ["3 ✗ suspected", "49 ○ no evidence", "6 ? inconclusive", "2 ! could not be read", "3 – skipped"]
    start = lines.index(counts[0])
    assert lines[start : start + 5] == counts
    heading = lines.index("checkpoint verdict score p q max z")
    shown = lines[heading + 2 : heading + 7]
    assert [line.split(" ✗ ")[0] for line in shown[:3]] == [
        "id-00000002/model.safetensors", "id-00000001/model.safetensors", "id-00000000/Final model.safetensors",
    ]  # fmt: skip
    assert all("✗ backdoor suspected" in line for line in shown[:3])
    assert all("○ no evidence" in line for line in shown[3:])
    assert lines[heading + 7] == "The 5 most suspicious of 58. Paths below /data/fleet/."
    for entry in report.entries:
        if entry.verdict == "error":
            assert f"{entry.uri}: {entry.reason}" in lines
    assert [path for path, _ in report.skipped] == [f"/data/fleet/notes-{k}.txt" for k in range(3)]
    assert "/data/fleet/notes-0.txt and 2 files more: no known format" in lines


def test_of_many_files_the_rest_is_counted():
    lines = rows(render(fleet(100, errors=30, skipped=1200), 160, top=4))
    assert "26 files for other reasons; all are named in the other forms of this report." in lines
    assert "/data/fleet/notes-0.txt and 1,199 files more: no known format" in lines
    assert sum("no known format" in line for line in lines) == 1


def test_without_a_profile_nothing_is_claimed():
    text = render(unjudged(), 120)
    assert "? Inconclusive: none of 12 checkpoints could be judged." in rows(text)
    assert "Inconclusive: no reference profile was given." in rows(text)
    assert "no evidence" not in text


def test_colour_adds_nothing_but_colour():
    import re

    report = fleet(30)
    coloured = render(report, 100, colour=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == render(report, 100)
