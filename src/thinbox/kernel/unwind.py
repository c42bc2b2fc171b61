"""The kernel's ORC tables: where a function's return address lies.

Shapes, newest first:
- `struct orc_entry` has six bytes, its type in three bits, a call being 2 (6.4, commit fb799447ae29 "x86,objtool: Split
  UNWIND_HINT_EMPTY in two").
- six bytes, the type in two bits, a call being 0, and a member `end`.

Source: arch/x86/include/asm/orc_types.h, arch/x86/kernel/unwind_orc.c (`unwind_init`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "policies that judge the stack (transfer, profile) cannot be used"
ORC_BYTES = 6


@dataclass(frozen=True, slots=True)
class UnwindShape:
    """Where the tables lie: addresses at `ips`, entries at `entries` (start, exclusive end)."""

    ips: tuple[int, int]
    entries: tuple[int, int]
    has_end: bool


def probe_unwind(probe: Probe) -> UnwindShape:
    """Find them; what is missing is noted in `probe`."""
    ips = probe.symbol("__start_orc_unwind_ip"), probe.symbol("__stop_orc_unwind_ip")
    entries = probe.symbol("__start_orc_unwind"), probe.symbol("__stop_orc_unwind")
    size = probe.size("orc_entry")
    if size not in (0, ORC_BYTES) or (size and (entries[1] - entries[0]) // size != (ips[1] - ips[0]) // 4):
        probe.lacks("ORC table of a layout that is known")
    return UnwindShape(ips, entries, probe.has_member("orc_entry.end"))


def find_unwind(facts: "KernelFacts") -> UnwindShape:
    """Return them; `MissingFactError` for a kernel without ORC (CONFIG_UNWINDER_FRAME_POINTER), or of another
    layout."""
    probe = Probe(facts, "ORC unwind tables", DISABLES)
    found = probe_unwind(probe)
    probe.check()
    return found
