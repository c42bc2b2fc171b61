"""Exceptions and interrupts reach their handlers as SDM vol. 3A, chapter 6 says."""

import pytest

from tests.support.bare_machine import (
    CLI,
    CODE,
    CODE0,
    CODE3,
    DATA,
    DATA0,
    DATA3,
    HLT,
    HOLE,
    IF,
    IST1,
    NOP,
    PRELUDE_BYTES,
    RF,
    STACK,
    STACK0,
    STI,
    TRAP_GATE,
    TSS,
    USER,
    USER_STACK,
    BareMachine,
    mov,
    slots,
)
from thinbox.errors import MachineError
from thinbox.machine.machine import GuestResetError
from thinbox.machine import cpu as registers
from unicorn import x86_const

RAX, RCX, RDX, RBX = registers.RAX, registers.RCX, registers.RDX, registers.RBX
LOAD = b"\x48\x8b\x00"  # mov rax, [rax]
STORE = b"\x48\x89\x00"  # mov [rax], rax
CALL_RAX = b"\xff\xd0"  # call rax
UD2 = b"\x0f\x0b"


@pytest.mark.parametrize(("access", "ring3_error", "where"), [(LOAD, 4, 10), (STORE, 6, 10)], ids=["load", "store"])
def test_a_page_fault_pushes_its_error_code_and_sets_cr2(access: bytes, ring3_error: int, where: int) -> None:
    bare = BareMachine(ring3=mov(RAX, HOLE + 0x123) + access, flags=2 | IF)
    bare.run()
    assert bare.vector == 14
    frame = bare.frame(error=True)
    assert frame["error"] == ring3_error
    assert bare.cpu.cr2 == HOLE + 0x123
    assert frame["rip"] == USER + where
    bare = BareMachine(mov(RAX, HOLE + 0x123) + access)
    bare.run()
    assert bare.frame(error=True)["error"] == ring3_error & ~4
    assert bare.frame(error=True)["rip"] == CODE + where


def test_a_fetch_from_a_page_that_is_not_mapped_faults_at_the_target() -> None:
    bare = BareMachine(mov(RAX, HOLE + 8) + CALL_RAX)
    bare.run()
    assert bare.vector == 14
    assert bare.cpu.cr2 == bare.frame(error=True)["rip"] == HOLE + 8
    assert bare.frame(error=True)["error"] == 0x10


def test_a_protection_fault_says_that_the_page_is_present() -> None:
    bare = BareMachine(mov(RAX, DATA) + STORE)
    bare.protect(DATA, 5)
    bare.run()
    assert (bare.vector, bare.frame(error=True)["error"]) == (14, 3)


def test_the_saved_flags_of_a_fault_have_rf_and_the_handler_runs_without_it() -> None:
    bare = BareMachine(ring3=UD2, flags=2 | IF)
    bare.run()
    assert bare.vector == 6
    assert bare.frame()["flags"] & RF
    assert not bare.cpu.flags & (RF | IF)
    assert bare.frame()["rip"] == USER


@pytest.mark.parametrize("ring3", [False, True])
def test_the_saved_flags_of_an_interrupt_have_no_rf(ring3: bool) -> None:
    spin = NOP + b"\xeb\xfd"  # nop / jmp back
    bare = BareMachine(ring3=spin, flags=2 | IF) if ring3 else BareMachine(spin, flags=2 | IF)
    bare.init_pics()
    bare.machine.pic.raise_line(1)
    bare.run()
    assert bare.vector == 0x21
    assert bare.frame()["flags"] & (RF | IF) == IF


def test_a_software_interrupt_saves_the_next_instruction_and_no_rf() -> None:
    bare = BareMachine(b"\xcd\x55")  # int 0x55
    bare.run()
    assert bare.vector == 0x55
    assert bare.frame()["rip"] == CODE + 2
    assert not bare.frame()["flags"] & RF


def test_from_ring_0_the_stack_stays_and_is_aligned() -> None:
    bare = BareMachine(b"\x48\x83\xec\x0b" + UD2)  # sub rsp, 11
    bare.run()
    frame = bare.frame()
    assert frame["rsp"] == STACK - 11
    assert bare.rsp == ((STACK - 11) & ~15) - 40
    assert (frame["cs"], frame["ss"]) == (CODE0, DATA0)
    assert bare.register("SS") == DATA0


def test_from_ring_3_the_stack_is_rsp0_and_ss_is_null() -> None:
    bare = BareMachine(ring3=UD2)
    bare.run()
    frame = bare.frame()
    assert bare.rsp == STACK0 - 40
    assert (frame["rsp"], frame["cs"], frame["ss"]) == (USER_STACK, CODE3, DATA3)
    assert (bare.register("CS"), bare.register("SS"), bare.cpu.privilege) == (CODE0, 0, 0)


@pytest.mark.parametrize("ring3", [False, True])
def test_an_ist_gate_switches_to_its_stack_from_every_ring(ring3: bool) -> None:
    bare = BareMachine(ring3=UD2) if ring3 else BareMachine(UD2)
    bare.set_gate(6, ist=1)
    bare.run()
    assert bare.rsp == IST1 - 40
    assert bare.frame()["rsp"] == (USER_STACK if ring3 else STACK)


def test_a_handler_returns_to_ring_3() -> None:
    bare = BareMachine(ring3=b"\xcd\x55" + UD2)  # int 0x55 / ud2
    bare.set_gate(0x55, dpl=3)
    bare.set_handler(0x55, b"\x48\xcf")  # iretq
    bare.run()
    assert bare.vector == 6
    assert bare.frame()["rip"] == USER + 2
    assert bare.frame()["cs"] == CODE3


@pytest.mark.parametrize(
    ("code", "vector"), [(b"\xcd\x55", 0x55), (b"\xcd\x0e", 14), (b"\xcd\x80", 0x80), (b"\xcc", 3)]
)
def test_int_n_of_ring_3_on_a_gate_of_ring_0_is_a_protection_fault_at_the_instruction(code: bytes, vector: int) -> None:
    bare = BareMachine(ring3=NOP + code + HLT)
    bare.run()
    frame = bare.frame(error=True)
    assert bare.vector == 13
    assert frame["error"] == vector * 8 + 2
    assert frame["rip"] == USER + 1
    assert frame["flags"] & RF


def test_int_n_of_ring_0_ignores_the_gates_privilege() -> None:
    bare = BareMachine(b"\xcd\x0e")
    bare.run()
    assert bare.vector == 14
    assert bare.frame()["rip"] == CODE + 2, "`int 14` pushes no error code"


def test_a_gate_that_is_not_present_is_reported() -> None:
    bare = BareMachine(ring3=b"\xcd\x55")
    bare.set_gate(0x55, dpl=3, present=False)
    bare.run()
    # SDM vol. 3A, 6.15: #NP (11) with the vector's selector and the IDT bit.
    assert bare.vector == 11
    assert bare.frame(error=True)["error"] == 0x55 * 8 + 2
    assert bare.frame(error=True)["rip"] == USER


def test_a_vector_behind_the_end_of_the_idt_is_a_protection_fault() -> None:
    bare = BareMachine(b"\xcd\x55")
    bare.cpu.uc.reg_write(x86_const.UC_X86_REG_IDTR, (0, 0x7000, 16 * 0x55 - 1, 0))
    bare.run()
    assert bare.vector == 13
    assert bare.frame(error=True)["error"] == 0x55 * 8 + 2


def test_an_interrupt_gate_clears_if_and_a_trap_gate_does_not() -> None:
    for kind, expected in ((14, 0), (TRAP_GATE, IF)):
        bare = BareMachine(ring3=UD2, flags=2 | IF)
        bare.set_gate(6, kind=kind)
        bare.run()
        assert bare.cpu.flags & IF == expected
        assert bare.frame()["flags"] & IF


def test_the_shadow_of_sti_covers_one_instruction() -> None:
    # nop / sti / inc ebx / inc ebx / jmp self
    bare = BareMachine(NOP + STI + b"\xff\xc3\xff\xc3" + b"\xeb\xfe")
    bare.init_pics()
    bare.machine.pic.raise_line(1)
    bare.run()
    assert bare.vector == 0x21
    assert bare.frame()["rip"] == CODE + 4, "after the first inc"
    assert bare.cpu.regs[RBX] == 1


def test_sti_cli_lets_nothing_in() -> None:
    bare = BareMachine((STI + CLI) * 4 + UD2)
    bare.init_pics()
    bare.machine.pic.raise_line(1)
    # HLT with IF clear would be reported; the #UD handler's is reached first.
    with pytest.raises(MachineError):
        bare.set_handler(6, b"\x0f\x0b")
        bare.protect(STACK - 4096, 0)
        bare.run()
    assert bare.machine.pic.waiting


def test_sti_hlt_wakes_behind_the_hlt() -> None:
    bare = BareMachine(STI + HLT + NOP)
    bare.init_pics()
    bare.machine.pic.raise_line(1)
    bare.run()
    assert bare.vector == 0x21
    assert bare.frame()["rip"] == CODE + 2


def test_the_shadow_of_mov_ss_covers_one_instruction() -> None:
    # mov dx, 0x3fc / mov al, 8 / out dx, al / mov dx, 0x3f9 / mov al, 2 / mov cx, 0x18
    code = b"\x66\xba\xfc\x03\xb0\x08\xee\x66\xba\xf9\x03\xb0\x02\x66\xb9\x18\x00"
    # out dx, al (interrupt 4 is due from here) / mov ss, cx / inc ebx / inc ebx / jmp self
    code += b"\xee\x8e\xd1\xff\xc3\xff\xc3\xeb\xfe"
    bare = BareMachine(code, flags=2 | IF)
    bare.init_pics()
    bare.run()
    assert bare.vector == 0x24
    assert bare.cpu.regs[RBX] & 0xFF == 1
    assert bare.memory.read(bare.frame()["rip"] - 2, 4) == b"\xff\xc3\xff\xc3"


def test_a_fault_in_the_shadow_is_taken_and_ends_it() -> None:
    bare = BareMachine(STI + UD2)
    bare.set_gate(6, kind=TRAP_GATE)
    bare.set_handler(6, NOP + NOP + HLT)
    bare.init_pics()
    bare.machine.pic.raise_line(1)
    bare.run()
    assert bare.vector == 0x21, "the handler of #UD runs with IF set and no shadow"
    assert bare.frame()["rip"] == 0x30000 + 16 * 6


def test_the_lower_line_goes_first_and_the_other_waits_for_its_eoi() -> None:
    bare = BareMachine(STI + NOP + b"\xeb\xfe")
    bare.init_pics()
    # the handler of line 1: mov al, 0x20 / out 0x20, al / sti / nop / hlt
    bare.set_handler(0x21, b"\xb0\x20\xe6\x20" + STI + NOP + HLT)
    bare.machine.pic.raise_line(3)
    bare.machine.pic.raise_line(1)
    bare.run()
    assert bare.vector == 0x23
    assert 0x30210 <= bare.frame()["rip"] < 0x30220, "it came while the handler of line 1 ran"


def test_a_handler_without_a_stack_is_a_double_fault_on_its_own_stack() -> None:
    bare = BareMachine(ring3=UD2)
    bare.set_gate(8, ist=1)
    bare.protect(STACK0 - 4096, 0)
    bare.run()
    assert bare.vector == 8
    assert bare.rsp == IST1 - 48
    frame = bare.frame(error=True)
    assert (frame["error"], frame["rip"], frame["cs"]) == (0, USER, CODE3)


def test_a_stack_that_may_not_be_written_is_a_double_fault_too() -> None:
    bare = BareMachine(mov(RAX, HOLE) + LOAD)
    bare.set_gate(8, ist=1)
    # mov rsp, rbx at the end of the code would be as good: the stack's page becomes read-only at once.
    bare.memory.write(CODE, mov(4, DATA + 0x800) + mov(RAX, HOLE) + LOAD)
    bare.protect(DATA, 5)
    bare.run()
    assert bare.vector == 8


def test_nothing_is_pushed_when_part_of_the_frame_has_no_page() -> None:
    bare = BareMachine()
    bare.memory.write(CODE, mov(4, DATA + 0x1010) + UD2)  # the frame would cross the page's start
    bare.set_gate(8, ist=1)
    bare.protect(DATA, 0)
    before = bare.memory.read(DATA + 0x1000, 4096)
    bare.run()
    assert bare.vector == 8
    assert bare.memory.read(DATA + 0x1000, 4096) == before


def test_pushing_marks_the_stack_as_accessed_and_written() -> None:
    bare = BareMachine(ring3=UD2)
    entry_paddr = 0x4000 + 8 * (STACK0 - 4096 >> 12)
    assert not bare.memory.read(entry_paddr, 1)[0] & 0x60
    bare.run()
    assert bare.memory.read(entry_paddr, 1)[0] & 0x60 == 0x60


# -- SDM vol. 3A, table 6-5: a fault while another is delivered -----------------------------------------
CONTRIBUTORY_FIRST = HLT  # in ring 3: #GP(0)


def without_a_stack(code: bytes, vector: int, *, bits: int = 0) -> BareMachine:
    """`code` in ring 3 raises `vector`, whose stack cannot be pushed on; every other gate that matters has one."""
    bare = BareMachine(ring3=code, flags=2 | IF)
    bare.set_gate(vector, ist=1)
    bare.protect(IST1 - 4096, bits)
    return bare


@pytest.mark.parametrize(("bits", "error"), [(0, 2), (5, 3)], ids=["absent", "read-only"])
def test_a_page_fault_while_a_benign_exception_is_pushed_is_delivered_instead(bits: int, error: int) -> None:
    bare = without_a_stack(NOP + UD2, 6, bits=bits)
    bare.run()
    frame = bare.frame(error=True)
    assert bare.vector == 14
    assert bare.cpu.cr2 == IST1 - 8, "the first word pushed"
    assert (frame["error"], frame["rip"], frame["cs"], frame["rsp"]) == (error, USER + 1, CODE3, USER_STACK)
    assert frame["flags"] & RF
    assert bare.rsp == STACK0 - 48


def test_a_page_fault_while_a_contributory_exception_is_pushed_is_delivered_instead() -> None:
    bare = without_a_stack(CONTRIBUTORY_FIRST, 13)
    bare.run()
    assert (bare.vector, bare.frame(error=True)["error"], bare.cpu.cr2) == (14, 2, IST1 - 8)


def test_a_page_fault_while_a_page_fault_is_pushed_is_a_double_fault_with_the_second_address() -> None:
    bare = without_a_stack(mov(RAX, HOLE) + LOAD, 14)
    bare.run()
    assert (bare.vector, bare.frame(error=True)["error"]) == (8, 0)
    assert bare.cpu.cr2 == IST1 - 8, "CR2 is loaded whenever a page fault is detected"
    assert bare.frame(error=True)["rip"] == USER + 10


@pytest.mark.parametrize(("code", "vector"), [(mov(RAX, HOLE) + LOAD, 14), (CONTRIBUTORY_FIRST, 13)])
def test_a_contributory_fault_after_a_page_fault_or_another_is_a_double_fault(code: bytes, vector: int) -> None:
    bare = BareMachine(ring3=code)
    bare.set_gate(vector, present=False)
    bare.run()
    assert (bare.vector, bare.frame(error=True)["error"]) == (8, 0)


@pytest.mark.parametrize("vector", [13, 14])
def test_int_n_is_benign_whatever_its_vector(vector: int) -> None:
    bare = BareMachine(ring3=bytes((0xCD, vector)))
    bare.set_gate(vector, dpl=3, present=False)
    bare.run()
    frame = bare.frame(error=True)
    assert (bare.vector, frame["error"], frame["rip"]) == (11, vector * 8 + 2, USER)


def test_int_n_whose_gate_has_no_page_is_a_page_fault_at_the_instruction() -> None:
    bare = BareMachine(ring3=NOP + b"\xcd\x55")
    page = bare.move_idt(0x55)
    bare.protect(page, 0)
    bare.run()
    frame = bare.frame(error=True)
    assert (bare.vector, bare.cpu.cr2, frame["error"], frame["rip"]) == (14, page, 0, USER + 1)


def test_a_contributory_exception_whose_gate_has_no_page_is_a_page_fault() -> None:
    bare = BareMachine(ring3=CONTRIBUTORY_FIRST)
    page = bare.move_idt(14)
    bare.protect(page - 1, 0)
    bare.run()
    assert (bare.vector, bare.cpu.cr2, bare.frame(error=True)["error"]) == (14, page - 16, 0)


def test_a_page_fault_whose_gate_has_no_page_is_a_double_fault() -> None:
    bare = BareMachine(ring3=mov(RAX, HOLE) + LOAD)
    page = bare.move_idt(14)
    bare.protect(page, 0)
    bare.run()
    assert (bare.vector, bare.cpu.cr2) == (8, page)


def test_a_gate_that_crosses_into_a_page_that_is_not_there_faults_at_its_first_byte() -> None:
    bare = BareMachine(ring3=b"\xcd\x55")
    page = bare.move_idt(0x55)
    bare.memory.write(page - 4, bare.memory.read(page, 16))
    bare.cpu.uc.reg_write(x86_const.UC_X86_REG_IDTR, (0, page - 4 - 16 * 0x55, 4095, 0))
    bare.memory.write(page - 4 - 16 * (0x55 - 14), bare.memory.read(page - 16 * (0x55 - 14), 16))
    bare.protect(page, 0)
    bare.run()
    assert (bare.vector, bare.cpu.cr2) == (14, page)


def test_a_task_state_segment_without_a_page_is_a_page_fault_at_its_field() -> None:
    bare = BareMachine(UD2)
    bare.set_gate(6, ist=1)
    bare.protect(TSS, 0)
    bare.run()
    frame = bare.frame(error=True)
    assert (bare.vector, bare.cpu.cr2, frame["error"], frame["rip"]) == (14, TSS + 36, 0, CODE)


@pytest.mark.parametrize("vector", [0x20, 8])
def test_an_interrupt_is_benign_whatever_its_vector(vector: int) -> None:
    bare = BareMachine(STI + NOP + b"\xeb\xfe")
    bare.init_pics()
    bare.machine.pic.write(0x20, 0x11)
    for value in (vector, 4, 1, 0):
        bare.machine.pic.write(0x21, value)
    bare.set_gate(vector, present=False)
    bare.machine.pic.raise_line(0)
    bare.run()
    frame = bare.frame(error=True)
    assert (bare.vector, frame["error"]) == (11, vector * 8 + 3), "EXT: no instruction asked for it"
    assert frame["rip"] == CODE + 2


def test_a_stack_pointer_that_is_no_address_is_a_stack_fault() -> None:
    bare = BareMachine(mov(4, 0x4141_4141_4141_4141) + UD2)
    bare.set_gate(12, ist=1)
    bare.run()
    assert (bare.vector, bare.frame(error=True)["error"]) == (12, 1)


def test_a_protection_fault_on_a_stack_pointer_that_is_no_address_is_a_double_fault() -> None:
    bare = BareMachine(mov(4, 0x4141_4141_4141_4141) + b"\xcd\x55")
    bare.set_gate(0x55, present=False)
    bare.set_gate(8, ist=1)
    bare.run()
    assert bare.vector == 8


def test_any_fault_during_a_double_fault_ends_the_machine() -> None:
    bare = BareMachine(ring3=mov(RAX, HOLE) + LOAD)
    bare.set_gate(14, present=False)
    bare.set_gate(8, present=False)
    with pytest.raises(GuestResetError, match="triple fault"):
        bare.run()


def test_the_way_back_to_an_isolated_call_is_behind_the_error_code_of_the_fault_that_took_its_place() -> None:
    bare = BareMachine(NOP + UD2)
    bare.set_gate(6, ist=1)
    bare.protect(IST1 - 4096, 0)
    core = bare.cpu.slot
    core[slots.KERNEL_ROOT] = bare.cpu.cr3
    core[slots.ACTIVE] = slots.ON_SCI
    bare.run()
    assert (bare.vector, core[slots.ACTIVE]) == (14, 0)
    assert core[slots.RESUME_RSP] == bare.rsp + 8
    assert core[slots.RESUME_RIP] == bare.frame(error=True)["rip"] == CODE + 1


def test_an_interruption_of_a_handler_on_the_undo_table_leaves_the_way_back_to_the_call_alone() -> None:
    bare = BareMachine(NOP + UD2)
    core = bare.cpu.slot
    core[slots.KERNEL_ROOT] = bare.cpu.cr3
    core[slots.ACTIVE] = slots.ON_UNDO
    kept = {slots.RESUME_RSP: 1, slots.RESUME_RIP: 2, slots.RESUME_BLOCK_START: 3, slots.RESUME_BLOCK_END: 4}
    for slot, value in kept.items():
        core[slot] = value
    bare.run()
    assert bare.vector == 6
    assert {slot: core[slot] for slot in kept} == kept


def test_a_triple_fault_is_reported() -> None:
    bare = BareMachine(ring3=UD2)
    bare.protect(STACK0 - 4096, 0)
    with pytest.raises(GuestResetError, match="triple fault"):
        bare.run()


def test_hlt_with_interrupts_off_is_reported_not_spun_on() -> None:
    with pytest.raises(MachineError, match="halted at 0x"):
        BareMachine(HLT).run_freely()


def test_hlt_with_nothing_to_come_is_reported_not_spun_on() -> None:
    bare = BareMachine(STI + HLT)
    bare.init_pics()
    with pytest.raises(MachineError, match="nothing to wake it"):
        bare.run_freely()


def test_hlt_sleeps_until_the_timer() -> None:
    bare = BareMachine(STI + HLT + NOP)
    bare.init_pics()
    for port, value in ((0x43, 0x30), (0x40, 0x00), (0x40, 0x80)):  # one-shot, 32768 ticks
        bare.machine.pit.write(port, value, 0)
    with pytest.raises(MachineError, match="halted"):  # the handler's own hlt
        bare.run_freely()
    assert bare.vector == 0x20
    assert bare.frame()["rip"] == CODE + 2
    assert 0x8000 * 10**9 // 1193182 <= bare.machine.now_ns < 0x8000 * 10**9 // 1193182 + 100


def test_the_timer_interrupts_code_that_does_not_sleep() -> None:
    bare = BareMachine(STI + b"\xff\xc3\xeb\xfc")  # inc ebx / jmp back
    bare.init_pics()
    for port, value in ((0x43, 0x34), (0x40, 0x9C), (0x40, 0x2E)):  # periodic, 11932 ticks: 10 ms
        bare.machine.pit.write(port, value, 0)
    bare.set_handler(0x20, b"\xb0\x20\xe6\x20\xff\xc1\x48\xcf")  # mov al,0x20 / out 0x20,al / inc ecx / iretq
    bare.cpu.regs[RCX] = 0
    bare.machine.run(lambda: bare.machine.now_ns > 105_000_000)
    assert bare.cpu.regs[RCX] == 10


def test_rdtsc_is_the_virtual_time() -> None:
    # rdtsc / shl rdx, 32 / or rax, rdx / hlt
    bare = BareMachine(NOP * 50 + b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0" + HLT)
    bare.run()
    assert 0 < bare.cpu.regs[RAX] <= bare.machine.now_ns
    assert bare.machine.now_ns == PRELUDE_BYTES + 50 + 9 + 1, "one nanosecond a byte of code"
    assert bare.machine.now_ns - bare.cpu.regs[RAX] <= 8, "at most the rest of the block ahead"


def test_rdtscp_reads_the_clock_and_tsc_aux() -> None:
    # mov ecx, 0xc0000103 / mov eax, 7 / wrmsr / rdtscp / hlt
    bare = BareMachine(b"\xb9\x03\x01\x00\xc0\xb8\x07\0\0\0\x31\xd2\x0f\x30\x0f\x01\xf9" + HLT)
    bare.run()
    assert bare.cpu.regs[RCX] == 7 and bare.cpu.regs[RDX] == 0
    assert 0 <= bare.machine.now_ns - bare.cpu.regs[RAX] <= 8, "at most the rest of the block ahead"


def test_rdtscp_is_undefined_where_cpuid_does_not_say_it() -> None:
    bare = BareMachine(b"\x0f\x01\xf9" + HLT, cpu="v1")
    bare.run()
    assert bare.vector == 6


def test_two_runs_have_the_same_clock_registers_and_memory() -> None:
    def once() -> tuple[int, bytes, bytes]:
        bare = BareMachine(STI + b"\x0f\x31\xff\xc3\xeb\xfa")  # rdtsc / inc ebx / jmp back
        bare.init_pics()
        for port, value in ((0x43, 0x34), (0x40, 0x00), (0x40, 0x10)):
            bare.machine.pit.write(port, value, 0)
        bare.set_handler(0x20, b"\xb0\x20\xe6\x20\x50\x58\x48\xcf")  # push rax / pop rax in between
        bare.machine.run(lambda: bare.machine.now_ns > 50_000_000)
        return bare.machine.now_ns, bytes(bare.cpu.regs), bare.memory.read(0, 2 << 20)

    assert once() == once()
