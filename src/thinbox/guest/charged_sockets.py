"""Sockets of tenants, charged to them: what they send is then told from others' memory as everything else is.

Why it exists: a view reads owners where the kernel keeps them, and Linux charges the packets of AF_UNIX sockets to the
sender's memory cgroup (`GFP_KERNEL_ACCOUNT` in net/unix/af_unix.c), but those of other families to nobody. So each
socket that a task of a memory cgroup makes is given the same allocation flag, in its `sk_allocation`; sockets that
`accept` makes inherit it. See docs/decisions/0013-charged-sockets.md.

Rules of this file:
- One word of a new socket is changed, before its maker has it, and nothing else of the guest. A corrupted kernel can
  get here with any address: then `may_write` is asked, and what is not mapped is left alone.
- The flag is read off the kernel's own code, never assumed: what
  `unix_create1` stores, less what `sock_init_data` does.

Source: Linux 6.1 net/socket.c (`__sock_create`), net/core/sock.c, include/linux/gfp_types.h.
"""

import re
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from thinbox.address import U64, to_signed
from thinbox.errors import MachineError
from thinbox.kernel.sock import find_sock
from thinbox.machine import cpu as registers

if TYPE_CHECKING:
    from thinbox.guest.kernel_view import KernelView
    from thinbox.machine.machine import Machine

_INITIALISERS = ("sock_init_data_uid", "sock_init_data")
_STORE = rb"\xc7(?:[\x80-\x83\x85-\x87]|\x84\x24)"
"""`movl $imm32, disp32(%reg)`, less a prefix, which r8 to r15 have; r12, and rsp, are given in one byte more (SDM vol.
2A, 2.1.3 to 2.1.5, and MOV: C7 /0)."""


def stored_constant(code: bytes, offset: int) -> int | None:
    """Return the 32-bit constant that x86-64 code stores `offset` bytes into what a register points to; None if there
    is none such, or more than one."""
    store = re.compile(b"(?=" + _STORE + re.escape(struct.pack("<i", offset)) + b"(.{4}))", re.DOTALL)
    found = [int.from_bytes(match[1], "little") for match in store.finditer(code)]
    return found[0] if len(found) == 1 else None


class ChargedSockets:
    """Watches one machine for sockets that tasks of memory cgroups make."""

    def __init__(
        self,
        machine: "Machine",
        view: "KernelView",
        before_write: Callable[[int], None] | None = None,
        may_write: Callable[[int], bool] = lambda _vaddr: True,
    ) -> None:
        """Begin to watch. `before_write(paddr)`, if given, is told before guest memory is written; `may_write(vaddr)`
        says whether the running call might write there itself.

        Raises:
            MachineError: this kernel makes sockets in another way.
        """
        self._memory, self._cpu, self._slot = machine.memory, machine.cpu, machine.slot
        self._view, self._before_write, self._may_write = view, before_write, may_write
        types = view.facts.types
        try:
            shape = find_sock(view.facts)
            made, self._sock_at, self._flags_at = shape.made_at, shape.sock_at, shape.flags_at
            self._cgroups_at = types.offset_of("task_struct", "cgroups")
            self._css_at = types.offset_of("css_set", "subsys") + 8 * types.enum_value("memory_cgrp_id")
            self._parent_at = types.offset_of("cgroup_subsys_state", "parent")
            plain = next(f for name in _INITIALISERS if (f := self._stored(name)) is not None)
            accounted = self._stored("unix_create1")
        except (KeyError, StopIteration) as error:
            raise MachineError(f"this kernel's sockets cannot be charged to tenants: {error}") from error
        self.flag = (accounted or 0) & ~plain
        if accounted is None or plain & ~accounted or self.flag.bit_count() != 1:
            raise MachineError("this kernel's sockets cannot be charged to tenants: unix_create1 asks for it otherwise")
        self._cpu.add_code_hook(made, self._charge)

    def _stored(self, function: str) -> int | None:
        """Return the constant that a function stores into `sk_allocation`, None if it is not there, or stores none."""
        symbols, vaddr = self._view.symbols, self._view.symbols.find(function)
        symbol = None if vaddr is None else symbols.text_symbol_at(vaddr)
        if vaddr is None or symbol is None:
            return None
        code = self._memory.read_virtual(self._view.kernel_root, vaddr, symbol.end_exclusive - vaddr)
        return stored_constant(code, self._flags_at)

    def _charge(self) -> None:
        regs, view, root, word = self._cpu.regs, self._view, self._root(), self._memory.word_at
        css_set = word(root, view.current + self._cgroups_at)
        memcg = word(root, css_set + self._css_at)
        made_by_kernel = regs[registers.R8] & 0xFFFFFFFF
        if made_by_kernel or not word(root, memcg + self._parent_at):
            return
        place = word(root, regs[registers.RDI] + self._sock_at) + self._flags_at
        paddr = self._paddr(place, root, 4)
        if paddr is None or not self._may_write(to_signed(place & U64)):
            return
        flags = int.from_bytes(self._memory.read(paddr, 4), "little") | self.flag
        if self._before_write is not None:
            self._before_write(paddr)
        self._memory.write(paddr, flags.to_bytes(4, "little"))

    def _paddr(self, vaddr: int, root: int, size: int) -> int | None:
        """Return where an aligned word of the kernel's half lies; None if it is none."""
        vaddr = to_signed(vaddr & U64)
        paddr = self._memory.tables.translate(root, vaddr)
        is_ram = 0 <= paddr <= self._memory.guest_bytes - size
        return paddr if vaddr < 0 and vaddr % size == 0 and is_ram else None

    def _root(self) -> int:
        return self._view.kernel_root
