"""The address sanitizer (KASAN): whether freed objects wait in its quarantine, which no view can judge.

Why it exists: with generic KASAN every call chains freed objects of all tenants to one another, frees those of others
that have waited long enough, and writes stack traces into pages that nobody counts. A view would take that for the
call's own work and kill `execve`; so it is refused before.

Shapes: `kasan_quarantine_put` (5.11, commit f00748bfa024 "kasan: prefix global functions with kasan_"); before,
`quarantine_put` (mm/kasan/quarantine.c). The modes with tags have no quarantine.
"""

from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "views would judge what the sanitizer does for all as a call's own work"
QUARANTINE = ("kasan_quarantine_put", "quarantine_put")
LACKING = "freed memory that is its owner's alone (CONFIG_KASAN_GENERIC)"


def probe_sanitizer(probe: Probe) -> None:
    """Note in `probe` if freed objects wait in a quarantine."""
    if any(map(probe.has_variant, QUARANTINE)):
        probe.lacks(LACKING)


def require_no_quarantine(facts: "KernelFacts") -> None:
    """Raise `MissingFactError` if they do."""
    probe = Probe(facts, "address sanitizer", DISABLES)
    probe_sanitizer(probe)
    probe.check()
