"""Worker processes for the audit: each has a case runner of its own, all share one frozen machine.

Why it exists: cases are independent, and a case that brings down its process (the CPU engine is C) must cost
its own result only.

Rules of this file:
- Workers are forked, so that the ready guest, the compiled hooks and the frozen RAM are shared, not sent.
- Results come in any order; whoever calls puts them in order. A dead worker is replaced.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from thinbox.audit.case import Case
from thinbox.errors import MachineError
from thinbox.records.audit import AuditEntry, Grant

if TYPE_CHECKING:
    from thinbox.audit.case_runner import CaseRunner

_PAGE_MASK = ~0xFFF


def audit_case(runner: "CaseRunner", case: Case, plain: AuditEntry | None = None) -> AuditEntry:
    """Run one case both ways and compare. `plain` has the un-isolated run, if it is known: it is the same under
    every policy."""
    entry = _run_plain(runner, case) if plain is None or not plain.memory else _copy_plain(plain)
    if not entry.exercised:
        return entry
    isolated = runner.run(case, isolated=True)
    record = isolated.record
    if record is not None:
        entry.isolated_ret, entry.isolated_virtual_ns = record.ret, record.virtual_ns
        entry.code_faults, entry.data_faults = record.code_faults, record.data_faults
        entry.prefaulted = record.prefaulted
        entry.grants = [
            Grant(fault.vaddr & _PAGE_MASK, fault.kind, fault.symbol)
            for fault in runner.tenant.record.faults
            if fault.seq == record.seq
        ]
    entry.killed = isolated.killed
    same_result = case.varies or entry.ret == entry.isolated_ret
    if isolated.killed:
        entry.reason = "killed"
    elif isolated.problem is not None:
        entry.reason = isolated.problem
    elif not same_result:
        entry.reason = f"returned {entry.isolated_ret} instead of {entry.ret}"
    elif entry.memory != isolated.memory:
        entry.reason = "user memory differs"
    else:
        entry.same = True
    return entry


def _run_plain(runner: "CaseRunner", case: Case) -> AuditEntry:
    plain = runner.run(case, isolated=False)
    virtual_ns = plain.record.virtual_ns if plain.record else 0
    entry = AuditEntry(case.call, case.name, case.success, ret=plain.ret, virtual_ns=virtual_ns, memory=plain.memory)
    entry.exercised, entry.reason, entry.lacking = plain.problem is None, plain.problem or "", plain.lacking
    return entry


def _copy_plain(known: AuditEntry) -> AuditEntry:
    return AuditEntry(
        known.call,
        known.case,
        known.success,
        exercised=known.exercised,
        ret=known.ret,
        virtual_ns=known.virtual_ns,
        memory=known.memory,
    )


class Worker:
    """One forked process that answers case numbers with entries."""

    def __init__(
        self, cases: Sequence[Case], make_runner: "Callable[[], CaseRunner]", plain: Mapping[str, AuditEntry]
    ) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.case: int | None = None
        self._process = context.Process(target=_serve, args=(theirs, cases, make_runner, plain), daemon=True)
        self._process.start()
        theirs.close()

    def give(self, number: int) -> None:
        """Let the worker run case `number`."""
        self.case = number
        self.pipe.send(number)

    def end(self) -> str:
        """Stop the process; return how it ended, in words."""
        self.pipe.close()
        self._process.join(timeout=1)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()
        code = self._process.exitcode or 0
        return f"signal {-code}" if code < 0 else f"status {code}"


def _serve(
    pipe: Connection, cases: Sequence[Case], make_runner: "Callable[[], CaseRunner]", plain: Mapping[str, AuditEntry]
) -> None:
    # Ctrl-C is the parent's to handle: it ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    runner = make_runner()
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            os._exit(0)
        case = cases[number]
        try:
            entry = audit_case(runner, case, plain.get(case.title))
        except MachineError as error:
            entry = AuditEntry(case.call, case.name, case.success, reason=f"the machine failed: {error}")
            runner = make_runner()
        pipe.send(entry)


def run_cases(
    cases: Sequence[Case],
    make_runner: "Callable[[], CaseRunner]",
    jobs: int,
    todo: Sequence[int],
    plain: Mapping[str, AuditEntry] | None = None,
) -> Iterator[tuple[int, AuditEntry]]:
    """Run the cases numbered `todo` in `jobs` processes; yield (number, entry) as they are done.

    `plain` has entries of an earlier audit by title, whose un-isolated runs need not be run again.
    """
    plain = plain or {}
    queue = list(reversed(todo))
    workers = [Worker(cases, make_runner, plain) for _ in range(max(1, min(jobs, len(queue))))]
    try:
        for worker in workers:
            worker.give(queue.pop())
        while any(worker.case is not None for worker in workers):
            busy = {worker.pipe: worker for worker in workers if worker.case is not None}
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                number = worker.case
                assert number is not None
                worker.case = None
                try:
                    entry = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    case = cases[number]
                    reason = f"the worker process died ({worker.end()})"
                    entry = AuditEntry(case.call, case.name, case.success, reason=reason)
                    workers[workers.index(worker)] = worker = Worker(cases, make_runner, plain)
                if queue:
                    worker.give(queue.pop())
                yield number, entry
    finally:
        for worker in workers:
            worker.end()
