"""The machine: CPU, RAM and devices on one virtual clock.

Why it exists: the CPU stops for a timer, an interrupt or a callback; this is the one place that knows
what to do next.

Rules of this file:
- Time moves only by code executed and by HLT; host time is never read.
- Interrupts are delivered at the first block that runs with IF set after they became due.
- The devices are the kernel's. A program that got the right to use ports (`ioperm`, `iopl`) finds an empty bus: one
  byte to the PIC would stop the time of all tenants, one to the keyboard controller end the run.
"""

from collections.abc import Callable
from typing import Any

from thinbox.errors import MachineError
from thinbox.machine import slots
from thinbox.machine.cpu import Cpu
from thinbox.machine.cpu_model import DEFAULT_CPU, cpu_model
from thinbox.machine.data_breakpoints import DataBreakpoints
from thinbox.machine.devices.cmos import Cmos
from thinbox.machine.devices.pic import Pic
from thinbox.machine.devices.pit import Pit
from thinbox.machine.devices.uart import LINE_STATUS, Uart
from thinbox.machine.layout_probe import probe_layout
from thinbox.machine.memory import MIB, Memory
from thinbox.machine.sci_unit import SciUnit
from thinbox.machine.sigint import SigintHold

TIMER_LINE = 0
SLICE_NS = 20_000_000
"""Longest stretch without a look at signals: about 20 ms of host time."""
_NO_EFFECT = frozenset((*Pit.PORTS, 0x3F8 + LINE_STATUS, 0x2F8 + LINE_STATUS))
"""Ports that can be read without a change of what the CPU has to stop for; nearly all that a boot reads."""
_KEYBOARD_COMMAND = 0x64
_RESET_CPU = 0xFE
_USER = 3
"""CPL of programs."""
_CONSOLE_KEPT_BYTES = 1 << 20


class GuestResetError(MachineError):
    """The guest asked for a reset (after a panic, or by reboot), or a triple fault reset the CPU."""


class Machine:
    """A PC with `memory_mib` MiB of RAM and a CPU of level `cpu` (`cpu_model.MODELS`); `console` collects what the
    first UART sends."""

    def __init__(self, memory_mib: int, cpu: str = DEFAULT_CPU) -> None:
        self.memory_mib = memory_mib
        self.memory = Memory(memory_mib * MIB)
        self.cpu = Cpu(self.memory, probe_layout(), cpu_model(cpu))
        self.slot = self.cpu.slot
        self.sci = SciUnit(self.cpu)
        self.pic, self.pit, self.cmos = Pic(), Pit(), Cmos()
        self.console = bytearray()
        self.doorbell_output = bytearray()
        self.on_console: Callable[[bytes], None] | None = None
        self.serial = Uart(0x3F8, 4, self.pic, self._console_byte)
        self.doorbell = Uart(0x2F8, 3, self.pic, self.doorbell_output.append)
        self.data_breakpoints = DataBreakpoints(self.cpu)
        self.check_signals: Callable[[], None] = lambda: None
        self.look_at_input: Callable[[], None] = lambda: None
        """Called between stretches of CPU, at least every `SLICE_NS`; may bring an interrupt."""
        self._sigint = SigintHold()
        self._held_ns = 0
        self.on_idle: Callable[[int | None], bool] = lambda _due_ns: False
        """Called at HLT with the next timer's time; True if it brought an interrupt by itself."""
        self.on_interrupt: Callable[[], None] = lambda: None
        """Called when an external interrupt was delivered, before its handler runs."""
        self.on_stop: Callable[[], None] = lambda: None
        """Called between two runs of the CPU, before anything else is done."""
        self._readers, self._writers = self._port_maps()
        self.cpu.add_port_hooks(self._read_port, self._write_port)

    # -- time -------------------------------------------------------------------------------------
    @property
    def now_ns(self) -> int:
        """Virtual time."""
        return self.slot[slots.CLOCK]

    @property
    def busy_ns(self) -> int:
        """Virtual time less what was slept in HLT: what the CPU has run."""
        return self.slot[slots.CLOCK] - self.slot[slots.SLEPT]

    @property
    def interrupts(self) -> int:
        """External interrupts delivered so far."""
        return self.slot[slots.COUNT_IRQS]

    # -- devices ------------------------------------------------------------------------------------
    def _console_byte(self, value: int) -> None:
        self.console.append(value)
        if value == 10 and self.on_console:
            start = self.console.rfind(b"\n", 0, len(self.console) - 1) + 1
            self.on_console(bytes(self.console[start:]))
        if len(self.console) > 2 * _CONSOLE_KEPT_BYTES:
            del self.console[:_CONSOLE_KEPT_BYTES]

    def _port_maps(self) -> tuple[dict[int, Callable[[int], int]], dict[int, Callable[[int, int], None]]]:
        readers: dict[int, Callable[[int], int]] = {}
        writers: dict[int, Callable[[int, int], None]] = {}
        for port in Pic.PORTS:
            readers[port], writers[port] = self.pic.read, self.pic.write
        for port in Pit.PORTS:
            readers[port] = self._read_timer
            writers[port] = lambda port, value: self.pit.write(port, value, self.now_ns)
        for port in Cmos.PORTS:
            readers[port], writers[port] = self.cmos.read, self.cmos.write
        for uart in (self.serial, self.doorbell):
            for port in range(uart.port, uart.port + 8):
                readers[port], writers[port] = uart.read, uart.write
        writers[_KEYBOARD_COMMAND] = self._keyboard_command
        return readers, writers

    def _keyboard_command(self, _port: int, value: int) -> None:
        if value == _RESET_CPU:
            raise GuestResetError("the guest asked for a reset")

    def _read_timer(self, port: int) -> int:
        return self.pit.read(port, self.slot[slots.CLOCK])

    def _read_port(self, port: int, size: int) -> int:
        if self.cpu.privilege == _USER:
            return (1 << 8 * size) - 1
        if port in _NO_EFFECT:
            return self._readers[port](port)
        reader = self._readers.get(port)
        value = reader(port) if reader else (1 << 8 * size) - 1
        self._plan_again()
        return value

    def _write_port(self, port: int, _size: int, value: int) -> None:
        writer = self._writers.get(port)
        if writer and self.cpu.privilege != _USER:
            writer(port, value & 0xFF)
            self._plan_again()

    def _plan(self) -> None:
        """Tell the block hook when to stop: at the next timer, or as soon as an interrupt can be taken."""
        due, now = self.pit.due_ns, self.now_ns
        waiting = bool(self.pic.waiting) and now >= self._held_ns
        deadline = now + SLICE_NS if due is None else min(due, now + SLICE_NS)
        if now < self._held_ns:
            deadline = min(deadline, self._held_ns)
        self.slot[slots.IRQ_WAITING] = waiting
        self.slot[slots.DEADLINE] = deadline
        self.slot[slots.ATTENTION] = 0 if waiting else deadline

    def _plan_again(self) -> None:
        """As `_plan`, while the CPU runs: an earlier stop that somebody waits for stays (the end of a grant for one
        block)."""
        before = self.slot[slots.DEADLINE]
        self._plan()
        self.slot[slots.DEADLINE] = min(self.slot[slots.DEADLINE], before)
        self.slot[slots.ATTENTION] = min(self.slot[slots.ATTENTION], before)

    # -- running --------------------------------------------------------------------------------------
    def run(self, until: Callable[[], bool]) -> None:
        """Run until `until()` is true; it is asked whenever the CPU stops.

        `KeyboardInterrupt` for a Ctrl-C is raised from here at the next stop, and never lost in a callback.
        """
        with self._sigint:
            self._run(until)

    def look_at_signals(self) -> None:
        """Raise or do what a signal asks for; called between stretches of CPU, and while `on_idle` waits."""
        self._sigint.check()
        self.check_signals()

    def _run(self, until: Callable[[], bool]) -> None:
        while not until():
            self.look_at_signals()
            self.look_at_input()
            if self.pit.expire(self.now_ns):
                self.pic.raise_line(TIMER_LINE)
            if self.pic.waiting and self.now_ns >= self._held_ns and self.cpu.interrupts_enabled:
                self.cpu.report_breakpoints()
                vector = self.pic.acknowledge()
                if vector is not None:
                    self.cpu.inject(vector)
                    self.on_interrupt()
            self._plan()
            self.data_breakpoints.settle()
            reason = self.cpu.run()
            self.on_stop()
            if reason == slots.STOP_TRIPLE_FAULT:
                raise GuestResetError(f"triple fault at {self.cpu.rip:#x} (vector {self.slot[slots.STOP_DETAIL]})")
            if reason == slots.STOP_NONE:
                self._halt()

    def _halt(self) -> None:
        """HLT: sleep until the next timer, or say that nothing will ever come."""
        self._held_ns = 0
        if self.pic.waiting:
            return
        if self.on_idle(self.pit.due_ns):
            return
        due = self.pit.due_ns
        if due is None or not self.cpu.interrupts_enabled:
            raise MachineError(f"the guest halted at {self.cpu.rip:#x} with nothing to wake it")
        if due > self.now_ns:
            self.slot[slots.SLEPT] += due - self.now_ns
            self.slot[slots.CLOCK] = due

    def hold_interrupts(self, until_ns: int) -> None:
        """Deliver no interrupt before this virtual time, or `release_interrupts`; they wait."""
        self._held_ns = until_ns

    def release_interrupts(self) -> None:
        """Deliver interrupts again, what waits first."""
        if self._held_ns:
            self._held_ns = 0
            if self.pic.waiting:
                self._plan_again()

    # -- saving -----------------------------------------------------------------------------------------
    def save_devices(self) -> dict[str, Any]:
        """Return clock and devices as plain values."""
        return {
            "clock": self.now_ns,
            "slept": self.slot[slots.SLEPT],
            "pic": self.pic.save(),
            "pit": self.pit.save(),
            "serial": self.serial.save(),
            "doorbell": self.doorbell.save(),
            "cmos": self.cmos.index,
        }

    def restore_devices(self, state: dict[str, Any]) -> None:
        """Load what `save_devices` returned."""
        self.slot[slots.CLOCK], self.slot[slots.SLEPT] = state["clock"], state["slept"]
        self.slot[slots.CUT_CLOCK] = -1
        self.pic.restore(state["pic"])
        self.pit.restore(state["pit"])
        self.serial.restore(state["serial"])
        self.doorbell.restore(state["doorbell"])
        self.cmos.index = state["cmos"]
        self._plan()
