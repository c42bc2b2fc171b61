"""A run record as the cost model sees it: its calls in arrays, and the trace of pages if there is one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thinbox.errors import InputError
from thinbox.records.events import PageTrace
from thinbox.records.run import SCHEMA, RunRecord


@dataclass(slots=True)
class Workload:
    """Calls of one run; arrays have one entry for each call. `seconds` is virtual: it is not a CPU's time."""

    title: str
    names: list[str]
    pids: list[int]
    faults: np.ndarray
    isolated: np.ndarray
    interrupts: np.ndarray
    exceptions: np.ndarray
    sleeps: np.ndarray
    table_pages: int
    trace: PageTrace | None


def workload_of(data: dict[str, Any], trace: PageTrace | None, title: str = "") -> Workload:
    """Return the workload of a `thinbox.run/1` object; `InputError` names what is missing."""
    if data.get("schema") != SCHEMA:
        raise InputError(f"the record has schema {data.get('schema')!r}, wanted {SCHEMA!r}")
    if left_out := data.get("calls_left_out"):
        # Which they were is not known, and the model goes through calls one by one, in order.
        raise InputError(f"the record leaves out {left_out:,} calls, so no cost follows from it; record a shorter run")
    if left_out := data.get("event_rows_left_out"):
        raise InputError(f"the record leaves out the events of {left_out:,} calls; record a shorter run")
    try:
        calls = data["calls"]
        if any(call.get("prefaulted") for call in calls):
            # The faults it was spared are not in it; a mode of `cost.modes` works prefaulting out of all faults.
            raise InputError("the record is of a run with --prefault: run it without; `cost` works it out itself")
        names = [str(call["name"]) for call in calls]
        events = data.get("events") or {"columns": [], "calls": []}
        columns = {name: i for i, name in enumerate(events["columns"])}
        arrays = {name: np.zeros(len(calls)) for name in ("interrupts", "exceptions", "sleeps")}
        for row in events["calls"]:
            for name, values in arrays.items():
                values[row[0]] = row[columns[name]]
        return Workload(
            title=title or " ".join(data["command"])[:60],
            names=names,
            pids=[int(call["pid"]) for call in calls],
            faults=np.array([call["code_faults"] + call["data_faults"] for call in calls]),
            isolated=np.array([bool(call["isolated"]) for call in calls]),
            table_pages=int(data["totals"]["table_pages_made"]),
            trace=trace,
            **arrays,
        )
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"the record is not a whole thinbox.run/1 object: {error}") from error


def workload_of_record(record: RunRecord) -> Workload:
    """Return the workload of a record still in memory."""
    return workload_of(record.to_json(), record.events.trace)


def load_workload(path: Path) -> Workload:
    """Read RUN.json, and the trace it names beside it; `InputError` when either cannot be used."""
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} is not a run record")
    references = (data.get("events") or {}).get("references")
    trace = None
    if references and references.get("file"):
        trace = PageTrace.load(path.parent / Path(str(references["file"])).name)
        if len(trace.grants) and int(trace.grants[:, 0].max()) >= len(data.get("calls", [])):
            raise InputError(f"the trace beside {path} belongs to another run: record both again")
    return workload_of(data, trace, path.name)
