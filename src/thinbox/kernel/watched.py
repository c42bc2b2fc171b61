"""The functions at which a tenant's reach beyond its own calls is watched: tracing, programs the kernel starts, rings.

Shapes, of Linux 5.10 to 7.3:
- `__ptrace_may_access(task, mode)` is asked before anybody traces a task or reaches its memory or files
  (kernel/ptrace.c). It is static: a compiler may make it inline, and then it is not seen.
- `call_usermodehelper_exec(info, wait)`, and `call_usermodehelper_exec_async(info)` in the new task (kernel/umh.c).
- `io_issue_sqe(req, …)` for every operation of a ring (io_uring/io_uring.c), where the kernel has rings.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "root of the guest could make calls that no record, policy or plan sees"


@dataclass(frozen=True, slots=True)
class Watched:
    """First instructions; those of rings are none where the kernel has no rings."""

    traced: tuple[int, ...]
    programs: tuple[int, ...]
    programs_run: tuple[int, ...]
    operations: tuple[int, ...]


def probe_watched(probe: Probe) -> Watched:
    """Find them; what is missing is noted in `probe`."""
    starts_programs = probe.has_variant("call_usermodehelper_exec")
    return Watched(
        traced=probe.symbols("__ptrace_may_access"),
        programs=probe.symbols("call_usermodehelper_exec") if starts_programs else (),
        programs_run=probe.symbols("call_usermodehelper_exec_async") if starts_programs else (),
        operations=probe.symbols("io_issue_sqe") if probe.has_member("io_kiocb.opcode") else (),
    )


def find_watched(facts: "KernelFacts") -> Watched:
    """Return them; `MissingFactError` where something could be done unseen."""
    probe = Probe(facts, "work for a tenant beyond its calls", DISABLES)
    found = probe_watched(probe)
    probe.check()
    return found
