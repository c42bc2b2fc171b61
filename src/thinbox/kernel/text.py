"""The functions in which the kernel writes into its own text.

Shapes, newest first:
- `smp_text_poke_sync_each_cpu` (6.16, "x86/alternatives: Rename 'text_poke_sync()' …").
- `text_poke_sync` (5.6); `do_sync_core` is what either runs on each CPU.
- `__text_poke` and `text_poke_early` write, in all of them.

Source: arch/x86/kernel/alternative.c.
"""

from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

WRITES = "__text_poke"
SYNCHRONISES = ("smp_text_poke_sync_each_cpu", "text_poke_sync")
ALSO = ("do_sync_core", "text_poke_early")


def probe_text_patchers(probe: Probe) -> tuple[int, ...]:
    """Return their first instructions, those before and after each step; what is missing is noted in `probe`."""
    found = (*probe.symbols(WRITES), *probe.symbols(*SYNCHRONISES))
    return found + tuple(vaddr for name in ALSO if probe.has_variant(name) for vaddr in probe.symbols(name))


def find_text_patchers(facts: "KernelFacts") -> tuple[int, ...]:
    """Return them; `MissingFactError` where text could change unseen."""
    probe = Probe(facts, "patching of text", "what was read from text could be stale, and no policy can judge")
    found = probe_text_patchers(probe)
    probe.check()
    return found
