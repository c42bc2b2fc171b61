"""Memory cgroups: which one a page is charged to, and which one a task is in.

Shapes, newest first:
- a page's `memcg_data` is an obj_cgroup's address for user pages, too (7.1, include/linux/memcontrol.h,
  `folio_memcg`); before, a mem_cgroup's, but for pages of the kernel's. Which, no type says: it is measured at a user
  page of the running task, whose memory cgroup is known by another way (`charges_by_objcg`).
- the low bits of `memcg_data` are three, MEMCG_DATA_OBJEXTS, MEMCG_DATA_KMEM and one for extensions (6.10, `enum
  objext_flags`); before, two: MEMCG_DATA_OBJCGS, MEMCG_DATA_KMEM (5.11, "mm: memcontrol/slab: Use helpers to access
  slab page's memcg_data"). A page of the kernel's is charged by way of an obj_cgroup since 5.13 ("mm: memcontrol: use
  obj_cgroup APIs to charge kmem pages"); 5.11 and 5.12, where the same flag stands for another pointer, are refused:
  `struct obj_stock` (5.14 to 5.16), `struct folio` (5.16) or `struct slab` (5.17) says that a kernel is newer.
- the word is `page.mem_cgroup`, a mem_cgroup's address for user pages and the kernel's alike, or of a slab
  `page.obj_cgroups`, bit 0 set; a page of the kernel's is told by its type, PG_kmemcg (5.9 to 5.10, "mm: memcg/slab:
  allocate obj_cgroups for non-root slab pages", include/linux/page-flags.h).

Source: include/linux/memcontrol.h, include/linux/cgroup-defs.h (struct css_set, struct cgroup_subsys_state).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.address import to_signed
from thinbox.errors import MissingFactError
from thinbox.isolation.view_rules import DATA_FLAGS, DATA_KMEM, DATA_OBJCGS
from thinbox.kernel.page import KMEM_BIT, TYPE_BASE, TypeTest
from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "views cannot tell whose a page or a task is"


@dataclass(frozen=True, slots=True)
class MemcgShape:
    """Offsets from a page, a task and a cgroup to its memory cgroup; `flags` are the low bits of `memcg_data`.

    The word at `kernel_at`, under `kernel_mask`, is `kernel_value` of a page of the kernel's own that is charged, by
    way of an obj_cgroup if `kernel_by_objcg`.
    """

    data_at: int
    flags: int
    kernel_at: int
    kernel_mask: int
    kernel_value: int
    kernel_by_objcg: bool
    root_at: int
    objcg_memcg_at: int
    task_cgroups_at: int
    set_css_at: int
    memcg_css_at: int
    css_parent_at: int


_NEWER = ("slab", "folio", "obj_stock")


def _flags(probe: Probe) -> int:
    """Return the low bits of `memcg_data`."""
    vector, kmem = probe.enumerator("MEMCG_DATA_OBJEXTS", "MEMCG_DATA_OBJCGS"), probe.enumerator("MEMCG_DATA_KMEM")
    if None not in (vector, kmem) and (vector, kmem) != (DATA_OBJCGS, DATA_KMEM):
        probe.lacks("flags of memcg_data that are known")
    if probe.has_enumerator("__NR_OBJEXTS_FLAGS"):
        return DATA_FLAGS | (probe.enumerator("__NR_OBJEXTS_FLAGS") or 1) - 1
    return DATA_FLAGS


def probe_memcg(probe: Probe) -> MemcgShape:
    """Find it; what is missing is noted in `probe`."""
    word = probe.member("page.memcg_data", "page.mem_cgroup")
    data_at, flags = probe.offset(word) if word else 0, DATA_FLAGS
    if word == "page.mem_cgroup":
        type_at = probe.offset("page.page_type")
        test, shift = TypeTest.of_bit(KMEM_BIT, TYPE_BASE), 8 * (type_at & 7)
        kernel = (type_at & ~7, to_signed(test.mask << shift), to_signed(test.wanted << shift))
        if probe.member("page.obj_cgroups") and probe.offset("page.obj_cgroups") != data_at:
            probe.lacks("page.obj_cgroups in the place of page.mem_cgroup")
    else:
        kernel, flags = (data_at, DATA_KMEM, DATA_KMEM), _flags(probe)
        if word and not any(probe.has_type(name) for name in _NEWER):
            probe.lacks("pages of the kernel's charged by way of an obj_cgroup (5.13)")
    memory_id = probe.enumerator("memory_cgrp_id") or 0
    return MemcgShape(
        data_at=data_at,
        flags=flags,
        kernel_at=kernel[0],
        kernel_mask=kernel[1],
        kernel_value=kernel[2],
        kernel_by_objcg=word != "page.mem_cgroup",
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
