"""The tables of docs/accelerators.md and of the README, written from results/tpu.json between two marks."""

import pathlib
from collections.abc import Collection, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
SHOWN = ("fleet scoring", "coalitions", "trigger search, climb", "training step", "training chunk, 64", "correlation")
"""Beginnings of the programs in the README's table."""

BEGIN, END = "<!-- written by experiments/tpu.py --report -->", "<!-- to here -->"
HEADINGS = ("program", "what it does", "GFLOP", "HBM", "memory", "at least", "bound by", "compiled in")


def table(result: dict[str, Any], chip: str) -> Iterator[str]:
    """Lines of Markdown, one for each program that was compiled for the chip."""
    yield f"| {' | '.join(HEADINGS)} |"
    yield "|" + "---|" * len(HEADINGS)
    for name, rows in result["programs"].items():
        row = rows.get(chip)
        if row is None:
            continue
        work = row.get("work", "")
        if row.get("counted", "all of it") != "all of it":
            work += f"; figures for {row['counted']}"
        if "error" in row:
            yield f"| {name} | {work} | **does not compile**: {row['error'].replace('|', '/')[:160]} | | | | | |"
            continue
        reads = f" ({row['weight_reads']:.1f} x the weights)" if "weight_reads" in row else ""
        cells = (
            name,
            work,
            f"{row['gflop']:,}",
            f"{row['gigabytes_from_hbm']:,} GB{reads}",
            f"{row['memory_gigabytes']:,} GB{'' if row['fits'] else ', **does not fit**'}",
            f"{row['roofline_ms']:,} ms",
            row["bound_by"],
            f"{row['compile_seconds']:,.0f} s",
        )
        yield f"| {' | '.join(cells)} |"


def tables(result: dict[str, Any], names: Collection[str]) -> str:
    """Of all chips, and what has no row yet."""
    parts = []
    for chip, known in result["chips"].items():
        lines = list(table(result, chip))
        if len(lines) > 2:
            peak = f"{known['flops'] / 1e12:.0f} TFLOP/s in bfloat16, {known['bandwidth'] / 1e9:,.0f} GB/s"
            parts.append(f"**TPU {chip}**: {peak}, {known['memory'] / 1e9:.0f} GB.\n\n" + "\n".join(lines))
        missing = [name for name in names if chip not in result["programs"].get(name, {})]
        if missing:
            parts.append(f"Not compiled for {chip} yet: {'; '.join(missing)}.")
    environment = result["environment"]
    versions = ", ".join(f"{name} {environment[name]}" for name in ("jax", "jaxlib", "libtpu"))
    parts.append(f"Compiled on {environment['date']} with {versions}; {environment['processor']}, under load.")
    return "\n\n".join(parts)


def compact(result: dict[str, Any], chip: str) -> str:
    """The main programs on one chip, for the README."""
    known = result["chips"][chip]
    flops, bandwidth = f"{known['flops'] / 1e12:.0f} TFLOP/s", f"{known['bandwidth'] / 1e9:,.0f} GB/s"
    lines = [f"| TPU {chip} ({flops}, {bandwidth}) | memory | HBM | at least | bound by |", "|---|---|---|---|---|"]
    for name, rows in result["programs"].items():
        row = rows.get(chip)
        if row and "error" not in row and name.startswith(SHOWN) and row["chips"] == 1:
            size = f"{row['memory_gigabytes']:,} GB | {row['gigabytes_from_hbm']:,} GB"
            lines.append(f"| {name}: {row['work']} | {size} | {row['roofline_ms']:,} ms | {row['bound_by']} |")
    return "\n".join(lines)


def write(result: dict[str, Any], names: Collection[str]) -> None:
    """Replace what stands between the marks of the pages."""
    pages = {ROOT / "docs" / "accelerators.md": tables(result, names), ROOT / "README.md": compact(result, "v5e")}
    for page, text in pages.items():
        before, _, rest = page.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
