"""The instructions at which SCI acts, found in the kernel's live text.

Why it exists: enter and leave, context switches, CR3 and iretq are watched by address. The addresses come
from symbols and from the bytes in memory (self-patched by then), never from a version.

Source: arch/x86/entry/entry_64.S, entry_64_compat.S, kernel/sched/core.c, arch/x86/mm/tlb.c, mm/vmalloc.c.
"""

import re
import struct
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from thinbox.errors import MachineError
from thinbox.isolation.baseline import Baseline
from thinbox.kernel.entry import CALL_ENTRIES, find_entry, takes_regs_second

if TYPE_CHECKING:
    from thinbox.guest.kernel_view import KernelView
    from thinbox.machine.memory import Memory

_CR3_WRITE = re.compile(rb"\x0f\x22[\xd8-\xdf]")
_CR3_READ = re.compile(rb"\x0f\x20[\xd8-\xdf]")
_DR7_WRITE = re.compile(rb"\x0f\x23[\xf8-\xff]")
_INVLPG = re.compile(rb"\x0f\x01[\x38-\x3b\x3e\x3f]")
"""`invlpg` of an address in a register, the only form the kernel uses (asm volatile, "m" of a pointer)."""
_ENTRY_NAMES = ("error_entry", "paranoid_", "swapgs_restore", "entry_", "asm_exc_", "nmi", "end_repeat_nmi")
"""Page-table isolation's own switches (arch/x86/entry/calling.h), where they stand outside the entry text."""
_MOVE_BYTES = 3
"""Of each without prefixes; an optional prefix in the pattern would make the search of 14 MB five times slower."""
_REX_B = 0x41
_IRETQ = b"\x48\xcf"
_CALL = b"\xe8"


@dataclass(frozen=True, slots=True)
class Sites:
    """Addresses of the watched instructions."""

    entries: dict[int, str]
    returns: tuple[int, ...]
    iretq: int
    cr3_written: tuple[int, ...]
    cr3_read: tuple[tuple[int, int], ...]
    switch_out: int
    switch_in: tuple[int, ...]
    new_task: int
    range_teardowns: tuple[int, ...]
    sized_teardowns: tuple[int, ...]
    whole_teardowns: tuple[int, ...]
    user_teardown: int
    cr3_switches: tuple[int, ...]
    invlpg: tuple[int, ...]
    dr7_written: tuple[int, ...]
    """Behind each write of DR7."""
    flush_all: tuple[int, ...]
    flush_local: tuple[int, ...]
    death: int
    undone_death: int
    entry_areas: tuple[tuple[int, int], ...]
    entry_text: tuple[int, int]
    regs_second: bool
    """Whether the 64-bit entry takes its `struct pt_regs *` second."""

    @property
    def baseline(self) -> Baseline:
        """Rule 1 for this kernel."""
        return Baseline(self.entry_areas, self.entry_text, (*self.entries, *self.returns))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        values = asdict(self)
        values["entries"] = [[vaddr, name] for vaddr, name in self.entries.items()]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Sites":
        """Load what `to_json` returned."""
        out: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        out["entries"] = dict(values["entries"])
        out["entry_areas"] = tuple((start, end) for start, end in values["entry_areas"])
        out["cr3_read"] = tuple((vaddr, register) for vaddr, register in values["cr3_read"])
        return cls(**out)


def find_sites(view: "KernelView", memory: "Memory") -> Sites:
    """Find every site; `MachineError` naming what is missing, for a missed site would be a hole."""
    symbols, root = view.symbols, view.kernel_root
    text_start, text_end = symbols.text_start, symbols.text_end
    text = memory.read_virtual(root, text_start, text_end - text_start)
    names = find_entry(view.facts)
    entry_text, entries = names.text, names.entries
    # The 32-bit entries lie behind the part of the entry text that the baseline maps.
    entry_end = max(names.text[1], names.text_end)
    targets = {vaddr: vaddr for vaddr in entries} | names.stubs
    behind_calls = _calls_to(text, text_start, (entry_text[0], entry_end), targets)
    returns = tuple(sorted(behind_calls))
    for unseen in set(entries) - set(behind_calls.values()):
        raise MachineError(f"the call of {entries[unseen]} is not in this kernel's entry text; its end would be missed")
    iretq = names.iretq
    if text[iretq - text_start : iretq - text_start + 2] != _IRETQ:
        raise MachineError("native_irq_return_iret is not an iretq in this kernel")
    outside: list[tuple[int, int]] = [(text_start, entry_text[0]), (entry_text[1], text_end)]
    if not returns:
        raise MachineError("this kernel's entry code was not found")
    cr3_writes = _control_moves(view, text, text_start, outside, _CR3_WRITE)
    return Sites(
        entries=entries,
        returns=returns,
        iretq=iretq,
        cr3_written=tuple(end for _start, end, _r in cr3_writes),
        cr3_read=tuple((end, r) for _start, end, r in _control_moves(view, text, text_start, outside, _CR3_READ)),
        switch_out=names.switch_out,
        switch_in=names.switches_in,
        new_task=names.new_task,
        range_teardowns=names.range_teardowns,
        sized_teardowns=names.sized_teardowns,
        whole_teardowns=names.whole_teardowns,
        user_teardown=names.user_teardown,
        cr3_switches=tuple(
            start for start, _end, _r in cr3_writes if not view.symbols.describe(start).startswith(_ENTRY_NAMES)
        ),
        invlpg=tuple(start for start, _end, _r in _control_moves(view, text, text_start, outside, _INVLPG)),
        dr7_written=tuple(
            end for _start, end, _r in _control_moves(view, text, text_start, [(text_start, text_end)], _DR7_WRITE)
        ),
        flush_all=_absent_or_present(view, ("native_flush_tlb_global",)),
        flush_local=_absent_or_present(view, ("native_flush_tlb_local",)),
        death=names.death,
        undone_death=names.undone_death,
        entry_areas=view.entry_areas,
        entry_text=entry_text,
        regs_second=_takes_regs_second(symbols.address_of("entry_SYSCALL_64") - text_start, text, text_start, entries),
    )


def _takes_regs_second(start: int, text: bytes, text_start: int, entries: dict[int, str]) -> bool:
    """Look at the 64-bit entry code, which begins at `start` in the text, up to its first call of `do_syscall_64`."""
    wanted = {vaddr: vaddr for vaddr, name in entries.items() if name == CALL_ENTRIES[0]}
    behind = min(_calls_to(text, text_start, (text_start + start, text_start + len(text)), wanted), default=text_start)
    return takes_regs_second(text[start : behind - text_start])


def _absent_or_present(view: "KernelView", names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(vaddr for name in names for vaddr in view.symbols.addresses_with_variants(name))


def _calls_to(text: bytes, text_start: int, span: tuple[int, int], targets: dict[int, int]) -> dict[int, int]:
    """Return the addresses behind `call rel32` to a key of `targets`, with its value, within the entry text."""
    found = {}
    at = text.find(_CALL, span[0] - text_start)
    while 0 <= at < span[1] - text_start:
        behind = text_start + at + 5
        (distance,) = struct.unpack_from("<i", text, at + 1)
        if behind + distance in targets:
            found[behind] = targets[behind + distance]
        at = text.find(_CALL, at + 1)
    return found


def _control_moves(
    view: "KernelView", text: bytes, text_start: int, spans: list[tuple[int, int]], pattern: re.Pattern[bytes]
) -> list[tuple[int, int, int]]:
    """Return (address, address behind, register) of each match, checked by decoding its whole function."""
    import capstone

    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoder.skipdata = True
    found = []
    for start, end in spans:
        for match in pattern.finditer(text, start - text_start, end - text_start):
            symbol = view.symbols.text_symbol_at(text_start + match.start())
            if symbol is None:
                continue
            behind = text_start + match.end()
            code = text[symbol.start - text_start : match.end()]
            for address, size, _mnemonic, _operands in decoder.disasm_lite(code, symbol.start):
                if address + size == behind and size >= _MOVE_BYTES:
                    rex = text[match.start() - 1] if size > _MOVE_BYTES else 0
                    register = (text[match.end() - 1] & 7) | (8 if rex & 0xF1 == _REX_B else 0)
                    found.append((address, behind, register))
    return found
