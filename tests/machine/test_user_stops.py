"""What a program may do to the engine and the devices: each has the CPU's outcome, and none ends the run."""

import pytest
from tests.support.bare_machine import (
    CODE0,
    DATA,
    HANDLERS,
    HLT,
    NOP,
    PML4,
    TABLE,
    USER,
    BareMachine,
    MachineError,
    mov,
)
from thinbox.machine import slots
from thinbox.machine.machine import GuestResetError

IOPL3 = 0x3002
EXECUTE, WRITE_8 = 0x1, 0x1 | 0x9 << 16
"""DR7: breakpoint 0 on, of an instruction; of a store of eight bytes."""
RAX, RDI = 0, 7


def set_breakpoint(bare: BareMachine, vaddr: int, kind: int) -> None:
    bare.cpu._debug[0] = vaddr
    bare.cpu._update_dr7(bare.cpu._env, kind)


def breakpoint_machine() -> BareMachine:
    return BareMachine(ring3=NOP * 4 + mov(RDI, DATA) + b"\x48\x89\x07" + HLT)  # mov [rdi], rax


def test_a_hardware_breakpoint_is_a_debug_exception() -> None:
    bare = breakpoint_machine()
    set_breakpoint(bare, USER + 2, EXECUTE)
    assert bare.run(1_000_000)
    assert (bare.vector, bare.frame()["rip"]) == (1, USER + 2)


def test_a_watchpoint_stops_nothing() -> None:
    """Unicorn 2.1.4 does not always see one; the program goes on, or gets its exception."""
    bare = breakpoint_machine()
    set_breakpoint(bare, DATA, WRITE_8)
    assert bare.run(1_000_000)
    assert bare.vector in (1, 13)


def test_a_state_with_breakpoints_is_restored_without_a_pointer_of_the_host() -> None:
    bare = breakpoint_machine()
    plain = bare.cpu.save()
    set_breakpoint(bare, USER + 2, EXECUTE)
    armed = bare.cpu.save()
    at = bare.cpu.layout.old
    assert armed[at - 32 : at] == bytes(32)
    for _ in range(3):
        for state, expected in ((armed, 1), (plain, 13)):
            bare.cpu.restore(state)
            bare._write_descriptors()
            assert bare.cpu.save() == state
            assert bare.run(1_000_000)
            assert bare.vector == expected
    other = breakpoint_machine()
    other.cpu.restore(armed)
    assert other.run(1_000_000)
    assert other.vector == 1


def test_a_program_with_the_right_to_ports_reaches_no_device() -> None:
    # mov al, 0xfe / out 0x64, al / mov al, 0xff / out 0x21, al / xor eax, eax / in al, 0x40 / hlt
    bare = BareMachine(ring3=b"\xb0\xfe\xe6\x64\xb0\xff\xe6\x21\x31\xc0\xe4\x40" + HLT, flags=IOPL3)
    bare.init_pics()
    bare.run()
    assert bare.vector == 13, "the halt of a program"
    assert bare.register("RAX") == 0xFF
    assert bare.machine.pic.read(0x21) == 0


def test_a_reset_by_the_kernel_is_the_guests_end() -> None:
    with pytest.raises(GuestResetError, match="reset"):
        BareMachine(b"\xb0\xfe\xe6\x64" + HLT).run()


def test_a_stack_in_its_own_page_tables_writes_nothing_outside() -> None:
    """The frame's words unmap the page the rest of the frame goes to."""
    bare = BareMachine(mov(4, TABLE + 0x48) + b"\x0f\x0b" + HLT)  # mov rsp, … / ud2
    bare.run()
    assert bare.vector == 6
    assert bare.memory.words[TABLE // 8 + 4] == CODE0, "the entry of the page itself"
    assert bare.memory.words[0] == 0


def test_a_handler_that_cannot_be_fetched_on_a_stack_without_end_is_stopped() -> None:
    """Every page of a huge stack is the same page; the handler's has no execute right."""
    bare = BareMachine(mov(4, (2 << 39) - 4096) + b"\x0f\x0b" + HLT)  # mov rsp, … / ud2
    memory = bare.memory
    memory.words[0x90000 // 8 : 0x91000 // 8] = 0x91000 | 7
    memory.words[0x91000 // 8 : 0x92000 // 8] = 0x92000 | 7
    memory.words[0x92000 // 8 : 0x93000 // 8] = 0x93000 | 7
    memory.words[PML4 // 8 + 1] = 0x90000 | 7
    bare.protect(HANDLERS, 1 << 63 | 3)
    bare.machine.slot[slots.STUCK_LIMIT] = 5_000
    with pytest.raises(MachineError, match="triple fault"):
        bare.run(1_000_000)
    assert bare.machine.slot[slots.COUNT_FAULTS] >= 5_000
