"""Views, the compiled part: is the page behind a data fault plainly the tenant's own, or nobody's?

Why it exists: a view hides other tenants' pages, and this is asked at every data fault. Who owns a page is not
tracked but read, at the fault, where the kernel itself keeps it: `struct page` says which memory cgroup a page is
charged to. It is the physical page that counts, so all its aliases are judged alike.

Rules of this file:
- The subset of Python that Numba compiles.
- False whenever in doubt: then `isolation.page_ownership` judges, in Python, with the page's facts. True grants.

Source: Linux 6.1 and 7.3 include/linux/memcontrol.h (page_memcg_check, slab_objcgs, enum page_memcg_data_flags),
include/linux/page-flags.h (compound_head), mm/slab.h (struct slab, slab_obj_ext), include/asm-generic/memory_model.h;
what each kernel has of it: `thinbox.kernel.page`, `slab` and `memcg`.
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
    SLAB_AT,  # the aligned word that says whether a page is a slab's
    SLAB_MASK,
    SLAB_VALUE,  # of a slab, what that word is under the mask
    OBJCG_MEMCG_AT,
    CACHE_AT,  # slab.slab_cache
    CACHE_SIZE_AT,  # the aligned word that holds kmem_cache.size
    CACHE_SIZE_SHIFT,
    MAPPING_AT,  # page->mapping: of page cache the address_space, low bits 0
    POINTER_MASK,  # of memcg_data, without its flags
    OWNER_BYTES,  # from one owner of a vector to the next
    OWNER_AT,  # where in an element of the vector the pointer to the obj_cgroup lies
    IN_OBJECT,  # mask in the word at OBJECTS_AT: the owners lie in the objects themselves; 0 where they never do
    OWNED,  # mask in that word: the slab's objects have owners; 0 where a vector says so
    BY_OBJCG,  # 1: user pages, too, are charged by way of an obj_cgroup
    KERNEL_AT,  # the aligned word that says whether a charged page is the kernel's own
    KERNEL_MASK,
    KERNEL_VALUE,  # of such a page, what that word is under the mask
    KERNEL_BY_OBJCG,  # 1: such pages are charged by way of an obj_cgroup; 0: by their memory cgroup itself
    HOST_AT,  # address_space.host: the inode
    NUMBER_AT,  # inode.i_ino
    GENERATION_AT,  # the aligned words that hold inode.i_generation, i_mode, i_uid and i_gid
    GENERATION_SHIFT,
    MODE_AT,
    MODE_SHIFT,
    UID_AT,
    UID_SHIFT,
    GID_AT,
    GID_SHIFT,
    SUPER_AT,  # inode.i_sb
) = range(43)
"""Words of the array `view`, the kernel's layout (`thinbox.kernel`); addresses are signed."""
WORD_COUNT = 43

NONE, PERMISSIVE, STRICT = range(3)
NAMES = ("none", "permissive", "strict")

DATA_OBJCGS, DATA_KMEM = 1, 2
DATA_FLAGS = 3
"""Low bits of memcg_data: a vector of owners, one for each slab object; a kernel page's obj_cgroup."""
MAPPING_FLAGS = 3
_MASKS_FROM = -(1 << 32)
"""A tail page's word for its head, signed, is the head's address, below this, or (7.3) a mask for its own, above."""


def load_word(words: Words, frame_end: int, root: int, vaddr: int) -> int:
    """Return the aligned word at a kernel address; 0 if it cannot be read."""
    paddr = translate(words, frame_end, root, vaddr)
    if paddr < 0 or paddr & 7 or paddr + 8 > frame_end:
        return 0
    return words[paddr >> 3]


def memcg_of_objcg(words: Words, frame_end: int, root: int, view: Words, objcg: int) -> int:
    """Return the memory cgroup an obj_cgroup stands for; 0 if it cannot be read."""
    return load_word(words, frame_end, root, objcg + view[OBJCG_MEMCG_AT])


def memcg_of_page(words: Words, frame_end: int, root: int, view: Words, data: int) -> int:
    """Return the memory cgroup that a page with the flagless memcg_data `data` is charged to; 0 for none."""
    if view[BY_OBJCG] and data != 0:
        return memcg_of_objcg(words, frame_end, root, view, data & view[POINTER_MASK])
    return data & view[POINTER_MASK]


def is_kernels(words: Words, view: Words, at: int) -> bool:
    """Tell whether the page (a head, no slab's) whose struct page lies at `at` is charged as the kernel's own."""
    return bool(words[(at + view[KERNEL_AT]) >> 3] & view[KERNEL_MASK] == view[KERNEL_VALUE])


def memcg_of_kernels(words: Words, frame_end: int, root: int, view: Words, data: int) -> int:
    """Return the memory cgroup that such a page with this `memcg_data` is charged to; 0 for none."""
    pointer = data & view[POINTER_MASK]
    return memcg_of_objcg(words, frame_end, root, view, pointer) if view[KERNEL_BY_OBJCG] else pointer


def head_of(words: Words, view: Words, page: int, at: int) -> int:
    """Return the kernel address of the head of the compound page that `page`, a struct page at `at`, belongs to."""
    head = words[(at + view[HEAD_AT]) >> 3]
    if not head & 1:
        return page
    return page & head if head > _MASKS_FROM else head - 1


def find_page(words: Words, frame_end: int, root: int, view: Words, paddr: int) -> int:
    """Return the guest-physical address of the struct page (of the compound page's head) of `paddr`, or -1."""
    page = view[VMEMMAP] + (paddr >> 12) * view[PAGE_BYTES]
    at = translate(words, frame_end, root, page)
    if at < 0 or at & 7 or at + view[PAGE_BYTES] > frame_end:
        return -1
    head = head_of(words, view, page, at)
    if head != page:
        at = translate(words, frame_end, root, head)
        if at < 0 or at & 7 or at + view[PAGE_BYTES] > frame_end:
            return -1
    return at


def is_slab(words: Words, view: Words, at: int) -> bool:
    """Tell whether the page (a head) whose struct page lies at `at` is a slab's."""
    return bool(words[(at + view[SLAB_AT]) >> 3] & view[SLAB_MASK] == view[SLAB_VALUE])


def object_size(words: Words, frame_end: int, root: int, view: Words, at: int) -> int:
    """Return the bytes from one object of a slab to the next; 0 if that cannot be read."""
    cache = words[(at + view[CACHE_AT]) >> 3] + view[CACHE_SIZE_AT]
    size_at = translate(words, frame_end, root, cache)
    if size_at < 0 or size_at & 7 or size_at + 8 > frame_end:
        return 0
    return (words[size_at >> 3] >> view[CACHE_SIZE_SHIFT]) & 0xFFFFFFFF


def owner_stride(words: Words, frame_end: int, root: int, view: Words, at: int) -> int:
    """Return the bytes from one owner of a slab's objects to the next; 0 if the slab keeps none, or it is not known."""
    bits = words[(at + view[OBJECTS_AT]) >> 3]
    if view[OWNED] and not bits & view[OWNED]:
        return 0
    if bits & view[IN_OBJECT]:
        return object_size(words, frame_end, root, view, at)
    return view[OWNER_BYTES]


def holds_only_own(words: Words, frame_end: int, root: int, view: Words, at: int, vector: int) -> bool:
    """Tell whether no object of a slab is charged to anyone but the tenant."""
    count = (words[(at + view[OBJECTS_AT]) >> 3] >> view[OBJECTS_SHIFT]) & view[OBJECTS_MASK]
    stride = owner_stride(words, frame_end, root, view, at)
    if stride <= 0 or stride & 7:
        return False
    own = 0
    place = 0
    for i in range(count):
        vaddr = vector + view[OWNER_AT] + stride * i
        if i == 0 or vaddr & 0xFFF < stride:
            place = translate(words, frame_end, root, vaddr)
            if place < 0 or place & 7:
                return False
        if place + 8 > frame_end:
            return False
        objcg = words[place >> 3]
        place += stride
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
    if at < 0 or not is_slab(words, view, at):
        return False
    data = words[(at + view[MEMCG_AT]) >> 3]
    if not data & DATA_OBJCGS or data & view[POINTER_MASK] == 0:
        return False
    page = view[VMEMMAP] + (paddr >> 12) * view[PAGE_BYTES]
    first = (head_of(words, view, page, translate(words, frame_end, root, page)) - view[VMEMMAP]) // view[PAGE_BYTES]
    size = object_size(words, frame_end, root, view, at)
    stride = owner_stride(words, frame_end, root, view, at)
    if stride <= 0:
        return False
    count = (words[(at + view[OBJECTS_AT]) >> 3] >> view[OBJECTS_SHIFT]) & view[OBJECTS_MASK]
    index = (paddr - (first << 12)) // size if size > 0 else count
    if index < 0 or index >= count:
        return False
    owner_at = translate(words, frame_end, root, (data & view[POINTER_MASK]) + view[OWNER_AT] + stride * index)
    if owner_at < 0 or owner_at & 7 or owner_at + 8 > frame_end:
        return False
    owner = words[owner_at >> 3]
    return owner == 0 or bool(memcg_of_objcg(words, frame_end, root, view, owner) == view[OWN])


def is_plainly_visible(words: Words, frame_end: int, root: int, view: Words, paddr: int) -> bool:
    """Tell whether the page of `paddr` is charged to the tenant alone, or is the kernel's and charged to nobody.

    `root` is the kernel's table, `view` the array of the words above. A page without references is not: it is
    free, or a later page of a larger allocation; or a slab's, of a kernel that does not count those.
    """
    at = find_page(words, frame_end, root, view, paddr)
    if at < 0:
        return False
    flags = words[(at + view[FLAGS_AT]) >> 3]
    if flags & view[RESERVED]:
        return True
    data = words[(at + view[MEMCG_AT]) >> 3]
    pointer = data & view[POINTER_MASK]
    if is_slab(words, view, at):
        return pointer == 0 or bool(data & DATA_OBJCGS and holds_only_own(words, frame_end, root, view, at, pointer))
    if data == 0:
        return bool((words[(at + view[COUNT_AT]) >> 3] >> view[COUNT_SHIFT]) & 0xFFFFFFFF)
    if data & DATA_OBJCGS:
        return False
    if is_kernels(words, view, at):
        return bool(memcg_of_kernels(words, frame_end, root, view, data) == view[OWN])
    memcg = memcg_of_page(words, frame_end, root, view, data)
    return bool(memcg == view[OWN]) or (bool(memcg == view[ROOT]) and view[RULE] == PERMISSIVE)


def is_plain_mapping(words: Words, frame_end: int, root: int, view: Words, paddr: int) -> bool:
    """Tell whether the page of `paddr` is user memory or page cache charged to the tenant, or user memory (under
    `permissive` page cache, too) charged to no tenant: what a user page table may plainly map (rule V7)."""
    at = find_page(words, frame_end, root, view, paddr)
    if at < 0 or words[(at + view[FLAGS_AT]) >> 3] & view[RESERVED] or is_slab(words, view, at):
        return False
    data = words[(at + view[MEMCG_AT]) >> 3]
    if data == 0 or data & DATA_FLAGS or is_kernels(words, view, at):
        return False
    memcg = memcg_of_page(words, frame_end, root, view, data)
    is_memory = words[(at + view[MAPPING_AT]) >> 3] & MAPPING_FLAGS
    return bool(memcg == view[OWN]) or bool(memcg == view[ROOT] and (view[RULE] == PERMISSIVE or is_memory))


def is_foreign_file(words: Words, frame_end: int, root: int, view: Words, paddr: int) -> bool:
    """Tell whether the page of `paddr` is page cache that is not charged to the tenant: read, it may be its to see;
    written, that must be judged (rule V8), so it is granted read-only at first."""
    at = find_page(words, frame_end, root, view, paddr)
    if at < 0 or words[(at + view[FLAGS_AT]) >> 3] & view[RESERVED] or is_slab(words, view, at):
        return False
    data, mapping = words[(at + view[MEMCG_AT]) >> 3], words[(at + view[MAPPING_AT]) >> 3]
    if mapping == 0 or mapping & MAPPING_FLAGS or data & DATA_FLAGS or is_kernels(words, view, at):
        return False
    return bool(memcg_of_page(words, frame_end, root, view, data) != view[OWN])


def view_rule(name: str) -> int:
    """Return the rule of a view's name; InputError for one there is not."""
    if name not in NAMES:
        raise InputError(f"there is no view {name!r}; use {', '.join(NAMES)}")
    return NAMES.index(name)
