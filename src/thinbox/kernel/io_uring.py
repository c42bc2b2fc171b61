"""`struct io_kiocb`, an operation of a ring: what it is, and who asked for it.

Shapes, newest first:
- an operation names the part of its task that is about rings, `io_kiocb.tctx` (6.13, commit b6f58a3f4aa8 "io_uring:
  move struct io_kiocb from task_struct to io_uring_task"). Who works on it is a thread of that task's process.
- it names its task, `io_kiocb.task`. Before 5.12 who works on it is a thread of the kernel's own, so the task is looked
  for there.

A kernel without `io_kiocb` has no rings (CONFIG_IO_URING=n).

Source: include/linux/io_uring_types.h; Linux 5.10 io_uring/io_uring.c.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "what rings do for a tenant cannot be named"


@dataclass(frozen=True, slots=True)
class OperationShape:
    """Offsets of the operation's number (one byte) and of the task that asked for it, None where it names none."""

    opcode_at: int
    task_at: int | None


def probe_operation(probe: Probe) -> OperationShape | None:
    """Find it, None if this kernel has no rings; what is missing is noted in `probe`."""
    if not probe.has_member("io_kiocb.opcode"):
        return None
    named = probe.member("io_kiocb.tctx", "io_kiocb.task") == "io_kiocb.task"
    return OperationShape(
        opcode_at=probe.offset("io_kiocb.opcode"),
        task_at=probe.offset("io_kiocb.task") if named else None,
    )


def find_operation(facts: "KernelFacts") -> OperationShape | None:
    """Return it; `MissingFactError` if this kernel keeps operations of rings in another way."""
    probe = Probe(facts, "operations of io_uring", DISABLES)
    found = probe_operation(probe)
    probe.check()
    return found
