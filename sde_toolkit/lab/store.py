"""The store of records: one SQLite file that many processes may write to at once.

    records       one row for each sampler, step count, seed and metric; columns as in ``Record``
    real_data     what real data score, as in ``Reference``

A row's key is a digest of what it is a record of, so that a record of the same thing replaces it, and only
what has no row is to be measured.  A record is written in one transaction, in write-ahead mode: a process
that is killed loses nothing that it had written, and writers wait for each other.

Not promised: write-ahead mode needs a local file system.  Processes of several hosts write a store each, and
``Store.merge`` joins them.

Reference: https://www.sqlite.org/wal.html
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from sde_toolkit.lab.records import (
    Record,
    Reference,
    finite_or_none,
    identity,
    load_records,
    record_of,
    reference_of,
)
from sde_toolkit.utils import atomic_write, checked, turns

VERSION = 1
_APPLICATION = 0x5DE70019
"""Says that a SQLite file is a store of records."""

_PATIENCE = 120.0
"""Seconds that a process waits for the others' transactions."""

_JSON = ("seeds", "settings", "estimates", "made_by")
_COLUMNS = tuple(part.name for part in dataclass_fields(Record))
_REFERENCE_COLUMNS = tuple(part.name for part in dataclass_fields(Reference))


class Store:
    """Records and references in a file, which is made with the first record.

    Args:
        path: of the file.

    Raises (in every method):
        ValueError: the file is not a store of records.
        OSError: it cannot be read or written.
    """

    @checked
    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    def add(self, records: Iterable[Record], references: Iterable[Reference] = ()) -> None:
        """Write records and references in one transaction; those of the same things are replaced."""
        rows = [_row(record) for record in records]
        others = [_reference_row(reference) for reference in references]
        self._make()
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            _insert(connection, "records", _COLUMNS, rows)
            _insert(connection, "real_data", _REFERENCE_COLUMNS, others)
            connection.execute("COMMIT")

    def records(self) -> list[Record]:
        """All records, in the order in which they were first written."""
        rows = self._rows("records", _COLUMNS)
        return [record_of(row, f"record {i}") for i, row in enumerate(rows)]

    def find(self, wanted: Iterable[Record]) -> dict[str, Record]:
        """Those records that are here of what the given ones are records of, by ``identity``."""
        keys = {_digest(identity(record)) for record in wanted}
        rows = self._rows("records", _COLUMNS, sorted(keys))
        found = [record_of(row, f"record {i}") for i, row in enumerate(rows)]
        return {identity(record): record for record in found}

    def references(self) -> list[Reference]:
        """All references, in the order in which they were first written."""
        rows = self._rows("real_data", _REFERENCE_COLUMNS)
        return [reference_of(row, f"reference {i}") for i, row in enumerate(rows)]

    @checked
    def merge(self, other: Path | str) -> int:
        """Add all that another store, or a file of records as JSON, holds; return its number of records.

        Records that this store has already are kept as they are.

        Raises:
            ValueError: ``other`` is neither, or is missing.
        """
        other = Path(other)
        if not other.is_file():
            raise ValueError(
                f"other must be a store or a JSON file of records, got {other}, which is no file"
            )
        if other.suffix == ".json":
            records, references = load_records(other)
        else:
            source = Store(other)
            records, references = source.records(), source.references()
        known = {identity(record) for record in self.records()}
        said = {_reference_row(reference)[0] for reference in self.references()}
        self.add(
            [record for record in records if identity(record) not in known],
            [reference for reference in references if _reference_row(reference)[0] not in said],
        )
        return len(records)

    @property
    def _exists(self) -> bool:
        return self.path.exists() and self.path.stat().st_size > 0

    def _make(self) -> None:
        """Put an empty store at the path, whole or not at all, if there is none."""
        if self._exists:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with turns(self.path), self._damage():
            if not self._exists:
                atomic_write(self.path, _empty())

    def _rows(
        self, table: str, columns: tuple[str, ...], keys: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """The rows of a table, those with these keys alone if they are given."""
        if not self._exists:
            return []
        chosen = f"SELECT {', '.join(columns)} FROM {table}"
        with self._connection() as connection:
            if keys is None:
                found = connection.execute(f"{chosen} ORDER BY rowid").fetchall()
            else:
                each = (connection.execute(f"{chosen} WHERE key = ?", (key,)).fetchone() for key in keys)
                found = [row for row in each if row is not None]
        rows = [dict(zip(columns, row, strict=True)) for row in found]
        with self._damage():
            return [
                {name: json.loads(value) if name in _JSON else value for name, value in row.items()}
                for row in rows
            ]

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with self._damage():
            connection = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)
            try:
                _check_kind(connection)
                connection.execute("PRAGMA synchronous=NORMAL")
                yield connection
            finally:
                connection.close()

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        """Errors of the file as sentences that name it."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(
                f"{self.path} cannot be read or written ({error}); is the disk full or read-only?"
            ) from error
        except (sqlite3.DatabaseError, ValueError) as error:
            raise ValueError(
                f"{self.path} is not a store of records ({error}); move it away to start afresh"
            ) from error


def _check_kind(connection: sqlite3.Connection) -> None:
    """Refuse a database of another program, and a store of a later version."""
    kind, version = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    if kind != _APPLICATION:
        raise ValueError("it is a database of another program")
    if version > VERSION:
        raise ValueError(f"it has version {version}, and this program knows up to {VERSION}")


def _empty() -> bytes:
    """The content of a store without records, in write-ahead mode."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.sqlite"
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA application_id={_APPLICATION}")
            connection.execute(f"PRAGMA user_version={VERSION}")
            for table, columns in (("records", _COLUMNS), ("real_data", _REFERENCE_COLUMNS)):
                connection.execute(f"CREATE TABLE {table} (key TEXT UNIQUE NOT NULL, {', '.join(columns)})")
        finally:
            connection.close()
        return path.read_bytes()


def _insert(
    connection: sqlite3.Connection, table: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]
) -> None:
    values = ", ".join("?" * (len(columns) + 1))
    changes = ", ".join(f"{name} = excluded.{name}" for name in columns)
    connection.executemany(
        f"INSERT INTO {table} (key, {', '.join(columns)}) VALUES ({values}) "
        f"ON CONFLICT (key) DO UPDATE SET {changes}",
        rows,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _row(record: Record) -> tuple[Any, ...]:
    values = {part: getattr(record, part) for part in _COLUMNS}
    values["estimates"] = [asdict(estimate) for estimate in record.estimates]
    plain = (_json(value) if name in _JSON else value for name, value in values.items())
    return (_digest(identity(record)), *plain)


def _reference_row(reference: Reference) -> tuple[Any, ...]:
    settings = _json(reference.settings)
    key = _digest(json.dumps([reference.metric, reference.label, settings]))
    return (key, reference.metric, reference.label, reference.value, reference.standard_error, settings)


def _json(value: Any) -> str:
    return json.dumps(finite_or_none(value), sort_keys=True, default=dict)
