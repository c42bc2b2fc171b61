"""What the CPU offers to programs and kernel: the level of the x86-64 ABI.

Why it exists: programs and distributions built for x86-64-v2 end by SIGILL on a CPU without SSE4.2. The engine
executes all of that level (and AES, PCLMULQDQ, MOVBE, LZCNT, ADX). But none of its CPU models is the plain one with
only these added: the others bring vendors, families and with them other mitigations.

Rules of this file:
- Only what the engine executes as the SDM says is offered: each instruction is compared with the host's own CPU
  (tests/machine/test_cpu_model.py). BMI1 and BMI2 are not: BLSI and BZHI of Unicorn 2.1.4 set other flags.
- What is not deterministic (RDRAND, RDSEED) is not offered.

Source: SDM vol. 2A, CPUID; x86-64 psABI, section 3.1.1 (microarchitecture levels).
"""

from dataclasses import dataclass

from thinbox.errors import InputError


@dataclass(frozen=True, slots=True)
class Feature:
    """A bit of CPUID, by its name in /proc/cpuinfo (arch/x86/include/asm/cpufeatures.h)."""

    word: str
    bit: int


FEATURES = {
    "pclmulqdq": Feature("1.ecx", 1),
    "ssse3": Feature("1.ecx", 9),
    "sse4_1": Feature("1.ecx", 19),
    "sse4_2": Feature("1.ecx", 20),
    "movbe": Feature("1.ecx", 22),
    "popcnt": Feature("1.ecx", 23),
    "aes": Feature("1.ecx", 25),
    "fsgsbase": Feature("7.ebx", 0),
    "smep": Feature("7.ebx", 7),
    "adx": Feature("7.ebx", 19),
    "smap": Feature("7.ebx", 20),
    "rdtscp": Feature("80000001.edx", 27),
    "abm": Feature("80000001.ecx", 5),
}
"""What can be added to the plain model."""


@dataclass(frozen=True, slots=True)
class CpuModel:
    """A level as the command line has it, and the names of the features it adds to the plain model."""

    name: str
    features: tuple[str, ...]

    @property
    def adds(self) -> dict[str, int]:
        """The bits that are added, by word of CPUID."""
        words: dict[str, int] = {}
        for name in self.features:
            feature = FEATURES[name]
            words[feature.word] = words.get(feature.word, 0) | 1 << feature.bit
        return words

    @property
    def level(self) -> int:
        """The level of the x86-64 ABI, from 1."""
        return int(self.name.removeprefix("v"))


MODELS = {model.name: model for model in (CpuModel("v1", ()), CpuModel("v2", tuple(FEATURES)))}
DEFAULT_CPU = "v2"
BARE_CPU = "v2,-smap,-smep"
"""Without what keeps the kernel from user memory: what the library of attacks presumes."""


def cpu_model(name: str) -> CpuModel:
    """Return the model `name` means: a level, and behind it features to add or to leave out: `v2,-smap,-smep`.

    Raises:
        InputError: there is no such level or feature.
    """
    level, *changes = name.split(",")
    if level not in MODELS:
        raise InputError(f"there is no CPU {level!r}; there are {', '.join(MODELS)}")
    chosen = set(MODELS[level].features)
    for change in changes:
        sign, feature = change[:1], change[1:]
        if sign not in ("+", "-") or feature not in FEATURES:
            raise InputError(f"{change!r} is no feature of a CPU: + or - and one of {', '.join(FEATURES)}")
        (chosen.add if sign == "+" else chosen.discard)(feature)
    return CpuModel(name, tuple(feature for feature in FEATURES if feature in chosen))
