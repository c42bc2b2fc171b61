"""`--record DIR`: every call and every granted page as Parquet, for DuckDB and polars users."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from thinbox.errors import InputError
from thinbox.records.coverage import RunCoverage
from thinbox.records.run import RunRecord

CALLS_SCHEMA = "thinbox.calls/1"
FAULTS_SCHEMA = "thinbox.faults/1"
COVERAGE_SCHEMA = "thinbox.coverage_uses/1"
_GROUP_ROWS = 1 << 16
"""Rows of a row group, and of what is held at a time: some 60 MB as dictionaries."""


def write_record(record: RunRecord, folder: Path) -> None:
    """Write `calls.parquet` and `faults.parquet` into `folder`, made if missing; the schema's name is metadata.

    What the record leaves out is counted in the metadata, `left_out`. A run with coverage adds `coverage.parquet`: for
    each name of a call, what its calls used, and in how many of them; `kind` is entered, executed (functions),
    executed_page, data_page or written_page.
    """
    import pyarrow as pa
    from pyarrow import parquet

    calls = pa.schema(
        [
            ("seq", pa.int64()),
            ("tenant", pa.string()),
            ("pid", pa.int32()),
            ("nr", pa.int64()),
            ("name", pa.string()),
            ("args", pa.list_(pa.uint64(), 6)),
            ("ret", pa.int64()),
            ("isolated", pa.bool_()),
            ("verdict", pa.string()),
            ("code_faults", pa.int64()),
            ("data_faults", pa.int64()),
            ("code_bytes", pa.int64()),
            ("virtual_ns", pa.int64()),
        ],
        metadata={"schema": CALLS_SCHEMA} | _left_out(record.calls.left_out),
    )
    faults = pa.schema(
        [
            ("seq", pa.int64()),
            ("vaddr", pa.uint64()),
            ("rip", pa.uint64()),
            ("kind", pa.string()),
            ("symbol", pa.string()),
            ("writable", pa.bool_()),
        ],
        metadata={"schema": FAULTS_SCHEMA} | _left_out(record.faults.left_out),
    )
    uses = pa.schema(
        [
            ("call", pa.string()),
            ("kind", pa.string()),
            ("vaddr", pa.uint64()),
            ("symbol", pa.string()),
            ("calls", pa.int64()),
        ],
        metadata={"schema": COVERAGE_SCHEMA},
    )
    tables: list[tuple[str, Iterable[dict[str, Any]], Any]] = [
        ("calls", (call.to_json() for call in record.calls), calls),
        ("faults", map(asdict, record.faults), faults),
    ]
    if record.coverage is not None:
        tables.append(("coverage", _uses(record.coverage), uses))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows, schema in tables:
            with parquet.ParquetWriter(folder / f"{name}.parquet", schema, compression="zstd") as file:
                left = iter(rows)
                while group := list(islice(left, _GROUP_ROWS)):
                    file.write_table(pa.Table.from_pylist(group, schema=schema))
    except OSError as error:
        raise InputError(f"cannot write the record to {folder}: {error}") from error


def _left_out(count: int) -> dict[str, str]:
    return {"left_out": str(count)} if count else {}


def _uses(coverage: RunCoverage) -> Iterator[dict[str, Any]]:
    for entry in coverage.calls:
        for kind, uses in (
            ("entered", entry.entered),
            ("executed", entry.executed),
            ("executed_page", entry.executed_pages),
            ("data_page", entry.data_pages),
            ("written_page", entry.written_pages),
        ):
            for use in uses:
                yield {"call": entry.name, "kind": kind, "vaddr": use.vaddr, "symbol": use.name, "calls": use.calls}
