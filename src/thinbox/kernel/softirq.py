"""Soft interrupts: the functions that run them, and the stack they run on.

Shapes, newest first:
- `handle_softirqs(ksirqd)`, and `__do_softirq()`, which calls it (6.10, and later releases of 6.1); before,
  `__do_softirq()` alone (kernel/softirq.c).
- the stack's end is the per-CPU variable `hardirq_stack_ptr` (also 5.8 to 6.1), or it is in `pcpu_hot` (6.2 to 6.14).
- they are called there in line, and the word that the variable points to holds the stack it came from (5.12, "x86/irq:
  Provide macro for inlining irq stack switching"); before, by `asm_call_on_stack(stack, function, argument)`, which is
  given the place of that word, one below (arch/x86/entry/entry_64.S).

Source: kernel/softirq.c, arch/x86/include/asm/irq_stack.h (`call_on_irqstack`, `__run_on_irqstack`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "a view would judge soft interrupts as a call's own work"
FUNCTIONS = ("handle_softirqs", "__do_softirq")


_ON_STACK, _THUNK = "asm_call_on_stack", "__x86_indirect_thunk_rsi"
_CALL_RSI, _CALL = b"\xff\xd6", 0xE8
_CALL_BYTES = 5


@dataclass(frozen=True, slots=True)
class SoftIrqs:
    """The functions' first instructions; `stack_at` is the per-CPU address of the stack's end, 0 if there is none.

    `below`: how many bytes below that end RSP is at such an instruction. `called_by` calls what RSI points to, perhaps
    by way of `thunk`; both are 0 where the functions are called by name.
    """

    functions: tuple[int, ...]
    stack_at: int
    below: int = 8
    called_by: int = 0
    thunk: int = 0

    def ends_of_calls(self, code: bytes) -> tuple[int, ...]:
        """Return the addresses behind the calls of what RSI points to, in the live code of `called_by` (CALL_NOSPEC,
        arch/x86/include/asm/nospec-branch.h)."""
        found = []
        for at in range(len(code)):
            if code[at : at + 2] == _CALL_RSI:
                found.append(self.called_by + at + 2)
            elif code[at] == _CALL and len(code) >= at + _CALL_BYTES:
                behind = self.called_by + at + _CALL_BYTES
                if self.thunk and behind + int.from_bytes(code[at + 1 : at + 5], "little", signed=True) == self.thunk:
                    found.append(behind)
        return tuple(found)


def probe_softirq(probe: Probe) -> SoftIrqs:
    """Find them; what is missing is noted in `probe`."""
    functions = probe.symbols(*FUNCTIONS)
    if probe.has_symbol("hardirq_stack_ptr"):
        stack_at = probe.symbol("hardirq_stack_ptr")
        if probe.has_symbol(_ON_STACK):
            thunk = probe.symbol(_THUNK) if probe.has_symbol(_THUNK) else 0
            return SoftIrqs(functions, stack_at, 16, probe.symbol(_ON_STACK), thunk)
        return SoftIrqs(functions, stack_at)
    if probe.has_symbol("pcpu_hot") and probe.has_member("pcpu_hot.hardirq_stack_ptr"):
        return SoftIrqs(functions, probe.symbol("pcpu_hot") + probe.offset("pcpu_hot.hardirq_stack_ptr"))
    return SoftIrqs(functions, 0)


def find_softirq(facts: "KernelFacts") -> SoftIrqs:
    """Return them; `MissingFactError` if this kernel runs soft interrupts in another way."""
    probe = Probe(facts, "soft interrupts", DISABLES)
    found = probe_softirq(probe)
    probe.check()
    return found
