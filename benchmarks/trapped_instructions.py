"""`python -m benchmarks.trapped_instructions`: what an instruction costs that the engine has not, and a hook serves.

A loop of one SSE instruction against the same loop of its AVX form, which the engine does not know: the hook for
invalid opcodes does no more than step over it. That is the least that interpreting x86-64-v3 instructions would cost
(docs/decisions/0018-cpu-level.md).
"""

import time
from typing import Any

from unicorn import UC_ARCH_X86, UC_HOOK_INSN_INVALID, UC_MODE_64, Uc
from unicorn.x86_const import UC_X86_REG_ECX, UC_X86_REG_RIP

SSE, AVX = bytes.fromhex("660ffec1"), bytes.fromhex("c5fdfec1")
"""paddd %xmm1, %xmm0; vpaddd %ymm1, %ymm0, %ymm0."""
_LOOP = bytes.fromhex("ffc9 75f8")
"""dec %ecx; jne back over the instruction, of 4 bytes."""
_PLACE, _TIMES = 0x1000, 200_000


def _step_over(engine: Any, _data: object) -> bool:
    engine.reg_write(UC_X86_REG_RIP, engine.reg_read(UC_X86_REG_RIP) + len(AVX))
    return True


def seconds_each(instruction: bytes) -> float:
    """Return the CPU time of one round of the loop."""
    engine: Any = Uc(UC_ARCH_X86, UC_MODE_64)
    engine.mem_map(_PLACE, 0x1000)
    engine.mem_write(_PLACE, instruction + _LOOP)
    engine.reg_write(UC_X86_REG_ECX, _TIMES)
    engine.hook_add(UC_HOOK_INSN_INVALID, _step_over)
    before = time.process_time()
    engine.emu_start(_PLACE, _PLACE + len(instruction + _LOOP))
    return (time.process_time() - before) / _TIMES


def main() -> None:
    """Print both, and their ratio."""
    plain, trapped = seconds_each(SSE), seconds_each(AVX)
    print(f"executed {plain * 1e6:.3f} us, trapped {trapped * 1e6:.2f} us: {trapped / plain:.0f} times as long")


if __name__ == "__main__":
    main()
