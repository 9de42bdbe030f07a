"""What a reference profile holds, for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from jaxguard.report import wording
from jaxguard.types import Reference


def reference_table(references: Sequence[Reference], alpha: float) -> Table:
    """One line per bucket.

    Args:
        references: of a profile.
        alpha: accepted error rate that the power was measured at.

    Returns:
        Bucket, number of references, power with its 95 % interval.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("bucket")
    table.add_column("clean", justify="right")
    table.add_column("backdoored", justify="right")
    table.add_column(f"found at alpha {alpha:g}", justify="right")
    for one in references:
        if math.isnan(one.power):
            power = "not measured"
        else:
            low, high = (100 * end for end in one.interval)
            power = f"{100 * one.power:.0f} % ({low:.0f} to {high:.0f})"
        table.add_row(wording.printable(one.bucket), str(len(one.scores)), str(len(one.suspects)), power)
    return table
