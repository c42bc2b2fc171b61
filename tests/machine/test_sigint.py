"""Ctrl-C is never lost, wherever in a callback it finds Python."""

import signal
import threading

import pytest

from tests.support.bare_machine import HLT, NOP, STI, BareMachine, mov
from thinbox.machine import cpu as registers
from thinbox.machine import slots
from thinbox.machine.layout_probe import _Scratch, probe_layout
from thinbox.machine.sigint import SigintHold

SPIN = b"\xeb\xfe"  # jmp self
PORT = 0x3FF  # the first UART's scratch register
# mov dx, 0x3ff / in al, dx; out dx, al
IN, OUT = b"\x66\xba\xff\x03\xec", b"\x66\xba\xff\x03\xee"
SYSCALL = b"\x0f\x05"


def interrupt_outside_the_guard(bare: BareMachine) -> list[str]:
    """Let SIGINT arrive in a callback, before the `try` that would keep an exception: as a real one may."""
    guarded, seen = bare.cpu._guarded, []

    def late(function, *arguments):
        seen.append("callback")
        if len(seen) == 1:
            signal.raise_signal(signal.SIGINT)
        return guarded(function, *arguments)

    bare.cpu._guarded = late
    return seen


def run_for_a_while(bare: BareMachine) -> None:
    end_ns = bare.machine.now_ns + 10**9
    bare.machine.run(lambda: bare.machine.now_ns > end_ns)


@pytest.fixture(autouse=True)
def python_s_own_handler():
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "the handler is restored"
    signal.signal(signal.SIGINT, kept)


@pytest.mark.parametrize("code", [IN, OUT], ids=["in", "out"])
def test_a_ctrl_c_in_a_port_callback_is_raised(code: bytes) -> None:
    bare = BareMachine(code + SPIN)
    seen = interrupt_outside_the_guard(bare)
    with pytest.raises(KeyboardInterrupt):
        run_for_a_while(bare)
    assert seen


def test_a_ctrl_c_in_a_code_hook_is_raised() -> None:
    bare = BareMachine(NOP * 4 + SPIN)
    seen = interrupt_outside_the_guard(bare)
    bare.cpu.add_code_hook(bare.cpu.rip, lambda: None)
    with pytest.raises(KeyboardInterrupt):
        run_for_a_while(bare)
    assert seen


def test_a_ctrl_c_in_a_callback_of_a_compiled_hook_is_raised() -> None:
    bare = BareMachine(mov(registers.RAX, slots.HYPERCALL_NR) + SYSCALL + SPIN)
    seen = interrupt_outside_the_guard(bare)
    bare.cpu.set_callback(slots.ON_HYPERCALL, lambda *_: 1)
    with pytest.raises(KeyboardInterrupt):
        run_for_a_while(bare)
    assert seen


def test_a_ctrl_c_in_the_last_callback_of_a_run_is_raised() -> None:
    bare = BareMachine(OUT + HLT)
    interrupt_outside_the_guard(bare)
    with pytest.raises(KeyboardInterrupt):
        bare.machine.run(lambda: bare.machine.now_ns > 0)


def test_a_ctrl_c_is_raised_instead_of_a_failure_of_the_machine() -> None:
    bare = BareMachine(OUT + HLT)
    interrupt_outside_the_guard(bare)
    with pytest.raises(KeyboardInterrupt):
        bare.machine.run(lambda: False)  # HLT with interrupts off: a MachineError


def test_a_ctrl_c_between_two_stretches_is_raised() -> None:
    bare = BareMachine(STI + SPIN)

    def until() -> bool:
        signal.raise_signal(signal.SIGINT)
        return False

    with pytest.raises(KeyboardInterrupt):
        bare.machine.run(until)


def test_code_that_never_calls_back_is_left_within_two_slices() -> None:
    bare = BareMachine(SPIN)
    looks = []

    def until() -> bool:
        looks.append(bare.machine.now_ns)
        if len(looks) == 2:
            signal.raise_signal(signal.SIGINT)
        return len(looks) > 10

    with pytest.raises(KeyboardInterrupt):
        bare.machine.run(until)
    assert len(looks) == 2
    assert looks[1] - looks[0] <= 20_000_001


def test_a_machine_may_run_again_after_a_ctrl_c() -> None:
    bare = BareMachine(OUT + SPIN)
    interrupt_outside_the_guard(bare)
    with pytest.raises(KeyboardInterrupt):
        run_for_a_while(bare)
    run_for_a_while(bare)


def test_a_ctrl_c_while_the_layout_is_probed_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    real = _Scratch._on_interrupt

    def late(self, uc, vector, data):
        signal.raise_signal(signal.SIGINT)
        real(self, uc, vector, data)

    monkeypatch.setattr(_Scratch, "_on_interrupt", late)
    with pytest.raises(KeyboardInterrupt):
        probe_layout()


def test_a_handler_of_the_callers_is_left_alone() -> None:
    numbers = []
    signal.signal(signal.SIGINT, lambda number, _frame: numbers.append(number))
    bare = BareMachine(OUT + HLT)
    interrupt_outside_the_guard(bare)
    bare.run()
    assert numbers == [signal.SIGINT]
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_in_another_thread_nothing_is_touched() -> None:
    seen = []

    def work() -> None:
        with SigintHold():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
