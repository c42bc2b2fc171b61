"""The modes of isolation that are compared, and what each asks of the CPU.

Why it exists: one table, from which the replay, the report and the page take names and meanings.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mode:
    """One mode. `sci`: calls run on tables of their own; `wants_pcid`: None for whatever the CPU has; `flush_own`:
    every write of an SCI root flushes its tag; `prefault`: which grants are mapped beforehand ("", "profile" or
    "task"); `keeps`: grants survive the call; `asi`: leave a restricted table instead of killing."""

    name: str
    title: str
    gives_away: str
    pti: bool = False
    sci: bool = False
    wants_pcid: bool | None = None
    flush_own: bool = False
    prefault: str = ""
    keeps: bool = False
    asi: bool = False


MODES = (
    Mode("none", "no isolation", "everything: the kernel is one address space for all"),
    Mode(
        "pti", "page-table isolation", "user code is kept from kernel mappings; kernel code is not isolated", pti=True
    ),
    Mode(
        "sci",
        "SCI as proposed",
        "nothing beyond what the policy grants in one call",
        sci=True,
        flush_own=True,
    ),
    Mode("sci-pcid", "SCI, a tag for each table, no needless flush", "as sci", sci=True, wants_pcid=True),
    Mode("sci-nopcid", "SCI without PCIDs", "as sci", sci=True, wants_pcid=False),
    Mode(
        "sci-prepopulated",
        "SCI, known pages mapped beforehand",
        "the kernel-image pages other calls of the same name touched, and data pages the task was granted before",
        sci=True,
        prefault="profile",
    ),
    Mode(
        "sci-keep",
        "SCI, grants kept across the calls of a task",
        "every page, code too, that any earlier call of the task was granted",
        sci=True,
        prefault="task",
        keeps=True,
    ),
    Mode(
        "asi",
        "ASI-like: no kill, all that is not sensitive mapped",
        "all kernel code, and all data not marked sensitive; an exploit is slowed, not seen",
        asi=True,
    ),
)


def find_mode(name: str) -> Mode | None:
    """Return the mode called `name`, or None."""
    return next((mode for mode in MODES if mode.name == name), None)
