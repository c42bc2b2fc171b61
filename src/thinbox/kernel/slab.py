"""Slabs: which cache an object is of, how large it is, and where its owner stands.

Shapes, newest first:
- a vector of `struct slabobj_ext` at `slab.obj_exts`, or the extensions in the objects themselves, one object's size
  apart (`obj_exts_in_object`, 7.0); the owner, if the slab has owners (`obj_exts_needs_objcg`, 7.3), is `_objcg`.
- such a vector, the owner being `slabobj_ext.objcg` (6.10, "slab: objext: introduce objext_flags as extension to
  page_memcg_data_flags" and its series: MEMCG_DATA_OBJEXTS, and a third flag bit in the word).
- a vector of `struct obj_cgroup *` at `slab.memcg_data` (5.17, "mm/slab: Convert most struct page to struct slab";
  MEMCG_DATA_OBJCGS).
- the same, but a slab is described in `struct page`: the vector at `page.memcg_data` (5.11 to 5.16), or at
  `page.obj_cgroups` (5.9, "mm: memcg/slab: allocate obj_cgroups for non-root slab pages"). `struct page` has the
  members of all slab allocators; which one the kernel has, `struct kmem_cache` says.

An extension that also has room for allocation profiling (CONFIG_MEM_ALLOC_PROFILING, 6.10) is two words, one behind the
other (`ref`); where the two share one place (7.3, `_ctref`), an extension may be one word or two, as a static key says
that is not looked at: such a kernel is refused.

Source: mm/slab.h (`struct slab`, `slab_obj_ext`), include/linux/memcontrol.h (`enum objext_flags`),
include/linux/mm_types.h (`struct page`), include/linux/slub_def.h (`struct kmem_cache`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "views cannot tell whose an object is"
_POINTER_BYTES = 8


@dataclass(frozen=True, slots=True)
class SlabShape:
    """Offsets in `struct slab` and `struct kmem_cache`; owners are `owner_bytes` apart in their vector.

    `in_object` and `owned` are masks in the word at `objects_at`, 0 where this kernel has no such bit.
    """

    cache_at: int
    cache_name_at: int
    cache_size_at: int
    objects_at: int
    objects_shift: int
    objects_mask: int
    vector_at: int
    owner_bytes: int
    owner_at: int
    in_object: int
    owned: int


def _mask(probe: Probe, path: str, word_at: int) -> int:
    """Return the mask of a bit of `struct slab` in the word at `word_at`; 0 if this kernel has no such bit."""
    if not probe.has_member(path):
        return 0
    bit, width = probe.bits(path)
    if bit // 64 * 8 != word_at:
        probe.lacks(f"{path} beside slab.objects")
    return ((1 << width) - 1) << bit % 64


def _owners(probe: Probe) -> tuple[int, int]:
    """Return the bytes from one `struct slabobj_ext` to the next, and where in it the owner stands."""
    at = probe.offset("slabobj_ext._objcg", "slabobj_ext.objcg")
    for tag in ("slabobj_ext._ctref", "slabobj_ext.ref"):
        if probe.has_member(tag) and probe.offset(tag) == at:
            probe.lacks("extension of slab objects without allocation profiling (CONFIG_MEM_ALLOC_PROFILING=n)")
    return probe.size("slabobj_ext"), at


def probe_slab(probe: Probe) -> SlabShape:
    """Find it; what is missing is noted in `probe`."""
    bit, width = probe.bits("slab.objects", "page.objects")
    objects_at = bit // 64 * 8
    owner_bytes, owner_at = _POINTER_BYTES, 0
    vector = probe.member("slab.obj_exts", "slab.memcg_data", "page.memcg_data", "page.obj_cgroups")
    if vector == "slab.obj_exts":
        owner_bytes, owner_at = _owners(probe)
    if probe.has_type("slab") == vector.startswith("page."):
        probe.lacks("vector of owners where the rest of a slab is described")
    if not probe.has_type("slab"):
        probe.member("kmem_cache.cpu_slab")
    return SlabShape(
        cache_at=probe.offset("slab.slab_cache", "page.slab_cache"),
        cache_name_at=probe.offset("kmem_cache.name"),
        cache_size_at=probe.offset("kmem_cache.size"),
        objects_at=objects_at,
        objects_shift=bit % 64,
        objects_mask=(1 << width) - 1,
        vector_at=probe.offset(vector) if vector else 0,
        owner_bytes=owner_bytes,
        owner_at=owner_at,
        in_object=_mask(probe, "slab.obj_exts_in_object", objects_at),
        owned=_mask(probe, "slab.obj_exts_needs_objcg", objects_at),
    )


def find_slab_shape(facts: "KernelFacts") -> SlabShape:
    """Return it; `MissingFactError` if this kernel keeps owners of objects in another way."""
    probe = Probe(facts, "slabs", DISABLES)
    found = probe_slab(probe)
    probe.check()
    return found
