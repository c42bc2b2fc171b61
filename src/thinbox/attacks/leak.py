"""What an attacker is presumed to know: where objects of the running kernel lie.

Why it exists: exploits begin with an information leak. That part is not modelled; the addresses it would give
are read here, by the kernel's own types, from outside.

Rules of this file: nothing is written, and nothing is read that an arbitrary read could not.
"""

from typing import TYPE_CHECKING

from thinbox import paging
from thinbox.address import PAGE_BYTES, U64, to_signed
from thinbox.errors import MachineError
from thinbox.kernel.memcg import find_page_owner

if TYPE_CHECKING:
    from thinbox.guest.kernel_view import KernelView
    from thinbox.machine.memory import Memory


class Leak:
    """Addresses in the running kernel, as its current task's table maps it."""

    def __init__(self, memory: "Memory", view: "KernelView", root: int) -> None:
        self._memory, self._view, self._root = memory, view, root
        self._symbols, self._types = view.symbols, view.facts.types
        self.direct_map = self.word(self._symbols.address_of("page_offset_base"))
        self.page_structs = self.word(self._symbols.address_of("vmemmap_base"))

    def per_cpu(self, name: str) -> int:
        """Return the address of a per-CPU variable of the one CPU."""
        return (self.word(self._symbols.address_of("__per_cpu_offset")) + self._symbols.address_of(name)) & U64

    def word(self, vaddr: int) -> int:
        """Return the 8-byte word at a kernel address."""
        return int.from_bytes(self._memory.read_virtual(self._root, to_signed(vaddr), 8), "little")

    def bytes_at(self, vaddr: int, size: int) -> bytes:
        """Return what lies at a kernel address."""
        return self._memory.read_virtual(self._root, to_signed(vaddr), size)

    def member(self, vaddr: int, type_name: str, member: str) -> int:
        """Return a member of up to 8 bytes of the object at `vaddr`, unsigned."""
        place = vaddr + self._types.offset_of(type_name, member)
        size = self._types.member_size(type_name, member)
        return int.from_bytes(self._memory.read_virtual(self._root, to_signed(place), min(size, 8)), "little")

    def offset(self, type_name: str, member: str) -> int:
        """Return where in the type a member lies."""
        return self._types.offset_of(type_name, member)

    def size(self, type_name: str) -> int:
        """Return the size of a type."""
        return self._types.size_of(type_name)

    def owner_word(self, paddr: int) -> int:
        """Return the address of the word that says whom a page is charged to."""
        return self.page_struct(paddr) + find_page_owner(self._view.facts)

    def in_direct_map(self, paddr: int) -> int:
        """Return the kernel address of a physical one."""
        return (self.direct_map + paddr) & U64

    def page_struct(self, paddr: int) -> int:
        """Return the address of the struct page of a physical address (include/asm-generic/memory_model.h)."""
        return (self.page_structs + (paddr // PAGE_BYTES) * self.size("page")) & U64

    def frame_of_struct(self, page: int) -> int:
        """Return the physical address a struct page stands for."""
        return (page - self.page_structs) // self.size("page") * PAGE_BYTES

    def paddr_of(self, vaddr: int) -> int:
        """Return the physical address of any address mapped here, user addresses included.

        Raises:
            MachineError: it is not mapped.
        """
        paddr = self._memory.tables.translate(self._root, to_signed(vaddr))
        if paddr < 0:
            raise MachineError(f"{vaddr:#x} is not mapped in the attacker's address space")
        return paddr

    def top_level_entry(self, vaddr: int) -> tuple[int, int]:
        """Return (kernel address, value) of the top-level page-table entry of a user address."""
        place = (self._root & paging.FRAME_MASK) + 8 * (vaddr >> 39 & 511)
        return self.in_direct_map(place), self._memory.words[place >> 3] & U64

    def last_level_entry(self, vaddr: int) -> tuple[int, int]:
        """Return (kernel address, value) of the last-level entry of a user address whose table exists."""
        index = paging.entry_index(self._memory.words, self._memory.guest_bytes, self._root, vaddr)
        if index < 0:
            raise MachineError(f"{vaddr:#x} has no page table")
        return self.in_direct_map(8 * index), self._memory.words[index] & U64

    def kernel_entry(self, vaddr: int) -> tuple[int, int]:
        """Return (kernel address, value) of the entry that maps a kernel address, large or not."""
        table = self._root & paging.FRAME_MASK
        for shift in (39, 30, 21, 12):
            place = table + 8 * (vaddr >> shift & 511)
            value = self._memory.words[place >> 3] & U64
            if not value & paging.PRESENT:
                break
            if shift == 12 or (value & paging.LARGE and shift != 39):
                return self.in_direct_map(place), value
            table = value & paging.FRAME_MASK
        raise MachineError(f"{vaddr:#x} is not mapped in the kernel's address space")

    # -- objects ------------------------------------------------------------------------------------
    def cred(self, task: int) -> int:
        """Return the address of a task's struct cred."""
        return self.member(task, "task_struct", "cred")

    def file(self, task: int, handle: int) -> int:
        """Return the struct file behind a handle."""
        table = self.member(self.member(task, "task_struct", "files"), "files_struct", "fdt")
        return self.word(self.member(table, "fdtable", "fd") + 8 * handle)

    def pipe_buffer(self, task: int, handle: int) -> int:
        """Return the oldest filled pipe_buffer of the pipe behind a handle."""
        pipe = self.member(self.file(task, handle), "file", "private_data")
        slot = self.member(pipe, "pipe_inode_info", "tail") & (self.member(pipe, "pipe_inode_info", "ring_size") - 1)
        return self.member(pipe, "pipe_inode_info", "bufs") + slot * self.size("pipe_buffer")

    def pipe_page(self, task: int, handle: int) -> int:
        """Return the physical address of the page of `pipe_buffer`."""
        return self.frame_of_struct(self.member(self.pipe_buffer(task, handle), "pipe_buffer", "page"))

    def posix_timer(self, task: int) -> int:
        """Return the hrtimer of the newest POSIX timer of a task (include/linux/posix-timers.h, struct k_itimer)."""
        signal = self.member(task, "task_struct", "signal")
        link = self.word(signal + self.offset("signal_struct", "posix_timers"))
        timer = link - self.offset("k_itimer", "list")
        return timer + self.offset("k_itimer", "it")

    @property
    def tick_timer(self) -> int:
        """Return the hrtimer of the tick (kernel/time/tick-sched.c, tick_cpu_sched)."""
        return self.per_cpu("tick_cpu_sched") + self.offset("tick_sched", "sched_timer")

    def socket_data(self, task: int, handle: int) -> int:
        """Return the physical address of the first byte that waits in a TCP socket: in a page of its first packet
        (include/linux/skbuff.h, struct skb_shared_info; include/net/sock.h, sk_receive_queue)."""
        sock = self.member(self.member(self.file(task, handle), "file", "private_data"), "socket", "sk")
        packet = self.word(sock + self.offset("sock", "sk_receive_queue"))
        shared = self.member(packet, "sk_buff", "head") + self.member(packet, "sk_buff", "end")
        piece = shared + self.offset("skb_shared_info", "frags")
        page, offset = self.member(piece, "bio_vec", "bv_page"), self.member(piece, "bio_vec", "bv_offset")
        return self.frame_of_struct(page) + offset
