"""Columns of the results of a scan on disk, see `jaxguard.fleet.store`."""

from __future__ import annotations

import pyarrow as pa

from jaxguard.scores.weights import SUMMARY

CHECKPOINTS = pa.schema(
    [
        ("uri", pa.string()),
        ("content", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.int64()),
        ("format", pa.string()),
        ("architecture", pa.string()),
        ("cohort", pa.string()),
        ("z", pa.float32()),
        ("features", pa.list_(pa.float32())),
        ("notes", pa.string()),
        ("account", pa.string()),
        ("left_out", pa.string()),
        ("aliases", pa.string()),
        ("error", pa.string()),
        ("kind", pa.string()),
        ("settings", pa.string()),
        ("scanned", pa.int64()),
    ]
)
"""`content` as `jaxguard.checkpoints.hashing` names it, `size` in bytes, `modified` and `scanned` in nanoseconds since
1970, `account` names rows of `LEAVES`, `left_out` and `aliases` are JSON; the others as in `jaxguard.types.Finding`."""

LEAVES = pa.schema(
    [
        ("account", pa.string()),
        ("name", pa.string()),
        ("state", pa.string()),
        ("reason", pa.string()),
        ("numbers", pa.int64()),
        ("nbytes", pa.int64()),
        ("settings", pa.string()),
    ]
)
"""See `jaxguard.types.LeafAccount`."""

LAYERS = pa.schema(
    [
        ("content", pa.string()),
        ("layer", pa.string()),
        ("channels", pa.int32()),
        *((name, pa.float32()) for name in SUMMARY),
        ("settings", pa.string()),
    ]
)
"""See `jaxguard.types.LayerSummary`."""

LOOKS = pa.schema([("content", pa.string()), ("features", pa.list_(pa.float32())), ("settings", pa.string())])
"""Features of a look, which `settings` names."""

SEARCHES = pa.schema([("content", pa.string()), ("search", pa.large_string()), ("settings", pa.string())])
"""Trigger searches as `jaxguard.fleet.search_records` writes them; `settings` names what else they depend on."""
