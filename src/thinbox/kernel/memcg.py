"""Memory cgroups: which one a page is charged to, and which one a task is in.

Shapes, newest first:
- a page's `memcg_data` is an obj_cgroup's address for user pages, too (7.1, include/linux/memcontrol.h,
  `folio_memcg`); before, a mem_cgroup's, but for pages of the kernel's. Which, no type says: it is measured at a user
  page of the running task, whose memory cgroup is known by another way (`charges_by_objcg`).
- the low bits of `memcg_data` are three, MEMCG_DATA_OBJEXTS, MEMCG_DATA_KMEM and one for extensions (6.10, `enum
  objext_flags`); before, two: MEMCG_DATA_OBJCGS, MEMCG_DATA_KMEM (5.11, "mm: memcontrol/slab: Use helpers to access
  slab page's memcg_data").

Source: include/linux/memcontrol.h, include/linux/cgroup-defs.h (struct css_set, struct cgroup_subsys_state).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.errors import MissingFactError
from thinbox.isolation.view_rules import DATA_FLAGS, DATA_KMEM, DATA_OBJCGS
from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "views cannot tell whose a page or a task is"


@dataclass(frozen=True, slots=True)
class MemcgShape:
    """Offsets from a page, a task and a cgroup to its memory cgroup; `flags` are the low bits of `memcg_data`."""

    data_at: int
    flags: int
    root_at: int
    objcg_memcg_at: int
    task_cgroups_at: int
    set_css_at: int
    memcg_css_at: int
    css_parent_at: int


def probe_memcg(probe: Probe) -> MemcgShape:
    """Find it; what is missing is noted in `probe`."""
    flags = DATA_FLAGS
    vector, kmem = probe.enumerator("MEMCG_DATA_OBJEXTS", "MEMCG_DATA_OBJCGS"), probe.enumerator("MEMCG_DATA_KMEM")
    if None not in (vector, kmem) and (vector, kmem) != (DATA_OBJCGS, DATA_KMEM):
        probe.lacks("flags of memcg_data that are known")
    if probe.has_enumerator("__NR_OBJEXTS_FLAGS"):
        flags |= (probe.enumerator("__NR_OBJEXTS_FLAGS") or 1) - 1
    memory_id = probe.enumerator("memory_cgrp_id") or 0
    return MemcgShape(
        data_at=probe.offset("page.memcg_data"),
        flags=flags,
        root_at=probe.symbol("root_mem_cgroup"),
        objcg_memcg_at=probe.offset("obj_cgroup.memcg"),
        task_cgroups_at=probe.offset("task_struct.cgroups"),
        set_css_at=probe.offset("css_set.subsys") + 8 * memory_id,
        memcg_css_at=probe.offset("mem_cgroup.css"),
        css_parent_at=probe.offset("cgroup_subsys_state.parent"),
    )


def find_memcg_shape(facts: "KernelFacts") -> MemcgShape:
    """Return it; `MissingFactError` if this kernel charges in another way."""
    probe = Probe(facts, "memory cgroups", DISABLES)
    found = probe_memcg(probe)
    probe.check()
    return found


def find_page_owner(facts: "KernelFacts") -> int:
    """Return the offset in `struct page` of the word that says whom a page is charged to: `memcg_data`, or before 5.11
    `mem_cgroup`, which has no flags; `MissingFactError` if there is neither."""
    probe = Probe(facts, "memory cgroups", "the owner of a page cannot be forged")
    found = probe.offset("page.memcg_data", "page.mem_cgroup")
    probe.check()
    return found


def charges_by_objcg(pointers: Iterable[int], own: Callable[[int], bool], memcg_of: Callable[[int], int]) -> bool:
    """Tell whether user pages are charged by way of an obj_cgroup.

    `pointers` are what user pages of a task have in `memcg_data`, flags taken off; `own` tells whether a memory cgroup
    is the task's, or one above it; `memcg_of` reads the one an obj_cgroup stands for.

    Raises:
        MissingFactError: none of the pages says so in a way that is known.
    """
    for pointer in pointers:
        if own(pointer):
            return False
        if own(memcg_of(pointer)):
            return True
    raise MissingFactError.of("memory cgroups", ["user page of this task that says whose it is"], DISABLES)
