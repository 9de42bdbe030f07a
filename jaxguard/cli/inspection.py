"""Tables of `jaxguard inspect`."""

from __future__ import annotations

import math

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxguard.checkpoints import Checkpoint
from jaxguard.errors import UnscorableError
from jaxguard.fleet import accounting
from jaxguard.graph import ChannelGraph, pairing
from jaxguard.report.wording import printable, size
from jaxguard.scores import structural
from jaxguard.suspects import Suspect


def leaves(checkpoint: Checkpoint) -> Group:
    """Format, size, hash and every leaf of a checkpoint."""
    table = _table("leaf", "shape", "dtype")
    for name, leaf in checkpoint.leaves.items():
        table.add_row(Text(printable(name)), "x".join(map(str, leaf.shape)) or "scalar", str(leaf.dtype))
    numbers = sum(math.prod(leaf.shape) for leaf in checkpoint.leaves.values())
    size = sum(leaf.nbytes for leaf in checkpoint.leaves.values())
    head = f"{checkpoint.format}, {len(checkpoint.leaves)} leaves, {numbers:,} numbers, {size / 1e6:.1f} MB"
    metadata = [Text(f"{printable(key)}: {printable(text)}") for key, text in checkpoint.metadata.items()]
    return Group(Text(head, style="bold"), Text(f"sha256 {checkpoint.sha256}"), *metadata, Text(), table)


def accounts(suspect: Suspect) -> Group:
    """What became of every leaf, what was left out, and counts that add up to the file."""
    leaves = accounting.of_suspect(suspect)
    table, totals = _table("leaf", "what became of it", "why"), list[str]()
    for state in dict.fromkeys(one.state for one in leaves):
        members = [one for one in leaves if one.state == state]
        totals.append(f"{len(members):,} {state} ({size(sum(one.nbytes for one in members))})")
    for one in leaves:
        table.add_row(Text(printable(one.name)), one.state, Text(printable(one.reason)))
    checkpoint = suspect.checkpoint
    if checkpoint is not None:
        for name, why in checkpoint.left_out.items():
            table.add_row(Text(printable(name)), "left out", Text(printable(why)))
        for name, others in checkpoint.aliases.items():
            table.add_row(Text(printable(", ".join(others))), "alias", Text(f"the same numbers as {printable(name)}"))
    notes = [Text(note, style="yellow") for note in accounting.remark(leaves)]
    return Group(Text(f"\nleaves: {', '.join(totals)}", style="bold"), *notes, Text(), table)


def structure(suspect: Suspect) -> Group:
    """What makes the channels of a model of which only names and shapes are known."""
    title = Text("\narchitecture unknown", style="bold")
    notes = [Text(printable(note)) for note in suspect.notes]
    reading = structural.read(suspect.leaves)
    try:
        producers = structural.require_producers(reading)
    except UnscorableError as error:
        return Group(title, *notes, Text(printable(str(error))))
    made = _table("producer", "channels", "output", "input", "taps", "scaled by")
    for one in producers:
        axes = [",".join(map(str, group)) or "–" for group in one.axes]
        made.add_row(Text(printable(one.stem)), str(one.channels), *axes, Text(printable(one.norm or "nothing")))
    return Group(title, *notes, Text(), made)


def channels(graph: ChannelGraph, architecture: str, notes: tuple[str, ...] = ()) -> Group:
    """What makes a model's channels, what is scored, and which channels belong together."""
    made = _table("producer", "channels", "gate behind", "traced at")
    for number, producer in enumerate(graph.producers):
        norm = "output" if number in graph.outputs else "itself"
        if producer.affine is not None:
            norm = graph.affines[producer.affine].name
        made.add_row(producer.name, str(producer.channels), norm, producer.where.rsplit("/", 1)[-1])
    scored = _table("scored together", "channels")
    for layer in pairing.layers(graph):
        scored.add_row(layer.name, str(layer.channels))
    groups = _table("permuted together", "channels", "places", "free")
    for group in graph.groups:
        groups.add_row(
            group.name, str(group.size), str(len(group.members)), "yes" if group.permutable else group.frozen
        )
    title = Text(f"\n{architecture}: {graph}", style="bold")
    remarks = [Text(printable(remark)) for remark in (*notes, *graph.remarks)]
    return Group(title, *remarks, Text(), made, Text(), scored, Text(), groups)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold", justify="right" if heading in ("channels", "places") else "left")
    return table
