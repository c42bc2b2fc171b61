"""`--record DIR`: every call and every granted page as Parquet, for DuckDB and polars users."""

from dataclasses import asdict
from pathlib import Path

from thinbox.errors import InputError
from thinbox.session.records import RunRecord

CALLS_SCHEMA = "thinbox.calls/1"
FAULTS_SCHEMA = "thinbox.faults/1"


def write_record(record: RunRecord, folder: Path) -> None:
    """Write `calls.parquet` and `faults.parquet` into `folder`, made if missing; the schema's name is metadata."""
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
        metadata={"schema": CALLS_SCHEMA},
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
        metadata={"schema": FAULTS_SCHEMA},
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows, schema in (("calls", record.calls, calls), ("faults", record.faults, faults)):
            table = pa.Table.from_pylist([asdict(row) for row in rows], schema=schema)
            parquet.write_table(table, folder / f"{name}.parquet", compression="zstd")
    except OSError as error:
        raise InputError(f"cannot write the record to {folder}: {error}") from error
