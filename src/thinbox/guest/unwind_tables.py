"""The tables the running kernel keeps about its own text: ORC unwind entries, and exception fix-ups.

Why it exists: who called whom, and where a faulting instruction may be sent, is known to the kernel; thinbox
reads it where the kernel does, in memory, sorted by then.

Source: arch/x86/include/asm/orc_types.h, arch/x86/kernel/unwind_orc.c (`unwind_init`);
arch/x86/include/asm/extable.h.

Rules of this file: layouts come from `thinbox.kernel.unwind`; a kernel without ORC (CONFIG_UNWINDER_FRAME_POINTER) is
refused by name, for a stack that cannot be walked would have to be trusted.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from thinbox.kernel.unwind import ORC_BYTES, find_unwind

if TYPE_CHECKING:
    from thinbox.guest.kernel_view import KernelView
    from thinbox.machine.memory import Memory

_FIXUP_BYTES = 12
_FUNCTION_START = 8 | 5 << 32
"""sp_offset 8 from ORC_REG_SP: the caller's stack begins behind the return address."""


@dataclass(frozen=True, slots=True)
class UnwindTable:
    """`ips` ascending, signed; `entries` as `isolation.stack.next_frame` wants them."""

    ips: npt.NDArray[np.int64]
    entries: npt.NDArray[np.int64]


def load_unwind_table(view: "KernelView", memory: "Memory") -> UnwindTable:
    """Load the ORC entries of the kernel's own text.

    Raises:
        MissingFactError: the kernel has none, or of another layout.
    """
    symbols, shape = view.symbols, find_unwind(view.facts)
    (ip_start, ip_end), (start, _end) = shape.ips, shape.entries
    count = (ip_end - ip_start) // 4
    distances = np.frombuffer(memory.read_virtual(view.kernel_root, ip_start, 4 * count), np.int32)
    places = np.int64(ip_start - (1 << 64)) + 4 * np.arange(count, dtype=np.int64)
    ips = places + distances
    raw = np.frombuffer(memory.read_virtual(view.kernel_root, start, ORC_BYTES * count), np.uint16).reshape(-1, 3)
    fields = raw.astype(np.int64)
    registers = fields[:, 2]
    kind = registers >> 8 & (3 if shape.has_end else 7)
    is_call = kind == (0 if shape.has_end else 2)
    sp_reg = np.where(is_call, registers & 15, 0)
    entries = fields[:, 0] | fields[:, 1] << 16 | sp_reg << 32 | (registers >> 4 & 15) << 48
    keep = (ips >= symbols.text_start - (1 << 64)) & (ips < symbols.text_end - (1 << 64))
    return _with_thunks(view, ips[keep], entries[keep])


def _with_thunks(view: "KernelView", ips: npt.NDArray[np.int64], entries: npt.NDArray[np.int64]) -> UnwindTable:
    """Say of the first byte of each indirect thunk that the return address lies on top of the stack.

    arch/x86/lib/retpoline.S marks them UNWIND_HINT_EMPTY, for their middle is not to be unwound from; a fetch
    that faults is at their first byte, where they are what any function is.
    """
    starts = [vaddr for vaddr in view.symbols.text_starts if _is_thunk(view, vaddr)]
    places = np.array(starts, np.uint64).view(np.int64)
    behind = entries[np.searchsorted(ips, places + 1, "right") - 1]
    all_ips = np.concatenate([ips, places, places + 1])
    all_entries = np.concatenate([entries, np.full(len(places), _FUNCTION_START, np.int64), behind])
    order = np.argsort(all_ips, kind="stable")
    return UnwindTable(np.ascontiguousarray(all_ips[order]), np.ascontiguousarray(all_entries[order]))


def _is_thunk(view: "KernelView", vaddr: int) -> bool:
    return any(name.startswith("__x86_indirect_") for name in view.symbols.names_at(vaddr))


def load_fixups(view: "KernelView", memory: "Memory", root: int) -> frozenset[int]:
    """Load, by the kernel's table `root`, where the exception table sends faulting instructions (unsigned)."""
    start, end = (view.symbols.address_of(name) for name in ("__start___ex_table", "__stop___ex_table"))
    raw = np.frombuffer(memory.read_virtual(root, start, end - start), np.int32).reshape(-1, 3)
    # struct exception_table_entry: insn, fixup, data; each of the first two is a distance from its own place.
    return frozenset(start + _FIXUP_BYTES * index + 4 + distance for index, distance in enumerate(raw[:, 1].tolist()))
