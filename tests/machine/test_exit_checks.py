"""The switch found in Unicorn is the one that is meant, and code hooks have it off."""

import ctypes
from typing import Any

from tests.support.bare_machine import CODE, DATA, HLT, BareMachine, mov
from unicorn import UC_ARCH_X86, UC_HOOK_MEM_READ, UC_MODE_64, Uc, x86_const

from thinbox.machine.exit_checks import ExitChecks, find_exit_check_switch

RBX, RDI = 3, 7
_LOAD = b"\x48\x8b\x0f"  # mov (%rdi), %rcx
_COUNT = b"\x48\xff\xc3"  # inc %rbx


def _count_after_stop(*, skip: bool) -> int:
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.ctl_exits_enabled(True)
    uc.mem_map(0, 0x10000)
    uc.mem_write(0x1000, _LOAD + _COUNT + b"\xeb\xfe")
    uc.reg_write(x86_const.UC_X86_REG_RDI, 0x2000)
    checks = ExitChecks(ctypes.cast(uc._uch, ctypes.c_void_p).value or 0)
    if skip:
        checks.skip()

    def stop(engine: Uc, *_rest: Any) -> None:
        engine.emu_stop()

    uc.hook_add(UC_HOOK_MEM_READ, stop)
    uc.emu_start(0x1000, 0)
    return int(uc.reg_read(x86_const.UC_X86_REG_RBX))


def test_the_switch_is_found_and_turns_the_look_behind_a_load() -> None:
    assert find_exit_check_switch() is not None
    assert _count_after_stop(skip=False) == 0
    assert _count_after_stop(skip=True) == 1


def test_a_code_hook_stops_before_its_instruction_also_in_a_block_that_ran_before() -> None:
    bare = BareMachine(mov(RBX, 0) + mov(RDI, DATA) + _LOAD + _COUNT + _LOAD + _COUNT + HLT)
    bare.run()
    assert bare.register("RBX") == 2
    second = CODE + 20 + 6
    seen = []

    def halt() -> None:
        seen.append(bare.register("RBX"))
        bare.cpu.stop()
        bare._halted = True

    bare.cpu.add_code_hook(second, halt)
    bare.cpu.set_rip(CODE)
    bare.run()
    assert seen == [1]
    assert (bare.cpu.rip, bare.register("RBX")) == (second, 1)
