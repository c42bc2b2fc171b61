"""The functions at which calls enter, tasks switch and die, and mappings go: their names on this kernel.

Shapes, newest first:
- what says which number is dispatched, tracers and filters having had their say: `syscall_trace_enter`, which returns
  it (kernel/entry/common.c); where that is inline (include/linux/entry-common.h, 7.3), the second argument of
  `x64_sys_call` and `ia32_sys_call` (6.9, commit 1e3ad78334a6 "x86/syscall: Don't force use of indirect calls for
  system calls").
- the order of `do_syscall_64`'s arguments: `(regs, nr)` (5.14, commit 3e5e7f7736b0 "x86/entry: Reverse arguments to
  do_syscall_64()"); before, `(nr, regs)`.
- what clears kernel mappings: `vunmap_range_noflush` and `__vunmap_range_noflush` (5.13, "mm: Move vunmap_range to
  mm/vmalloc"); before, `unmap_kernel_range_noflush`, whose second argument is a size (mm/vmalloc.c).
- where a dead task's stack is left: `rewind_stack_and_make_dead` (5.17, "exit: Add and use make_task_dead"); before,
  `rewind_stack_do_exit` (arch/x86/entry/entry_64.S).

Source: arch/x86/entry/entry_64.S, entry_64_compat.S, common.c; kernel/sched/core.c, arch/x86/mm/tlb.c, mm/vmalloc.c.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.errors import MissingFactError
from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "no call can be isolated: a missed entry, exit, switch or teardown would be a hole"
CALL_ENTRIES = ("do_syscall_64", "do_int80_syscall_32", "do_fast_syscall_32", "do_int80_emulation")
"""64-bit `syscall`; `int $0x80`, 32-bit `syscall` and `sysenter`, where the kernel has them."""
CALL_STUBS = {"int80_emulation": "do_int80_emulation", "do_SYSENTER_32": "do_fast_syscall_32"}
"""What the entry text calls instead of an entry, and jumps on to it (the first since the BHI mitigation, 6.1.85)."""
UNDONE_DEATH = "do_group_exit"
"""What a fatal signal ends in (kernel/exit.c); a call that was rolled back to its entry holds nothing it could keep."""
RANGE_TEARDOWNS = ("__vunmap_range_noflush", "vunmap_range_noflush")
"""`(start, end)`, called before the entries are cleared."""
SIZED_TEARDOWN = "unmap_kernel_range_noflush"
"""`(start, bytes)`, likewise."""
WHOLE_TEARDOWNS = ("flush_tlb_all", "flush_tlb_kernel_range", "flush_tlb_one_kernel", "cpa_flush", "__flush_tlb_all")
"""Called after the entries were changed. The range of a lazy flush is no help: it joins what was unmapped here and
there (mm/vmalloc.c, `__purge_vmap_area_lazy`) and may span the whole text of the kernel."""
DEATHS = ("rewind_stack_and_make_dead", "rewind_stack_do_exit")
WHOLE_TRACER = "syscall_trace_enter"
"""Returns the number to be dispatched, -1 for none."""
_REGS_FIRST, _REGS_SECOND = b"\x48\x89\xe7", b"\x48\x89\xe6"
"""`mov rdi, rsp` and `mov rsi, rsp` (SDM vol. 2B, MOV: REX.W 89 /r)."""
DISPATCHERS = ("x64_sys_call", "x32_sys_call", "ia32_sys_call")
"""`(regs, nr)`: the number that is dispatched is their second argument."""


@dataclass(frozen=True, slots=True)
class Dispatchers:
    """First instructions of what knows the number that is dispatched: `tracers` return it, and run only where somebody
    may have replaced it; `switches` are handed it, for each call that is dispatched. One of the two is empty."""

    tracers: tuple[int, ...]
    switches: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EntryNames:
    """The addresses, in the order of `guest.sites.Sites`."""

    text: tuple[int, int]
    text_end: int
    entries: dict[int, str]
    stubs: dict[int, int]
    iretq: int
    switch_out: int
    switches_in: tuple[int, ...]
    new_task: int
    range_teardowns: tuple[int, ...]
    sized_teardowns: tuple[int, ...]
    whole_teardowns: tuple[int, ...]
    user_teardown: int
    death: int
    undone_death: int


def probe_entry(probe: Probe) -> EntryNames:
    """Find them; what is missing is noted in `probe`."""
    start, end = probe.symbol("__entry_text_start"), probe.symbol("__irqentry_text_end")
    probe.symbol(CALL_ENTRIES[0])
    entries = {probe.symbol(name): name for name in CALL_ENTRIES if probe.has_symbol(name)}
    stubs = {
        probe.symbol(stub): probe.symbol(name)
        for stub, name in CALL_STUBS.items()
        if probe.has_symbol(stub) and probe.has_symbol(name)
    }
    is_sized = probe.has_variant(SIZED_TEARDOWN) and not any(map(probe.has_variant, RANGE_TEARDOWNS))
    return EntryNames(
        text=(start, end),
        text_end=probe.symbol("__entry_text_end") if probe.has_symbol("__entry_text_end") else end,
        entries=entries,
        stubs=stubs,
        iretq=probe.symbol("native_irq_return_iret"),
        switch_out=probe.symbol("__switch_to_asm"),
        switches_in=probe.symbols("finish_task_switch"),
        new_task=probe.symbol("wake_up_new_task"),
        range_teardowns=() if is_sized else probe.symbols(*RANGE_TEARDOWNS),
        sized_teardowns=probe.symbols(SIZED_TEARDOWN) if is_sized else (),
        whole_teardowns=probe.symbols(*WHOLE_TEARDOWNS),
        user_teardown=probe.symbol("flush_tlb_mm_range"),
        death=probe.symbol(*DEATHS),
        undone_death=probe.symbol(UNDONE_DEATH),
    )


def takes_regs_second(code: bytes) -> bool:
    """Tell whether `do_syscall_64` takes its `struct pt_regs *` as the second argument, not the first; `code` is
    `entry_SYSCALL_64` up to the call, where RSP points to them.

    Raises:
        MissingFactError: it hands RSP over in neither register.
    """
    first, second = code.rfind(_REGS_FIRST), code.rfind(_REGS_SECOND)
    if first == second:
        raise MissingFactError.of("entry code", ["argument of do_syscall_64 that is RSP"], DISABLES)
    return second > first


def probe_dispatchers(probe: Probe) -> Dispatchers:
    """Find what knows the number that is dispatched; what is missing is noted in `probe`."""
    if probe.has_variant(WHOLE_TRACER):
        return Dispatchers(probe.symbols(WHOLE_TRACER), ())
    probe.symbol(WHOLE_TRACER, DISPATCHERS[0])
    return Dispatchers((), tuple(probe.symbol(name) for name in DISPATCHERS if probe.has_symbol(name)))


def find_entry(facts: "KernelFacts") -> EntryNames:
    """Return them; `MissingFactError` names all that are missing."""
    probe = Probe(facts, "entry code", DISABLES)
    found = probe_entry(probe)
    probe.check()
    return found


def find_dispatchers(facts: "KernelFacts") -> Dispatchers:
    """Return them; `MissingFactError` where a number could be replaced unseen."""
    probe = Probe(facts, "dispatch of calls", "a tracer or a filter could replace a call unseen, and none is isolated")
    found = probe_dispatchers(probe)
    probe.check()
    return found
