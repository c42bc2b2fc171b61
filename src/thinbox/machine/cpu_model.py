"""What the CPU offers to programs and kernel: the level of the x86-64 ABI.

Why it exists: programs and distributions built for x86-64-v2 end by SIGILL on a CPU without SSE4.2. The engine
executes all of that level (and AES, PCLMULQDQ, MOVBE, LZCNT, ADX). But none of its CPU models is the plain one with
only these added: the others bring vendors, families and with them other mitigations, or SMEP and SMAP.

Rules of this file:
- Only what the engine executes as the SDM says is offered: each instruction is compared with the host's own CPU
  (tests/machine/test_cpu_model.py). BMI1 and BMI2 are not: BLSI and BZHI of Unicorn 2.1.4 set other flags.
- What is not deterministic (RDRAND, RDSEED) is not offered.

Source: SDM vol. 2A, CPUID; x86-64 psABI, section 3.1.1 (microarchitecture levels).
"""

from dataclasses import dataclass

from thinbox.errors import InputError

_SSSE3, _SSE41, _SSE42, _MOVBE, _POPCNT, _AES, _PCLMULQDQ = 1 << 9, 1 << 19, 1 << 20, 1 << 22, 1 << 23, 1 << 25, 1 << 1
_ADX = 1 << 19
_LZCNT = 1 << 5


@dataclass(frozen=True, slots=True)
class CpuModel:
    """A level by its name on the command line, and what it adds to the plain model, by word of CPUID."""

    name: str
    adds: tuple[tuple[str, int], ...]

    @property
    def level(self) -> int:
        """The level of the x86-64 ABI, from 1."""
        return int(self.name.removeprefix("v"))


MODELS = {
    model.name: model
    for model in (
        CpuModel("v1", ()),
        CpuModel(
            "v2",
            (
                ("1.ecx", _SSSE3 | _SSE41 | _SSE42 | _MOVBE | _POPCNT | _AES | _PCLMULQDQ),
                ("7.ebx", _ADX),
                ("80000001.ecx", _LZCNT),
            ),
        ),
    )
}
DEFAULT_CPU = "v2"


def cpu_model(name: str) -> CpuModel:
    """Return the model of that name; InputError if there is none."""
    if name not in MODELS:
        raise InputError(f"there is no CPU {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name]
