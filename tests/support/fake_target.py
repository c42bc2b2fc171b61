"""What the parts of the enforcement are handed, without a kernel: real memory and tables, a CPU that only notes."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np

from thinbox import paging
from thinbox.enforcement.open_call import OpenCall
from thinbox.enforcement.target import Target
from thinbox.enforcement.tasks import TaskList, TaskState
from thinbox.enforcement.tenants import Isolation, Tenant
from thinbox.machine import slots
from thinbox.machine.memory import MIB, Memory
from thinbox.records.run import CallRecord, RunRecord

KERNEL_ROOT = 0x1000
STACK_BYTES = 4 * 4096


class FakeCpu:
    """Notes what is asked of it, in order: `done`."""

    def __init__(self, slot):
        self._slot, self.done, self.hooks = slot, [], defaultdict(list)
        self.regs, self.cr3, self.rip, self.privilege, self.kept = [0] * 16, KERNEL_ROOT, 0, 0, []

    def keep_array(self, array):
        self.kept.append(array)
        return len(self.kept)

    def add_code_hook(self, vaddr, hook):
        self.hooks[vaddr].append(hook)

    def reach(self, vaddr):
        for hook in self.hooks[vaddr]:
            hook()

    def load_cr3(self, root):
        self.cr3 = root
        self.done.append(("cr3", root))

    def leave_table(self):
        self._slot[slots.ACTIVE] = 0
        self.done.append(("leave",))


class FakeSymbols:
    """Text symbols by name: (start, end)."""

    def __init__(self, **places):
        self.places = places
        self.text_start, self.text_end = 0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_8200_0000

    @property
    def text_starts(self):
        return sorted(start for start, _end in self.places.values())

    def is_text(self, vaddr):
        return self.text_start <= vaddr < self.text_end

    def text_symbol_at(self, vaddr):
        return next(
            (
                SimpleNamespace(name=name, start=start, end_exclusive=end)
                for name, (start, end) in self.places.items()
                if start <= vaddr < end
            ),
            None,
        )

    def find(self, name):
        return self.places[name][0] if name in self.places else None

    def find_prefix(self, name):
        return self.find(name)

    def addresses_with_variants(self, name):
        return (self.places[name][0],) if name in self.places else ()

    def describe(self, vaddr):
        found = self.text_symbol_at(vaddr)
        return hex(vaddr) if found is None else f"{found.name}+{vaddr - found.start:#x}"


class FakeGuest:
    """A target, its task list, and page tables below KERNEL_ROOT that `map` fills; hidden memory is the real one's."""

    def __init__(self, **places):
        self.memory, self.next = Memory(4 * MIB), 0x2000
        self.slot = memoryview(np.zeros(slots.SLOT_COUNT, dtype=np.int64)).cast("B").cast("q")
        self.cpu, self.symbols = FakeCpu(self.slot), FakeSymbols(**places)
        self.states = {}
        self.view = SimpleNamespace(
            symbols=self.symbols, kernel_root=KERNEL_ROOT, state_offset=0x18, stack_bytes=STACK_BYTES, current=0,
            read_u32=lambda vaddr, _root: self.states.get(vaddr - 0x18, 0), stack_of=lambda task, _root: task << 20,
            facts=SimpleNamespace(types=None, symbols=self.symbols),
        )  # fmt: skip
        sci = SimpleNamespace(
            enter_table=lambda: self.cpu.done.append(("enter",)), leave_table=self.cpu.leave_table,
            leave_for_deferred_work=lambda: self.cpu.done.append(("leave for deferred work",)),
        )  # fmt: skip
        self.machine = SimpleNamespace(
            memory=self.memory, cpu=self.cpu, sci=sci, slot=self.slot, now_ns=0, busy_ns=0, interrupts=0
        )
        self.sites = SimpleNamespace(
            baseline=SimpleNamespace(pages=lambda stack, size: range(stack, stack + size, 4096)),
            range_teardowns=[0x100], sized_teardowns=[0x180], whole_teardowns=[0x200], user_teardown=0x300, returns=[], entries=[],
        )  # fmt: skip
        self.target = Target(self.machine, self.view, self.sites)
        self.tasks = TaskList()

    def map(self, vaddr, entry):
        """Map one page of the kernel's."""
        table = KERNEL_ROOT
        for shift in (39, 30, 21):
            at = (table >> 3) + (vaddr >> shift & 511)
            if not self.memory.words[at]:
                self.memory.words[at] = self.next | paging.TABLE_FLAGS
                self.next += 0x1000
            table = self.memory.words[at] & paging.FRAME_MASK
        self.memory.words[(table >> 3) + (vaddr >> 12 & 511)] = entry

    def tenant(self, name="a", policy=None, **isolation):
        record = RunRecord("6.1", "0", "sci", ("true",))
        judge = SimpleNamespace(policy=policy)
        made = Tenant(Isolation(policy, lambda _nr: True, tenant=name, **isolation), record, judge)
        self.tasks.tenants[name] = made
        return made

    def task(self, tenant, number=1, *, isolated=None):
        """A task of `tenant`; with `isolated` in a call that is, or is not."""
        state = TaskState(number, 70 + number, tenant)
        self.tasks.tasks[number] = state
        if isolated is not None:
            record = CallRecord(len(tenant.record.calls), tenant.name, state.pid, 39, "getpid", (), isolated=isolated)
            tenant.record.calls.append(record)
            state.call = OpenCall(record, 0, 0, 0.0, isolated)
        return state


class Watch:
    """Notes what it is told."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda *what: self.told.append((name, *what))
