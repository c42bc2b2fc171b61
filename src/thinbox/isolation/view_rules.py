"""Views, the compiled part: is the page behind a data fault plainly the tenant's own, or nobody's?

Why it exists: a view hides other tenants' pages, and this is asked at every data fault. Who owns a page is not
tracked but read, at the fault, where the kernel itself keeps it: `struct page` says which memory cgroup a page is
charged to. It is the physical page that counts, so all its aliases are judged alike.

Rules of this file:
- The subset of Python that Numba compiles.
- False whenever in doubt: then `isolation.page_ownership` judges, in Python, with the page's facts. True grants.

Source: Linux 6.1 include/linux/memcontrol.h (page_memcg_check, slab_objcgs, enum page_memcg_data_flags),
include/linux/page-flags.h (compound_head), mm/slab.h (struct slab), include/asm-generic/memory_model.h.
"""

from thinbox.errors import InputError
from thinbox.paging import Words, translate

(
    RULE,
    OWN,  # the tenant's struct mem_cgroup *
    ROOT,  # the root's: charged to it is the memory of no tenant
    VMEMMAP,  # the array of struct page
    PAGE_BYTES,  # size of struct page
    HEAD_AT,  # compound_head: bit 0 set in a tail page
    FLAGS_AT,
    MEMCG_AT,
    COUNT_AT,  # the aligned word that holds _refcount
    COUNT_SHIFT,
    OBJECTS_AT,  # the aligned word that holds slab.objects
    OBJECTS_SHIFT,
    OBJECTS_MASK,
    RESERVED,  # mask of PG_reserved: the kernel's image and what was allocated before there were pages
    SLAB,  # mask of PG_slab
    OBJCG_MEMCG_AT,
    CACHE_AT,  # slab.slab_cache
    CACHE_SIZE_AT,  # the aligned word that holds kmem_cache.size
    CACHE_SIZE_SHIFT,
    MAPPING_AT,  # page->mapping: of page cache the address_space, low bits 0
) = range(20)
"""Words of the array `view`, the kernel's layout by its BTF; addresses are signed."""
WORD_COUNT = 20

NONE, PERMISSIVE, STRICT = range(3)
NAMES = ("none", "permissive", "strict")

DATA_OBJCGS, DATA_KMEM = 1, 2
DATA_FLAGS = 3
MAPPING_FLAGS = 3
"""Low bits of memcg_data: a vector of owners, one for each slab object; a kernel page's obj_cgroup."""


def memcg_of_objcg(words: Words, frame_end: int, root: int, view: Words, objcg: int) -> int:
    """Return the memory cgroup an obj_cgroup stands for; 0 if it cannot be read."""
    paddr = translate(words, frame_end, root, objcg + view[OBJCG_MEMCG_AT])
    if paddr < 0 or paddr & 7 or paddr + 8 > frame_end:
        return 0
    return words[paddr >> 3]


def find_page(words: Words, frame_end: int, root: int, view: Words, paddr: int) -> int:
    """Return the guest-physical address of the struct page (of the compound page's head) of `paddr`, or -1."""
    at = translate(words, frame_end, root, view[VMEMMAP] + (paddr >> 12) * view[PAGE_BYTES])
    if at < 0 or at & 7 or at + view[PAGE_BYTES] > frame_end:
        return -1
    head = words[(at + view[HEAD_AT]) >> 3]
    if head & 1:
        at = translate(words, frame_end, root, head - 1)
        if at < 0 or at & 7 or at + view[PAGE_BYTES] > frame_end:
            return -1
    return at


def holds_only_own(words: Words, frame_end: int, root: int, view: Words, at: int, vector: int) -> bool:
    """Tell whether no object of a slab is charged to anyone but the tenant."""
    count = (words[(at + view[OBJECTS_AT]) >> 3] >> view[OBJECTS_SHIFT]) & view[OBJECTS_MASK]
    own = 0
    place = 0
    for i in range(count):
        vaddr = vector + 8 * i
        if i == 0 or vaddr & 0xFFF == 0:
            place = translate(words, frame_end, root, vaddr)
            if place < 0 or place & 7:
                return False
        if place + 8 > frame_end:
            return False
        objcg = words[place >> 3]
        place += 8
        if objcg != 0 and objcg != own:
            if memcg_of_objcg(words, frame_end, root, view, objcg) != view[OWN]:
                return False
            own = objcg
    return True


def is_object_own(words: Words, frame_end: int, root: int, view: Words, paddr: int) -> bool:
    """Tell whether `paddr`, the very address touched, lies in a slab object charged to the tenant, or to nobody.

    Under `permissive` that is enough (rule V2). False for what is no slab with owners.
    """
    at = find_page(words, frame_end, root, view, paddr)
    if at < 0 or not words[(at + view[FLAGS_AT]) >> 3] & view[SLAB]:
        return False
    data = words[(at + view[MEMCG_AT]) >> 3]
    if not data & DATA_OBJCGS:
        return False
    place = view[VMEMMAP] + (paddr >> 12) * view[PAGE_BYTES]
    own = translate(words, frame_end, root, place)
    head = words[(own + view[HEAD_AT]) >> 3] if own >= 0 and own + view[PAGE_BYTES] <= frame_end else 0
    first = (head - 1 - view[VMEMMAP]) // view[PAGE_BYTES] if head & 1 else paddr >> 12
    cache = words[(at + view[CACHE_AT]) >> 3] + view[CACHE_SIZE_AT]
    size_at = translate(words, frame_end, root, cache)
    if size_at < 0 or size_at & 7 or size_at + 8 > frame_end:
        return False
    size = (words[size_at >> 3] >> view[CACHE_SIZE_SHIFT]) & 0xFFFFFFFF
    count = (words[(at + view[OBJECTS_AT]) >> 3] >> view[OBJECTS_SHIFT]) & view[OBJECTS_MASK]
    index = (paddr - (first << 12)) // size if size > 0 else count
    if index < 0 or index >= count:
        return False
    owner_at = translate(words, frame_end, root, (data & ~DATA_FLAGS) + 8 * index)
    if owner_at < 0 or owner_at & 7 or owner_at + 8 > frame_end:
        return False
    owner = words[owner_at >> 3]
    return owner == 0 or bool(memcg_of_objcg(words, frame_end, root, view, owner) == view[OWN])


def is_plainly_visible(words: Words, frame_end: int, root: int, view: Words, paddr: int) -> bool:
    """Tell whether the page of `paddr` is charged to the tenant alone, or is the kernel's and charged to nobody.

    `root` is the kernel's table, `view` the array of the words above. A page without references is not: it is
    free, or a later page of a larger allocation.
    """
    at = find_page(words, frame_end, root, view, paddr)
    if at < 0:
        return False
    flags = words[(at + view[FLAGS_AT]) >> 3]
    if flags & view[RESERVED]:
        return True
    data = words[(at + view[MEMCG_AT]) >> 3]
    if data == 0:
        return bool((words[(at + view[COUNT_AT]) >> 3] >> view[COUNT_SHIFT]) & 0xFFFFFFFF)
    pointer = data & ~DATA_FLAGS
    if data & DATA_OBJCGS:
        return bool(flags & view[SLAB]) and holds_only_own(words, frame_end, root, view, at, pointer)
    if data & DATA_KMEM:
        return bool(memcg_of_objcg(words, frame_end, root, view, pointer) == view[OWN])
    return bool(pointer == view[OWN]) or (bool(pointer == view[ROOT]) and view[RULE] == PERMISSIVE)


def is_plain_mapping(words: Words, frame_end: int, root: int, view: Words, paddr: int) -> bool:
    """Tell whether the page of `paddr` is user memory or page cache charged to the tenant, or user memory (under
    `permissive` page cache, too) charged to no tenant: what a user page table may plainly map (rule V7)."""
    at = find_page(words, frame_end, root, view, paddr)
    if at < 0 or words[(at + view[FLAGS_AT]) >> 3] & (view[RESERVED] | view[SLAB]):
        return False
    data = words[(at + view[MEMCG_AT]) >> 3]
    if data == 0 or data & DATA_FLAGS:
        return False
    is_memory = words[(at + view[MAPPING_AT]) >> 3] & MAPPING_FLAGS
    return bool(data == view[OWN]) or bool(data == view[ROOT] and (view[RULE] == PERMISSIVE or is_memory))


def is_foreign_file(words: Words, frame_end: int, root: int, view: Words, paddr: int) -> bool:
    """Tell whether the page of `paddr` is page cache that is not charged to the tenant: read, it may be its to see;
    written, that must be judged (rule V8), so it is granted read-only at first."""
    at = find_page(words, frame_end, root, view, paddr)
    if at < 0 or words[(at + view[FLAGS_AT]) >> 3] & (view[RESERVED] | view[SLAB]):
        return False
    data, mapping = words[(at + view[MEMCG_AT]) >> 3], words[(at + view[MAPPING_AT]) >> 3]
    return bool(mapping != 0 and not mapping & MAPPING_FLAGS and not data & DATA_FLAGS and data != view[OWN])


def view_rule(name: str) -> int:
    """Return the rule of a view's name; InputError for one there is not."""
    if name not in NAMES:
        raise InputError(f"there is no view {name!r}; use {', '.join(NAMES)}")
    return NAMES.index(name)
