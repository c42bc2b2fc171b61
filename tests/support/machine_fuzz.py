"""Hostile programs on a bare machine, one after another: `python -m tests.support.machine_fuzz KIND FIRST COUNT`.

A process of its own, for a program that crashes the host must be a failed test, not the end of the tests. Each seed is
printed before it runs, so that the last one printed is the one to look at. Exit status: 0, all ended as a CPU's
programs may; 1, one made the machine raise what it must not; by a signal, one crashed the host.
"""

import random
import struct
import sys
from collections import Counter

import numpy as np
from tests.support import bare_machine as bare_room
from tests.support.bare_machine import BareMachine
from tests.support.hostile_code import forged_table, forged_word, random_program
from thinbox.address import to_signed
from thinbox.errors import MachineError
from thinbox.isolation import fault, pagetable
from thinbox.machine import cpu as registers
from thinbox.machine import slots
from thinbox.machine.machine import GuestResetError
from unicorn import x86_const

BUDGET_NS = 20_000
"""Virtual time of one program: so many bytes of code."""
USERS = (bare_room.DATA, bare_room.USER, bare_room.USER_STACK - 1)
"""What a program of ring 3 may touch."""
STAR, LSTAR, CSTAR, FMASK = 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084
SYSCALL_ENTRY = 0x38000
PUSHES_ERROR = (8, 10, 11, 12, 13, 14, 17, 21)
ENTRIES = (0x90, 0x91, 0x92, 0x93, 0x94, 0x95)
"""Pages whose entries are forged."""
UPPER = (1, 2, 255, 256, 511)
"""Entries of the PML4 that lead to forged tables."""
TABLES = range(0x180000, 0x190000, 4096)


class Fuzz:
    """One machine for many programs; everything a program can change is put back before the next."""

    def __init__(self) -> None:
        self.bare = BareMachine(b"")
        self.machine, self.memory, self.cpu = self.bare.machine, self.bare.memory, self.bare.cpu
        self.machine.slot[slots.STUCK_LIMIT] = 2_000
        self.outcomes: Counter[str] = Counter()
        self.bare.run()
        self._state = self.cpu.save()
        self._devices = self.machine.save_devices()

    def reset(self) -> None:
        """Put memory, CPU and devices back, and make handlers that step over a byte and go on."""
        self.memory.clear()
        slot = self.machine.slot
        slot[slots.ACTIVE] = slot[slots.SCI_ROOT] = slot[slots.LOG_COUNT] = 0
        self.cpu.restore(self._state)
        self.machine.restore_devices(self._devices)
        self.bare._write_tables()
        self.bare._write_descriptors()
        for vector in range(256):
            error = b"\x48\x83\xc4\x08" if vector in PUSHES_ERROR else b""  # add rsp, 8
            self.bare.set_handler(vector, error + b"\x48\xff\x04\x24\x48\xcf")  # inc qword [rsp] / iretq
        for vector in (3, 4, 0x80):
            self.bare.set_gate(vector, dpl=3)
        # A double fault ends the program.
        self.bare.set_handler(8, b"\xf4")
        self.bare.set_gate(8, ist=1)

    def enter(self, code: bytes, *, ring: int, flags: int) -> None:
        """Stand where `code` is about to run."""
        bare = self.bare
        start = bare_room.USER if ring else bare_room.CODE
        ring3 = bare_room.push(bare_room.DATA3) + bare_room.push(bare_room.USER_STACK) + bare_room.push(flags)
        ring3 += bare_room.push(bare_room.CODE3) + bare_room.push(bare_room.USER) + bare_room.IRETQ
        prelude = (
            bare_room._LOAD_SEGMENTS + bare_room.push(bare_room.CODE0) + bare_room.push(bare_room.CODE) + b"\x48\xcb"
        )
        self.memory.write(bare_room.START, prelude + ring3)
        self.memory.write(start, code + b"\xf4")
        self.memory.write(SYSCALL_ENTRY, b"\x48\x0f\x07")  # sysretq
        bare._enter()
        uc = self.cpu.uc
        uc.msr_write(STAR, (bare_room.CODE0 << 32) | ((bare_room.CODE3 - 16) << 48))
        for msr in (LSTAR, CSTAR):
            uc.msr_write(msr, SYSCALL_ENTRY)
        uc.msr_write(FMASK, 0x47700)
        for register in range(16):
            if register != registers.RSP:
                self.cpu.regs[register] = (bare_room.DATA, 0, 1 << 63, 0x41)[register & 3]

    def run(self, kind: str) -> None:
        """Run until a halt, the end of the budget or, but for ring 3 code on its own, a triple fault or reset; anything
        else is raised."""
        try:
            self.outcomes["halted" if self.bare.run(BUDGET_NS) else "budget"] += 1
        except GuestResetError:
            if kind == "user":
                raise
            self.outcomes["reset"] += 1
        except MachineError as error:
            if "triple fault" not in str(error) or kind == "user":
                raise
            self.outcomes["triple fault"] += 1

    # -- kinds ------------------------------------------------------------------------------------
    def user(self, seed: int) -> None:
        """Ring 3 code, sometimes with the right to use ports."""
        chooser = random.Random(seed)
        for page in set(range(1, 511)) - {address >> 12 for address in USERS}:
            self.bare.protect(page << 12, 3)
        self.enter(
            random_program(seed, (bare_room.DATA, bare_room.USER, bare_room.HOLE, bare_room.USER_STACK)),
            ring=3,
            flags=chooser.choice((0x202, 0x2, 0x3202, 0x102, 0x40202)),
        )

    def tables(self, seed: int) -> None:
        """Ring 3 code over forged tables and entries."""
        chooser = random.Random(seed)
        guest = self.memory.guest_bytes
        for page in ENTRIES:
            word = forged_word(chooser, guest, (bare_room.TABLE, bare_room.DATA))
            self.memory.write(bare_room.TABLE + 8 * page, struct.pack("<Q", word))
        places = [page << 12 for page in ENTRIES]
        for number, table in enumerate(TABLES):
            self._write_table(table, forged_table(16 * seed + number, guest, TABLES))
        for index in UPPER:
            self._write_table(bare_room.PML4, {index: forged_word(chooser, guest, TABLES)})
            for _ in range(3):
                place = index << 39 | chooser.getrandbits(27) << 12
                places.append(place | 0xFFFF << 48 if place >> 47 & 1 else place)
        self.enter(random_program(seed, places), ring=3, flags=0x202)

    def kernel(self, seed: int) -> None:
        """Ring 0 code, and a CR3 that may be anything: a guest kernel that is not itself any more."""
        chooser = random.Random(seed)
        guest = self.memory.guest_bytes
        self.tables(seed)
        hidden = [guest, guest + 4096, self.memory.total_bytes - 4096, self.memory.total_bytes]
        code = random_program(seed, (*hidden, bare_room.PML4, bare_room.TABLE, bare_room.IDT, bare_room.STACK))
        if chooser.random() < 0.2:
            root = forged_word(chooser, guest, TABLES)
            code = bare_room.mov(0, root) + b"\x0f\x22\xd8" + code
        self.enter(code, ring=0, flags=2)

    def isolated(self, seed: int) -> None:
        """Ring 0 code on an SCI table of a kernel whose own table is forged; what the policy is asked is random."""
        chooser = random.Random(seed)
        self.kernel(seed)
        slot, memory = self.machine.slot, self.memory
        pool, undo_pool = self._pools()
        slot[slots.UNDO_MODE] = undo = chooser.getrandbits(1)
        slot[slots.UNDO] = undo
        slot[slots.CACHEABLE_DATA] = chooser.getrandbits(1)
        root = pagetable.take_frame(memory.words, pool)
        slot[slots.SCI_ROOT] = root
        slot[slots.UNDO_ROOT] = pagetable.take_frame(memory.words, undo_pool)
        kernel_root = bare_room.PML4
        if chooser.random() < 0.5:
            kernel_root = forged_word(chooser, memory.guest_bytes, (bare_room.PML4,))
        self.cpu.load_cr3(kernel_root)
        self._answers = random.Random(seed + 1)
        self.machine.sci.enter_table()

    def _pools(self) -> tuple[np.ndarray, np.ndarray]:
        guest, slot, keep = self.memory.guest_bytes, self.machine.slot, self.cpu.keep_array
        if not hasattr(self, "_pool"):
            self._pool, self._undo_pool = np.zeros(1025, dtype=np.int64), np.zeros(1025, dtype=np.int64)
            self._log, self._saved = np.zeros(2 * 1024, dtype=np.int64), np.zeros(1 << 14, dtype=np.int64)
            self._faults, self._approved = np.zeros(5 * 256, dtype=np.int64), np.zeros(64, dtype=np.int64)
            slot[slots.POOL], slot[slots.UNDO_POOL] = keep(self._pool), keep(self._undo_pool)
            slot[slots.UNDO_LOG], slot[slots.UNDO_SAVED] = keep(self._log), keep(self._saved)
            slot[slots.UNDO_CAPACITY] = 1024
            slot[slots.LOG], slot[slots.LOG_CAPACITY] = keep(self._faults), 256
            slot[slots.APPROVED], slot[slots.APPROVED_MASK] = keep(self._approved), 63
            self.cpu.set_callback(slots.ON_JUDGE, self._judge)
        for number, frames in enumerate((self._pool, self._undo_pool)):
            frames[0] = 1024
            frames[1:] = np.arange(1024) * 4096 + guest + number * (64 << 20)
        self._saved[:] = 0
        slot[slots.UNDO_COUNT] = slot[slots.LOG_COUNT] = 0
        return self._pool, self._undo_pool

    def _judge(self, vaddr: int, error: int, rip: int) -> int:
        if self.machine.slot[slots.LOG_COUNT] >= 256:
            self.machine.slot[slots.LOG_COUNT] = 0
        if self._answers.random() < 0.7:
            result = self.machine.sci.grant_page(vaddr, error, rip)
            if result == fault.GRANTED:
                return slots.RETRY
        return slots.DELIVER

    def check(self) -> None:
        """After a program: nothing it could name is hidden RAM, and the empty bus is as it was."""
        assert self.memory.empty_bus[:4096] == b"\xff" * 4096, "the empty bus was written"
        if not self.machine.slot[slots.SCI_ROOT]:
            hidden = self.memory.words[self.memory.guest_bytes // 8 :]
            assert not hidden[:: 512 * 16].any() and not hidden[: 1 << 18].any(), "hidden RAM was written"

    def _write_table(self, table: int, words: dict[int, int]) -> None:
        for index, word in words.items():
            self.memory.words[table // 8 + index] = to_signed(word)


def main(kind: str, first: int, count: int) -> int:
    """Run `count` programs from seed `first` on."""
    fuzz = Fuzz()
    prepare = getattr(fuzz, kind)
    for seed in range(first, first + count):
        print(seed, flush=True)
        fuzz.reset()
        prepare(seed)
        try:
            fuzz.run(kind)
            fuzz.check()
        except Exception as error:
            print(f"{kind} {seed}: {type(error).__name__}: {error}", flush=True)
            return 1
    print(dict(fuzz.outcomes), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
