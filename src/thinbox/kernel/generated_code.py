"""Code that the kernel generates and lists itself: BPF programs, ftrace's trampolines, seccomp filters.

One shape is known of each, of Linux 5.10 to 7.3:
- `struct bpf_ksym` on the list `bpf_kallsyms` (5.7, kernel/bpf/core.c).
- `struct ftrace_ops` on the list `ftrace_ops_trampoline_list` (5.9, "ftrace: Add symbols for ftrace trampolines").
- `struct seccomp_filter`, each with the one before it, from the task: classic BPF, which the first list leaves out.

A kernel that lacks a list, or filters, was built without what makes such code.

Source: kernel/bpf/core.c, kernel/trace/ftrace.c, kernel/seccomp.c, include/linux/filter.h (`struct bpf_prog`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "code that the kernel generated cannot be told from code of nobody"
PROGRAMS, TRAMPOLINES = "bpf_kallsyms", "ftrace_ops_trampoline_list"


@dataclass(frozen=True, slots=True)
class Programs:
    """The list at `head_at`, its links in an element, and where that has the code's start, exclusive end and name."""

    head_at: int
    link_at: int
    start_at: int
    end_at: int
    name_at: int


@dataclass(frozen=True, slots=True)
class Trampolines:
    """The list at `head_at`, its links in an element, and where that has the code's start and its bytes (32 bits)."""

    head_at: int
    link_at: int
    start_at: int
    size_at: int


@dataclass(frozen=True, slots=True)
class Filters:
    """Where a task has its newest filter, a filter the one before it and its program, and a program its code's start
    and bytes (32 bits)."""

    newest_at: int
    before_at: int
    program_at: int
    start_at: int
    size_at: int


@dataclass(frozen=True, slots=True)
class GeneratedCode:
    """None of what this kernel does not generate."""

    programs: Programs | None
    trampolines: Trampolines | None
    filters: Filters | None


def probe_generated_code(probe: Probe) -> GeneratedCode:
    """Find them; what is missing is noted in `probe`."""
    offset, programs, trampolines, filters = probe.offset, None, None, None
    if probe.has_symbol(PROGRAMS):
        places = (offset(f"bpf_ksym.{member}") for member in ("lnode", "start", "end", "name"))
        programs = Programs(probe.symbol(PROGRAMS), *places)
    if probe.has_symbol(TRAMPOLINES):
        places = (offset(f"ftrace_ops.{member}") for member in ("list", "trampoline", "trampoline_size"))
        trampolines = Trampolines(probe.symbol(TRAMPOLINES), *places)
    if probe.has_type("seccomp_filter") and probe.has_member("task_struct.seccomp"):
        filters = Filters(
            offset("task_struct.seccomp") + offset("seccomp.filter"),
            offset("seccomp_filter.prev"),
            offset("seccomp_filter.prog"),
            offset("bpf_prog.bpf_func"),
            offset("bpf_prog.jited_len"),
        )
    return GeneratedCode(programs, trampolines, filters)


def find_generated_code(facts: "KernelFacts") -> GeneratedCode:
    """Return them; `MissingFactError` if this kernel lists such code in another way."""
    probe = Probe(facts, "generated code", DISABLES)
    found = probe_generated_code(probe)
    probe.check()
    return found
