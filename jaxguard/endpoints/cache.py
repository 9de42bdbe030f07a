"""Answers stored in an SQLite file, each with its checksum."""

import contextlib
import hashlib
import os
import pathlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from jaxguard.errors import EndpointError

_APPLICATION_ID = 0x6A676161
_CHECKSUM_BYTES = 16
_LOCK_SECONDS = 30.0


class Cache:
    """Rows of scores by key; several processes may use one file at a time.

    Args:
        path: the file, created if it is missing or empty.

    Raises:
        EndpointError: not a cache, a damaged one, or one that cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        with self._reported():
            # Transactions are explicit: the sqlite3 module opens none of its own.
            self._database = sqlite3.connect(self.path, timeout=_LOCK_SECONDS, isolation_level=None)
        try:
            with self._reported():
                self._prepare()
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def read(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Rows `[K]` float64 of the keys that are stored.

        Raises:
            EndpointError: a damaged row.
        """
        rows = {}
        with self._reported():
            for key in keys:
                found = self._database.execute("SELECT scores, checksum FROM answers WHERE key = ?", (key,)).fetchone()
                if found is None:
                    continue
                scores, checksum = found
                if not isinstance(scores, bytes) or checksum != _checksum(key, scores):
                    raise self._damaged("a row whose checksum is another")
                rows[key] = np.frombuffer(scores, "<f8").astype(np.float64)
        return rows

    def write(self, rows: Mapping[bytes, np.ndarray]) -> None:
        """Stores rows, all or none; they are on disk when it returns.

        Args:
            rows: key -> `[K]` float64, checked.
        """
        encoded = [(key, row.astype("<f8").tobytes()) for key, row in rows.items()]
        values = [(key, scores, _checksum(key, scores)) for key, scores in encoded]
        with self._reported(), self._transaction():
            self._database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", values)

    def _prepare(self) -> None:
        (tables,) = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and self._application_id() != _APPLICATION_ID:
            raise EndpointError(
                f"{self.path}: expected a file of answers, got another application's database; choose another path"
            )
        self._database.execute("PRAGMA trusted_schema = OFF")
        self._database.execute("PRAGMA synchronous = FULL")
        if tables:
            return
        self._database.execute("PRAGMA journal_mode = WAL")  # stored in the file, for good
        with self._transaction():
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS answers "
                "(key BLOB PRIMARY KEY, scores BLOB NOT NULL, checksum BLOB NOT NULL) WITHOUT ROWID"
            )
            self._database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")

    def _application_id(self) -> int:
        return self._database.execute("PRAGMA application_id").fetchone()[0]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # no folder, no permission, full, locked, or another schema
            raise EndpointError(
                f"{self.path}: expected a file of answers that can be read and written, got {error}; "
                "check its folder, or choose another path"
            ) from error
        except (sqlite3.Error, OverflowError) as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, found: str) -> EndpointError:
        return EndpointError(
            f"{self.path}: expected a file of answers, got {found}; it is damaged or not a cache, choose another "
            "path or delete it to request all answers again"
        )


def _checksum(key: bytes, scores: bytes) -> bytes:
    return hashlib.sha256(key + scores).digest()[:_CHECKSUM_BYTES]
