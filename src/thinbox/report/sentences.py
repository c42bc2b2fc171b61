"""Sentences on what was refused and killed, for people: each once, and no more than they read.

Why it exists: a tenant chooses how many there are. The record (`run --json`) has what is left out here.
"""

from collections.abc import Iterable

MOST_SHOWN = 24
"""A terminal's height."""


def shorten(sentences: Iterable[str]) -> list[str]:
    """Return each sentence once, the first of them, and a line that says how many more there are."""
    once = list(dict.fromkeys(sentences))
    left = len(once) - MOST_SHOWN
    return once if left <= 0 else [*once[:MOST_SHOWN], f"… and {left:,} more like these; --json FILE writes the record"]
