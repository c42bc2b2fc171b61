"""Has the engine's CPU offer what its model adds (`cpu_model`).

Why it exists: the engine takes a model by number only; what CPUID says, and what it translates, is a list of words in
its CPU state.

Rules of this file: that list is found by what CPUID says, and CPUID is asked afterwards: never guess.

Source: QEMU 5.0 target/i386/cpu.h, enum FeatureWord, FeatureWordArray.
"""

import ctypes
import struct
from typing import TYPE_CHECKING

from unicorn import x86_const

from thinbox.address import PAGE_BYTES
from thinbox.errors import MachineError
from thinbox.machine.layout_probe import read_host

if TYPE_CHECKING:
    from unicorn import Uc

    from thinbox.machine.cpu_model import CpuModel

_WORDS = {"1.edx": 0, "1.ecx": 1, "7.ebx": 2, "80000001.edx": 6, "80000001.ecx": 7}
"""Where the words of features lie in the engine's list of them (FEAT_1_EDX …)."""
_SCAN_BYTES = 1 << 13
_CODE = b"\x0f\xa2\xf4"  # cpuid; hlt
_PAGE = 1 << 32
_LEAVES = (1, 7, 0x80000001)


def offer(uc: "Uc", env: int, model: "CpuModel") -> None:
    """Let the CPU whose state is at host address `env` offer what the model adds, before anything is translated.

    Raises:
        MachineError: the engine keeps its features elsewhere, or its CPUID does not say them afterwards.
    """
    if not model.adds:
        return
    before = _ask(uc)
    state = read_host(env, _SCAN_BYTES)
    pattern = struct.pack("<2Q", before["1.edx"], before["1.ecx"])
    first = state.find(pattern)
    if first < 0 or state.find(pattern, first + 1) >= 0:
        raise MachineError("this Unicorn's list of CPU features is not where it was; install unicorn 2.1.4")
    for word, bits in model.adds.items():
        place = ctypes.c_uint64.from_address(env + first + 8 * _WORDS[word])
        if place.value != before[word]:
            raise MachineError("this Unicorn's list of CPU features is another; install unicorn 2.1.4")
        place.value |= bits
    after = _ask(uc)
    if any(after[word] != before[word] | bits for word, bits in model.adds.items()):
        raise MachineError("this Unicorn does not offer what its CPU was given; install unicorn 2.1.4")


def _ask(uc: "Uc") -> dict[str, int]:
    """Run CPUID in a page of its own, in long mode without paging as the engine begins; the registers are as before.

    Preconditions: the engine has run nothing yet, and nothing is mapped at `_PAGE`.
    """
    names = (x86_const.UC_X86_REG_RAX, x86_const.UC_X86_REG_RBX, x86_const.UC_X86_REG_RCX, x86_const.UC_X86_REG_RDX)
    kept = [(register, uc.reg_read(register)) for register in (*names, x86_const.UC_X86_REG_RIP)]
    words: dict[str, int] = {}
    uc.mem_map(_PAGE, PAGE_BYTES)
    uc.mem_write(_PAGE, _CODE)
    for leaf in _LEAVES:
        uc.reg_write(names[0], leaf)
        uc.reg_write(names[2], 0)
        uc.emu_start(_PAGE, _PAGE + 2)
        for register, name in zip(names[1:], ("ebx", "ecx", "edx"), strict=True):
            words[f"{leaf:x}.{name}"] = uc.reg_read(register)
    uc.mem_unmap(_PAGE, PAGE_BYTES)
    for register, value in kept:
        uc.reg_write(register, value)
    return words
