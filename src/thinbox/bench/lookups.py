"""What every start looks up: the facts of the kernel, the function at an address, a system call's name.

Why it exists: these were promises in the tests once, and failed on machines that are a little slower; tests hold how
much is looked at, and here is how long it takes.
"""

import timeit
from collections.abc import Callable
from typing import TYPE_CHECKING

from thinbox.bench.figure import Figure
from thinbox.image.facts import load_facts
from thinbox.image.source import resolve_kernel
from thinbox.syscalls import table

if TYPE_CHECKING:
    from thinbox.image.companions import KernelSpec

_STEP = 500
"""Every so many functions one is looked up."""


def lookup_figures(runs: int, kernel: "str | KernelSpec | None", say: Callable[[str], None]) -> list[Figure]:
    """Measure, the best of `runs` each: other processes can only add to it."""
    say("lookups of a start")
    file = resolve_kernel(kernel)
    _image, facts = load_facts(file)
    symbols = facts.symbols
    places = [start + 3 for start in symbols.text_starts[::_STEP]]

    def find_all() -> None:
        for place in places:
            symbols.text_symbol_at(place)

    def first_call() -> None:
        table._table.cache_clear()
        table._build_info.cache_clear()
        table.call_info(0)

    loaded = min(timeit.repeat(lambda: load_facts(file), number=1, repeat=runs))
    found = min(timeit.repeat(find_all, number=10, repeat=runs)) / 10 / len(places)
    called = min(timeit.repeat(first_call, number=1, repeat=runs))
    return [
        Figure("facts from the cache", loaded, "s", "at most 0.3 s", "the unpacked kernel, its symbols and types"),
        Figure("the function at an address", found * 1e6, "us", "about 1 us", "found before"),
        Figure("the first system call's name", called * 1e3, "ms", "at most 5 ms", "reads the table"),
    ]
