"""A set of yes-and-no combinations as few conditions: Quine's prime implicants, then the largest first.

Why it exists: of 2^n containers with this or that capability, a person reads "with CAP_A" and not the list.
"""

from collections.abc import Iterable

Way = tuple[bool | None, ...]
"""One condition: each place must be so; None is either."""


def cover(wanted: Iterable[tuple[bool, ...]], places: int) -> list[Way]:
    """Return ways that together hold for exactly `wanted`, combinations of `places` values; at most about 8 places."""
    left = set(wanted)
    chosen: list[Way] = []
    primes = sorted(_primes(left), key=lambda way: (sum(value is not None for value in way), str(way)))
    while left:
        best = max(primes, key=lambda way: sum(_holds(way, combination) for combination in left))
        chosen.append(best)
        left = {combination for combination in left if not _holds(best, combination)}
    return chosen


def _holds(way: Way, combination: tuple[bool, ...]) -> bool:
    return all(value is None or value == given for value, given in zip(way, combination, strict=True))


def _primes(wanted: set[tuple[bool, ...]]) -> set[Way]:
    level: set[Way] = set(wanted)
    found: set[Way] = set()
    while level:
        merged: set[Way] = set()
        used: set[Way] = set()
        for way in level:
            for place, value in enumerate(way):
                if value is False:
                    other = (*way[:place], True, *way[place + 1 :])
                    if other in level:
                        merged.add((*way[:place], None, *way[place + 1 :]))
                        used |= {way, other}
        found |= level - used
        level = merged
    return found
