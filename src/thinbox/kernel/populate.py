"""The call by which a process has the kernel bring one of its pages in, as a read or a write of it would.

Shapes, newest first:
- `madvise(page, 4096, MADV_POPULATE_READ or _WRITE)` (5.14, commit 4ca9b3859dac "mm/madvise: introduce
  MADV_POPULATE_(READ|WRITE) to prefault page tables"), told by the function it faults pages in with, which is
  `faultin_page_range` (6.10, commit 631426ba1d45 "mm/madvise: make MADV_POPULATE_(READ|WRITE) handle VM_FAULT_RETRY
  properly") and was `faultin_vma_page_range`.
- before, `futex`, of which two forms touch a word and do no more: FUTEX_CMP_REQUEUE of no waiter reads it, and
  FUTEX_WAKE_OP writes it back as it was (`|= 0`, atomically) and fails behind that, before it wakes anybody, for a
  comparison that there is not. Both are private to the process, so the word is named by its address, and its page is
  not needed before it is touched; it is faulted in as for the process itself, or the call fails with EFAULT.

Source: mm/madvise.c (`madvise_populate`), include/uapi/asm-generic/mman-common.h; Linux 5.10 kernel/futex.c
(`futex_requeue`, `futex_wake_op`, `futex_atomic_op_inuser`), include/uapi/linux/futex.h.
"""

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.address import PAGE_BYTES
from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "what a plan answers outside the kernel fails where its buffer was never touched"
_MADVISE = ("faultin_page_range", "faultin_vma_page_range")
_FUTEX = "futex_requeue"
_POPULATE_READ, _POPULATE_WRITE = 22, 23
_PRIVATE = 128
_CMP_REQUEUE, _WAKE_OP = 4 | _PRIVATE, 5 | _PRIVATE
_OR_NOTHING = 2 << 28 | 15 << 24
"""FUTEX_OP_OR of 0, and a comparison that is none (FUTEX_OP_CMP_EQ to FUTEX_OP_CMP_GE are 0 to 5)."""


@dataclass(frozen=True, slots=True)
class PopulateCall:
    """The call `name` with six arguments; `done` are its results (signed) where the page was brought in."""

    name: str
    arguments: tuple[int, ...]
    done: frozenset[int]


@dataclass(frozen=True, slots=True)
class Populate:
    """How this kernel is asked."""

    by_madvise: bool

    def call(self, page: int, *, write: bool) -> PopulateCall:
        """Return the call that brings in the page that starts at `page`, a user address."""
        if self.by_madvise:
            advice = _POPULATE_WRITE if write else _POPULATE_READ
            return PopulateCall("madvise", (page, PAGE_BYTES, advice, 0, 0, 0), frozenset({0}))
        if write:
            return PopulateCall("futex", (page, _WAKE_OP, 0, 0, page, _OR_NOTHING), frozenset({-errno.ENOSYS}))
        return PopulateCall("futex", (page, _CMP_REQUEUE, 0, 0, page, 0), frozenset({0, -errno.EAGAIN}))


def probe_populate(probe: Probe) -> Populate:
    """Find it; what is missing is noted in `probe`."""
    probe.symbol(*_MADVISE, _FUTEX)
    return Populate(any(probe.has_symbol(name) for name in _MADVISE))


def find_populate(facts: "KernelFacts") -> Populate:
    """Return it; `MissingFactError` if this kernel can be asked in neither way."""
    probe = Probe(facts, "bringing pages in", DISABLES)
    found = probe_populate(probe)
    probe.check()
    return found
