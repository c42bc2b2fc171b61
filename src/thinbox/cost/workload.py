"""A run record as the cost model sees it: its calls in arrays, and the trace of pages if there is one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thinbox.cost.sound_trace import require_sound
from thinbox.errors import InputError
from thinbox.host.files import load_json, show
from thinbox.records.events import PageTrace
from thinbox.records.run import SCHEMA, RunRecord

_MOST = 1 << 40


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
        if not isinstance(calls, list):
            raise TypeError("calls is no list")  # noqa: TRY301 - said with the others
        if any(call.get("prefaulted") for call in calls):
            # The faults it was spared are not in it; a mode of `cost.modes` works prefaulting out of all faults.
            raise InputError("the record is of a run with --prefault: run it without; `cost` works it out itself")
        names = [str(call["name"]) for call in calls]
        events = data.get("events") or {"columns": [], "calls": []}
        columns = {name: i for i, name in enumerate(events["columns"])}
        arrays = {name: np.zeros(len(calls)) for name in ("interrupts", "exceptions", "sleeps")}
        for row in events["calls"]:
            for name, values in arrays.items():
                values[_count(row[0])] = _count(row[columns[name]])
        return Workload(
            title=title or " ".join(data["command"])[:60],
            names=names,
            pids=[_count(call["pid"]) for call in calls],
            faults=np.array([_count(call["code_faults"]) + _count(call["data_faults"]) for call in calls], np.int64),
            isolated=np.array([bool(call["isolated"]) for call in calls], bool),
            table_pages=_count(data["totals"]["table_pages_made"]),
            trace=trace,
            **arrays,
        )
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"the record is not a whole thinbox.run/1 object: {error}") from error


def _count(value: Any) -> int:
    """Return a number of things, which is none below 0 and none that arithmetic of 64 bits could overflow with."""
    if type(value) is not int or not 0 <= value <= _MOST:
        raise TypeError(f"{value!r} is no count")
    return value


def workload_of_record(record: RunRecord) -> Workload:
    """Return the workload of a record still in memory."""
    return workload_of(record.to_json(), record.events.trace)


def load_workload(path: Path) -> Workload:
    """Read RUN.json, and the trace it names beside it; `InputError` when either cannot be used."""
    data = load_json(path)
    if not isinstance(data, dict):
        raise InputError(f"{path} is not a run record")
    workload = workload_of(data, None, show(path.name))
    references = (data.get("events") or {}).get("references")
    if isinstance(references, dict) and isinstance(references.get("file"), str) and references["file"]:
        place = path.parent / Path(references["file"]).name
        workload.trace = PageTrace.load(place)
        require_sound(workload.trace, len(workload.names), place)
    return workload
