"""Results on disk: Parquet parts that appear whole or not at all, so that a killed scan resumes.

A folder of results holds `checkpoints/`, one row per checkpoint, `layers/`, one row per layer and content, `leaves/`,
one row per leaf of each account, which checkpoints of one structure share, `looks/`, one row per content that was
examined by another look than its weights, and `searches/`, one row per content in which universal triggers were
searched. Several processes may write to it at once: each part has a name of its own, and of two rows about one
checkpoint the later one holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import pathlib
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jaxguard.checkpoints import atomic, hashing
from jaxguard.detection.records import WEIGHTS, Features, Record
from jaxguard.errors import FleetError, UnscorableError
from jaxguard.fleet import search_records
from jaxguard.fleet.reading import Failure, Stamp
from jaxguard.fleet.stream import Scored
from jaxguard.fleet.tables import CHECKPOINTS, LAYERS, LEAVES, LOOKS, SEARCHES
from jaxguard.scores.weights import SUMMARY, UNDEFINED, largest_z, summary_of
from jaxguard.types import LayerSummary, Provenance, TriggerSearch
from jaxguard.types.findings import LeafAccount

_NAMES, _SETTINGS = b"jaxguard.features", b"jaxguard.settings"
_FLUSH_SECONDS = 2.0
_SCHEMAS = {"checkpoints": CHECKPOINTS, "layers": LAYERS, "leaves": LEAVES, "looks": LOOKS, "searches": SEARCHES}


class Store:
    """Results of scans with the same settings, in one folder.

    Args:
        folder: made where it does not exist.
        settings: how checkpoints are scored, in words; rows of other settings are left alone.

    Raises:
        FleetError: the folder cannot be made, or holds something else.
    """

    def __init__(self, folder: pathlib.Path, settings: str):
        self.folder, self.settings = folder, settings
        self._results: list[Scored | Failure] = []
        self._names: dict[str, tuple[str, ...]] = {}
        self._layered: set[str] = set()
        self._accounted: set[str] = set()
        self._flushed = time.monotonic()
        try:
            for name in _SCHEMAS:
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FleetError(
                f"{folder}: expected a folder for results, got {error.strerror or error}; choose another with --out"
            ) from error

    def add(self, result: Scored | Failure) -> None:
        """Keep a result; written at the latest when the next one comes after two seconds."""
        self._results.append(result)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def add_look(self, title: str, features: Mapping[str, np.ndarray]) -> None:
        """Write what a look gave, by content hash."""
        columns = [list(features), list(features.values()), [self._of_look(title)] * len(features)]
        self._write("looks", pa.table([pa.array(c, f.type) for c, f in zip(columns, LOOKS, strict=True)], LOOKS))

    def add_search(self, title: str, content: str, found: TriggerSearch) -> None:
        """Write a trigger search at once: each takes longer than its file."""
        row = {"content": content, "search": search_records.encoded(found), "settings": self._of_look(title)}
        self._write("searches", pa.Table.from_pylist([row], SEARCHES))

    def flush(self) -> None:
        """Write what is not written yet."""
        self._flushed = time.monotonic()
        if not self._results:
            return
        scored = [result for result in self._results if isinstance(result, Scored)]
        failed = [result for result in self._results if isinstance(result, Failure)]
        tables = [table for result in scored if (table := self._layers(result)).num_rows]
        if tables:
            self._write("layers", pa.concat_tables(tables))
        accounts = dict.fromkeys([*(one.scope.leaves for one in scored), *(one.leaves for one in failed)])
        tables = [table for leaves in accounts if (table := self._leaves(leaves)).num_rows]
        if tables:
            self._write("leaves", pa.concat_tables(tables))
        tables = [self._scored(result) for result in scored] + ([self._failed(failed)] if failed else [])
        self._names |= {result.scope.cohort: result.scope.feature_names for result in scored}
        # Layers and leaves first: a checkpoint whose row is there is complete.
        self._write("checkpoints", pa.concat_tables(tables))
        self._results.clear()

    def records(self) -> dict[str, Record]:
        """The latest record of every checkpoint by its uri as `text` of this module writes it.

        Raises:
            FleetError: a part is damaged.
        """
        table, names, accounts = self._read("checkpoints"), self.feature_names(), self._accounts()
        found: dict[str, Record] = {}
        features = _lists(table.column("features"))
        plain = table.drop_columns(["features", "settings"]).to_pydict()
        for number in np.argsort(np.asarray(plain["scanned"], np.int64), kind="stable"):
            row = {name: values[number] for name, values in plain.items()}
            architecture = row["architecture"] or "unknown"
            cohort, error = row["cohort"], row["error"]
            found[row["uri"]] = Record(
                _provenance(row, architecture),
                cohort,
                {} if error else {WEIGHTS: Features(names[cohort], features[number])},
                z=row["z"],
                notes=tuple(row["notes"].split("\n")) if row["notes"] else (),
                leaves=accounts.get(row["account"], ()),
                left_out=json.loads(row["left_out"] or "{}"),
                aliases={leaf: tuple(others) for leaf, others in json.loads(row["aliases"] or "{}").items()},
                error=error,
                kind=row["kind"],
                modified=row["modified"],
            )
        return found

    def _accounts(self) -> dict[str, tuple[LeafAccount, ...]]:
        """The accounts of leaves by name, each once, however many checkpoints share it."""
        found: dict[str, dict[str, LeafAccount]] = {}
        for row in self._read("leaves").drop_columns(["settings"]).to_pylist():
            account = row.pop("account")
            found.setdefault(account, {})[row["name"]] = LeafAccount(**row)
        return {account: tuple(leaves.values()) for account, leaves in found.items()}

    def feature_names(self) -> dict[str, tuple[str, ...]]:
        """Names of the features by cohort.

        Raises:
            FleetError: a part is damaged.
        """
        found: dict[str, tuple[str, ...]] = {}
        for path in self._parts("checkpoints"):
            with _intact(path):
                found |= _names_in(pq.read_schema(path), self.settings)
        return found | self._names

    def layers(self, hashes: Sequence[str]) -> dict[str, tuple[LayerSummary, ...]]:
        """The layers of some checkpoints by content hash, in the order they were scored."""
        found: dict[str, dict[str, LayerSummary]] = {}
        for row in self._read("layers", hashes).to_pylist():
            found.setdefault(row["content"], {})[row["layer"]] = summary_of(row["layer"], row["channels"], row)
        return {content: tuple(layers.values()) for content, layers in found.items()}

    def look(self, title: str) -> dict[str, np.ndarray]:
        """What a look gave earlier, by content hash."""
        table = self._read("looks", settings=self._of_look(title))
        return dict(zip(table.column("content").to_pylist(), _lists(table.column("features")), strict=True))

    def searches(self, title: str, hashes: Sequence[str]) -> dict[str, TriggerSearch]:
        """Trigger searches of an earlier scan, by content hash.

        Raises:
            FleetError: a part is damaged.
        """
        found: dict[str, TriggerSearch] = {}
        for row in self._read("searches", hashes, settings=self._of_look(title)).to_pylist():
            with _intact(self.folder / "searches"):
                found[row["content"]] = search_records.decoded(row["search"])
        return found

    def _scored(self, result: Scored) -> pa.Table:
        count, scope = len(result.files), result.scope
        largest = largest_z(result.scores.layers)
        features = np.ascontiguousarray(result.scores.features, np.float32)
        offsets = np.arange(count + 1, dtype=np.int32) * features.shape[1]
        errors = [
            f"{file.uri}: {UNDEFINED}" if np.isnan(score) else ""
            for file, score in zip(result.files, largest, strict=True)
        ]
        return self._checkpoints(
            uri=[file.uri for file in result.files],
            content=result.content,
            stamps=[file.stamp for file in result.files],
            format=[file.format for file in result.files],
            architecture=[scope.architecture] * count,
            cohort=[scope.cohort] * count,
            z=largest.astype(np.float32),
            features=pa.ListArray.from_arrays(pa.array(offsets), pa.array(features.ravel())),
            notes=["\n".join((*file.notes, *scope.notes)) for file in result.files],
            account=[_account_of(scope.leaves)] * count,
            left_out=[json.dumps(dict((*file.left_out, *scope.left_out))) for file in result.files],
            aliases=[json.dumps(dict(file.aliases)) for file in result.files],
            error=errors,
            kind=[UnscorableError.kind if error else "" for error in errors],
        )

    def _failed(self, failures: Sequence[Failure]) -> pa.Table:
        count = len(failures)
        return self._checkpoints(
            uri=[failure.uri for failure in failures],
            content=[failure.content for failure in failures],
            stamps=[failure.stamp for failure in failures],
            format=[failure.format for failure in failures],
            architecture=[""] * count,
            cohort=[""] * count,
            z=np.full(count, np.nan, np.float32),
            features=pa.array([[]] * count, pa.list_(pa.float32())),
            notes=[""] * count,
            account=[_account_of(failure.leaves) for failure in failures],
            left_out=[json.dumps(dict(failure.left_out)) for failure in failures],
            aliases=[json.dumps(dict(failure.aliases)) for failure in failures],
            error=[failure.error for failure in failures],
            kind=[failure.kind for failure in failures],
        )

    def _checkpoints(self, *, stamps: Sequence[Stamp], **columns: Any) -> pa.Table:
        count = len(stamps)
        columns |= {
            "size": [stamp.size for stamp in stamps],
            "modified": [stamp.modified for stamp in stamps],
            "settings": [self.settings] * count,
            "scanned": [time.time_ns()] * count,
        }
        for name in ("uri", "notes", "error"):
            columns[name] = [text(value) for value in columns[name]]
        return pa.table([pa.array(columns[f.name], f.type) for f in CHECKPOINTS], schema=CHECKPOINTS)

    def _layers(self, result: Scored) -> pa.Table:
        """Rows of contents that have none yet."""
        fresh = [k for k, content in enumerate(result.content) if content not in self._layered]
        self._layered.update(result.content)
        layers = result.scope.layers
        summaries = result.scores.layers[fresh].reshape(-1, len(SUMMARY))
        columns = {
            "content": np.repeat(np.array([result.content[k] for k in fresh], object), len(layers)),
            "layer": [text(layer.name) for layer in layers] * len(fresh),
            "channels": [layer.channels for layer in layers] * len(fresh),
            **{name: summaries[:, k] for k, name in enumerate(SUMMARY)},
            "settings": [self.settings] * len(summaries),
        }
        return pa.table([pa.array(columns[f.name], f.type) for f in LAYERS], schema=LAYERS)

    def _leaves(self, leaves: tuple[LeafAccount, ...]) -> pa.Table:
        """Rows of an account that was not written yet."""
        account = _account_of(leaves)
        rows = [] if account in self._accounted else [dataclasses.asdict(leaf) for leaf in leaves]
        self._accounted.add(account)
        spelt = ({**row, "name": text(row["name"]), "reason": text(row["reason"])} for row in rows)
        return pa.Table.from_pylist([{**row, "account": account, "settings": self.settings} for row in spelt], LEAVES)

    def _write(self, name: str, table: pa.Table) -> None:
        names = json.dumps({cohort: list(features) for cohort, features in self._names.items()})
        if name == "checkpoints":
            table = table.replace_schema_metadata({_NAMES: names.encode(), _SETTINGS: self.settings.encode()})
        target = self.folder / name / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
        try:
            with atomic.replacing(target, overwrite=False) as fresh:
                pq.write_table(table, fresh, compression="zstd")
        except OSError as error:
            raise FleetError(
                f"{self.folder}: expected to write results there, got {error.strerror or error}; what was written "
                "before is kept, free some space and start the scan again"
            ) from error

    def _parts(self, name: str) -> Iterator[pathlib.Path]:
        yield from sorted((self.folder / name).glob("*.parquet"))

    def _of_look(self, title: str) -> str:
        return f"{self.settings}, {title}"

    def _read(self, name: str, hashes: Sequence[str] | None = None, *, settings: str | None = None) -> pa.Table:
        """All rows of these settings, or those of some content hashes."""
        schema, tables = _SCHEMAS[name], []
        for path in self._parts(name):
            with _intact(path):
                table = _renamed(pq.ParquetFile(path).read()).select(schema.names).replace_schema_metadata(None)
                table = table.cast(schema)
                table = table.filter(pc.field("settings") == (settings or self.settings))
                if hashes is not None:
                    table = table.filter(pc.field("content").isin(list(hashes)))
                tables.append(table)
        return pa.concat_tables(tables) if tables else schema.empty_table()


def _renamed(table: pa.Table) -> pa.Table:
    """A part of an earlier version, in which contents were always named by SHA-256 and the column so too."""
    return table.rename_columns(["content" if name == "sha256" else name for name in table.column_names])


def _provenance(row: Mapping[str, Any], architecture: str) -> Provenance:
    content, about = row["content"], (row["size"], row["format"], architecture)
    if hashing.algorithm_of(content) == "blake3":
        return Provenance(row["uri"], "", *about, blake3=content.removeprefix(hashing.BLAKE3))
    return Provenance(row["uri"], content, *about)


def _account_of(leaves: tuple[LeafAccount, ...]) -> str:
    """Short name of an account, hexadecimal; empty for none."""
    if not leaves:
        return ""
    told = json.dumps([dataclasses.astuple(leaf) for leaf in leaves])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


@contextlib.contextmanager
def _intact(path: pathlib.Path) -> Iterator[None]:
    """One clear error for a part that cannot be read."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise FleetError(
            f"{path}: expected a part of a scan's results, got {error}; move it away, what it held will be scanned "
            "again"
        ) from error


def _names_in(schema: pa.Schema, settings: str) -> dict[str, tuple[str, ...]]:
    metadata = schema.metadata or {}
    if metadata.get(_SETTINGS) != settings.encode():
        return {}
    return {cohort: tuple(names) for cohort, names in json.loads(metadata.get(_NAMES, b"{}")).items()}


def _lists(column: pa.ChunkedArray) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    for chunk in column.chunks:
        offsets, values = chunk.offsets.to_numpy(), chunk.values.to_numpy(zero_copy_only=False)
        found += [values[first:last] for first, last in itertools.pairwise(offsets)]
    return found


def text(value: str) -> str:
    r"""A text as Parquet can hold it: bytes of a file name that are no UTF-8 are spelt out.

    >>> text("runs/\udcff.npz")
    'runs/\\xff.npz'
    """
    try:
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # halves of pairs, which JSON can name
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
