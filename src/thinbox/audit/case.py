"""What a case of the audit is, and the register of all of them.

Why it exists: the corpus is data (call, name, body) that the case runner runs twice. A body is a generator in the
words of `guest.agent_channel`: it prepares, makes the one measured call, and checks what came of it.

Rules of this file:
- A case has exactly one measured call, and says what it must return: a corpus that exercises nothing fails.
- Names are unique within a call; the order of a listing is that of the system call table, then of the source.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from thinbox.audit.case_process import Process
from thinbox.audit.expect import Expect
from thinbox.harness.process import Steps

Body = Callable[[Process], Steps]


@dataclass(frozen=True, slots=True)
class Case:
    """One way to make one call. `success` says whether it is a success path or an error path; `varies` that the
    result is a time, a random number or the like, so that two runs may differ in it."""

    call: str
    name: str
    success: bool
    body: Body
    varies: bool = False

    @property
    def title(self) -> str:
        """`call: name`, unique."""
        return f"{self.call}: {self.name}"


_CASES: dict[str, Case] = {}


def register(case: Case) -> None:
    """Add a case; its title must be new."""
    if case.title in _CASES:
        raise ValueError(f"two cases are called {case.title!r}")
    _CASES[case.title] = case


def reasons_not_exercised() -> dict[str, str]:
    """Return why calls have no success path on the machine thinbox is: `NOT_EXERCISED` of the corpus's modules."""
    from thinbox.audit.cases import load_corpus

    return {name: why for module in load_corpus() for name, why in getattr(module, "NOT_EXERCISED", {}).items()}


def success(call: str, name: str, *, varies: bool = False) -> Callable[[Body], Body]:
    """Register the decorated generator function as a success path of `call`."""
    return _registrar(call, name, is_success=True, varies=varies)


def error(call: str, name: str) -> Callable[[Body], Body]:
    """Register the decorated generator function as an error path of `call`."""
    return _registrar(call, name, is_success=False, varies=False)


def _registrar(call: str, name: str, *, is_success: bool, varies: bool) -> Callable[[Body], Body]:
    def add(body: Body) -> Body:
        register(Case(call, name, is_success, body, varies))
        return body

    return add


def plain(
    call: str,
    name: str,
    args: Iterable[int | str | bytes],
    expect: Expect,
    *,
    varies: bool = False,
    holds: bytes | Callable[[bytes], bool] | None = None,
) -> None:
    """Register a case without any preparation: the call, its arguments, and what it must return.

    `holds`: what the last bytes argument must hold afterwards, or a test of it. With `varies`, that argument may
    differ between the two runs, too.
    """
    fixed = tuple(args)

    def body(process: Process) -> Steps:
        if holds is None:
            yield from process.measure(*fixed, expect=expect)
            return
        place, content = [(index, value) for index, value in enumerate(fixed) if isinstance(value, bytes)][-1]
        vaddr, size = process.buffer(content), len(content)
        if varies:
            process.volatile(vaddr, size)
        yield from process.measure(*fixed[:place], vaddr, *fixed[place + 1 :], expect=expect)
        found = process.read(vaddr, size)
        process.check(holds(found) if callable(holds) else found == holds, f"what it wrote, not {found[:64].hex()}")

    register(Case(call, name, not expect.is_error, body, varies))


def all_cases() -> tuple[Case, ...]:
    """Return the whole corpus, by system call number."""
    from thinbox.audit.cases import load_corpus
    from thinbox.syscalls.table import call_number

    load_corpus()
    return tuple(sorted(_CASES.values(), key=lambda case: call_number(case.call)))
