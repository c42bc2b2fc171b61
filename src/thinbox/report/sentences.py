"""Sentences on what was refused and killed, for people: each once, and no more than they read.

Why it exists: a tenant chooses how many there are. The record (`run --json`) has what is left out here.
"""

from collections.abc import Iterable, Mapping, Sequence

from thinbox.records.run import Restored

MOST_SHOWN = 24
"""A terminal's height."""


def shorten(sentences: Iterable[str]) -> list[str]:
    """Return each sentence once, the first of them, and a line that says how many more there are."""
    once = list(dict.fromkeys(sentences))
    left = len(once) - MOST_SHOWN
    return once if left <= 0 else [*once[:MOST_SHOWN], f"… and {left:,} more like these; --json FILE writes the record"]


def outside_line(outside: Mapping[str, int]) -> str:
    """Say what the kernel did for a tenant outside its calls, most often first; empty if nothing was."""
    if not outside:
        return ""
    found = sorted(outside.items(), key=lambda item: (-item[1], item[0]))
    return "outside calls: " + "; ".join(f"{name} {times:,}" for name, times in found)


def restored_line(restored: Sequence[Restored]) -> str:
    """Say what policy `guard` put back; empty if nothing was."""
    if not restored:
        return ""
    first, more = restored[0], len(restored) - 1
    who = "which the call had written" if first.by_the_call else "which that call had not written"
    others = f"; {more:,} more" if more else ""
    return f"put back by rule {first.rule}: an object of {first.whose} at {first.vaddr:#x}, {who} (in {first.during}){others}"
