"""Where the kernel names functions for another use than calling them, and how a call's number leads to its handler.

Shapes, newest first:
- `x64_sys_call` and its like go to a handler by the call's number (6.9, commit 1e3ad78334a6 "x86/syscall: Don't force
  use of indirect calls for system calls"; also in stable kernels since 6.1.85). Nothing else is in them.
- a handler is called through `sys_call_table` and its like. These tables, of at most 1,024 words, are kept by newer
  kernels, too, where ftrace looks into them.
- tables between two symbols (include/asm-generic/vmlinux.lds.h): exported symbols, kprobes' and error injection's
  lists, ftrace's places. A kernel that lacks one was built without it.

Source: arch/x86/entry/syscall_64.c, syscall_32.c; include/asm-generic/vmlinux.lds.h.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.entry import DISPATCHERS
from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

_HANDLERS = ("sys_call_table", "ia32_sys_call_table", "x32_sys_call_table")
_MOST_BYTES = 8 * 1024
_RANGES = (
    ("__start___ksymtab", "__stop___ksymtab"),
    ("__start___ksymtab_gpl", "__stop___ksymtab_gpl"),
    ("__start_kprobe_blacklist", "__stop_kprobe_blacklist"),
    ("__start_error_injection_whitelist", "__stop_error_injection_whitelist"),
    ("__start_mcount_loc", "__stop_mcount_loc"),
)


@dataclass(frozen=True, slots=True)
class FunctionTables:
    """`dispatchers` are first instructions, `handlers` tables (address, most bytes), and `ranges` the others (start,
    exclusive end)."""

    dispatchers: tuple[int, ...]
    handlers: tuple[tuple[int, int], ...]
    ranges: tuple[tuple[int, int], ...]


def find_function_tables(facts: "KernelFacts") -> FunctionTables:
    """Return those that this kernel has."""
    probe, symbols = Probe(facts, "tables of functions", ""), facts.symbols
    return FunctionTables(
        dispatchers=tuple(vaddr for name in DISPATCHERS for vaddr in symbols.addresses_of(name)),
        handlers=tuple((probe.symbol(name), _MOST_BYTES) for name in _HANDLERS if probe.has_symbol(name)),
        ranges=tuple(
            (probe.symbol(first), probe.symbol(last))
            for first, last in _RANGES
            if probe.has_symbol(first) and probe.has_symbol(last)
        ),
    )
