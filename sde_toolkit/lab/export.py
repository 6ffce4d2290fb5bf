"""Records for other programs: a line for each record, its settings as columns.

    problem, sampler, num_steps, nfe, metric, value, standard_error, seconds, ..., settings.eta, ...

CSV by the standard library, parquet by pyarrow (an extra).  Lists and mappings among the settings are JSON.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sde_toolkit.lab.records import Record, Reference, save_records
from sde_toolkit.utils import atomic_write, checked

COLUMNS = (
    "problem", "sampler", "num_steps", "nfe", "metric", "value", "standard_error", "num_samples", "seeds",
    "seconds", "network_seconds", "peak_memory",
)  # fmt: skip
"""The columns before the settings."""


@checked
def export_records(path: Path | str, records: Sequence[Record], references: Sequence[Reference] = ()) -> None:
    """Write records for other programs, by the ending of the path: .json, .csv or .parquet.

    JSON holds everything and can be read back (``load_records``); the other two have one line for each record
    and leave out the replicates and the references.

    Raises:
        ValueError: another ending.
        ImportError: parquet without pyarrow.
    """
    path = Path(path)
    if path.suffix == ".json":
        save_records(path, records, references)
    elif path.suffix == ".csv":
        atomic_write(path, csv_bytes(records))
    elif path.suffix == ".parquet":
        atomic_write(path, parquet_bytes(records))
    else:
        raise ValueError(f"path must end in .json, .csv or .parquet, got {path.name!r}")


def rows_of(records: Sequence[Record]) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of the columns, and the records as plain values; a setting that a record lacks is None."""
    names = sorted({f"settings.{key}" for record in records for key in record.settings})
    columns = [*COLUMNS, *names]
    rows = []
    for record in records:
        row = {name: getattr(record, name) for name in COLUMNS} | {"seeds": ",".join(map(str, record.seeds))}
        row |= {f"settings.{key}": _plain(value) for key, value in record.settings.items()}
        rows.append({name: row.get(name) for name in columns})
    return columns, rows


def _plain(value: Any) -> Any:
    if isinstance(value, (Mapping, list, tuple)):
        return json.dumps(value, default=dict)
    return value


def csv_bytes(records: Sequence[Record]) -> bytes:
    """The records as CSV."""
    columns, rows = rows_of(records)
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def parquet_bytes(records: Sequence[Record]) -> bytes:
    """The records as parquet.

    Raises:
        ImportError: there is no pyarrow.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            "parquet needs pyarrow, which is not installed; run `pip install 'sde-toolkit[tables]'`, "
            "or export .csv"
        ) from error
    columns, rows = rows_of(records)
    data: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in columns}
    for name, values in data.items():  # a column of a table has one type
        kinds = {float if type(value) is int else type(value) for value in values if value is not None}
        if len(kinds) > 1:
            data[name] = [None if value is None else str(value) for value in values]
    stream = io.BytesIO()
    parquet.write_table(pyarrow.table(data), stream)
    return stream.getvalue()
