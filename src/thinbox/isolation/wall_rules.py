"""The wall: what is enforced for physical pages, whoever made the page table and whoever runs.

Why it exists: a reduced page table judges reach, in a call. Damage can be planted in a call and used outside: by user
code through its own page tables, by an interrupt, by the kernel's patched text. Each of these passes the TLB fill.

Rules of this file:
- The subset of Python that Numba compiles, but for the verdicts.
- "No" whenever in doubt: then Python judges, with the page's facts (`enforcement.wall`).

Source: Linux 6.1 arch/x86/kernel/vmlinux.lds.S, arch/x86/mm/init_64.c (mark_rodata_ro), arch/x86/kernel/alternative.c
(__text_poke), arch/x86/entry/vdso/vma.c.
"""

from thinbox.isolation import view_rules
from thinbox.isolation.verdict import Verdict
from thinbox.isolation.view_rules import find_page, is_kernels, is_plain_mapping, is_slab, load_word
from thinbox.paging import Words

SEALED, FOR_ALL, DATA_FOR_ALL = 1, 2, 3
"""Seals of a page: text and read-only data; zeros and the vDSO, which all may map; the vDSO's data, which the kernel
writes. A page without one has 0."""
STORE, CODE, MAPPING = 1, 2, 3
"""What an access met: rules W1, W2 and W3."""
SEEN_READ, SEEN_WRITE, SEEN_CHARGE, SEEN_FILE, SEEN_NUMBER, SEEN_GENERATION, SEEN_OWNER, SEEN_SUPER = range(8)
SEEN_WORDS = 8
"""What was judged of a page of page cache: the tenant that may read it, the task that may write it; and what page and
file it was: its charge and address_space, of the inode the number, the generation and the group, owner and mode,
and the super block."""


def is_users_page(words: Words, frame_end: int, root: int, view: Words, paddr: int) -> bool:
    """Tell whether the page of `paddr` is user memory or page cache: what holds no code of the kernel's."""
    at = find_page(words, frame_end, root, view, paddr)
    if at < 0 or words[(at + view[view_rules.FLAGS_AT]) >> 3] & view[view_rules.RESERVED]:
        return False
    if is_slab(words, view, at):
        return False
    data = words[(at + view[view_rules.MEMCG_AT]) >> 3]
    if data & view_rules.DATA_FLAGS or (data != 0 and is_kernels(words, view, at)):
        return False
    return data != 0 or words[(at + view[view_rules.MAPPING_AT]) >> 3] != 0


def file_number(words: Words, frame_end: int, root: int, view: Words, inode: int) -> int:
    """Return an inode's number."""
    return load_word(words, frame_end, root, inode + view[view_rules.NUMBER_AT])


def file_generation(words: Words, frame_end: int, root: int, view: Words, inode: int) -> int:
    """Return an inode's generation, in which two differ that have one number, and above it its group."""
    word = load_word(words, frame_end, root, inode + view[view_rules.GENERATION_AT])
    group = load_word(words, frame_end, root, inode + view[view_rules.GID_AT]) >> view[view_rules.GID_SHIFT]
    # 31 bits of the group: in Python, too, it is a signed word.
    return ((group & 0x7FFFFFFF) << 32) | ((word >> view[view_rules.GENERATION_SHIFT]) & 0xFFFFFFFF)


def file_owner(words: Words, frame_end: int, root: int, view: Words, inode: int) -> int:
    """Return an inode's mode (16 bits), and above it whose it is."""
    mode = load_word(words, frame_end, root, inode + view[view_rules.MODE_AT]) >> view[view_rules.MODE_SHIFT]
    user = load_word(words, frame_end, root, inode + view[view_rules.UID_AT]) >> view[view_rules.UID_SHIFT]
    return (user & 0xFFFFFFFF) << 16 | (mode & 0xFFFF)


def is_as_seen(words: Words, frame_end: int, root: int, view: Words, seen: Words, at: int) -> bool:
    """Tell whether the page (struct page at `at`) is the one of the file that was judged, and the file unchanged.

    An address_space may be another file's by now: the inode's number and generation say so. A file that its owner has
    closed to others since is judged again.
    """
    charge, mapping = words[(at + view[view_rules.MEMCG_AT]) >> 3], words[(at + view[view_rules.MAPPING_AT]) >> 3]
    if charge == 0 or mapping == 0 or mapping & view_rules.MAPPING_FLAGS:
        return False
    if seen[SEEN_CHARGE] != charge or seen[SEEN_FILE] != mapping:
        return False
    inode = load_word(words, frame_end, root, mapping + view[view_rules.HOST_AT])
    return bool(
        seen[SEEN_NUMBER] == file_number(words, frame_end, root, view, inode)
        and seen[SEEN_GENERATION] == file_generation(words, frame_end, root, view, inode)
        and seen[SEEN_OWNER] == file_owner(words, frame_end, root, view, inode)
        and seen[SEEN_SUPER] == load_word(words, frame_end, root, inode + view[view_rules.SUPER_AT])
    )


def note_file(words: Words, frame_end: int, root: int, view: Words, seen: Words, at: int) -> bool:
    """Write into `seen` which page and file it is, and that nobody may have it yet; False if it is no page cache."""
    charge, mapping = words[(at + view[view_rules.MEMCG_AT]) >> 3], words[(at + view[view_rules.MAPPING_AT]) >> 3]
    if charge == 0 or mapping == 0 or mapping & view_rules.MAPPING_FLAGS:
        return False
    inode = load_word(words, frame_end, root, mapping + view[view_rules.HOST_AT])
    seen[SEEN_READ] = seen[SEEN_WRITE] = 0
    seen[SEEN_CHARGE], seen[SEEN_FILE] = charge, mapping
    seen[SEEN_NUMBER] = file_number(words, frame_end, root, view, inode)
    seen[SEEN_GENERATION] = file_generation(words, frame_end, root, view, inode)
    seen[SEEN_OWNER] = file_owner(words, frame_end, root, view, inode)
    seen[SEEN_SUPER] = load_word(words, frame_end, root, inode + view[view_rules.SUPER_AT])
    return True


def is_admitted(
    words: Words,
    frame_end: int,
    root: int,
    view: Words,
    seen: Words,
    tenant: int,
    task: int,
    seal: int,
    paddr: int,
    is_store: bool,
) -> bool:
    """Tell whether the page of `paddr` is plainly for user code of `tenant` to read, or for `task` of it to store to.

    `seen` are the `SEEN_WORDS` of the page. Page cache may be stored to by whoever may write the file, whoever it is
    charged to: that is judged.
    """
    if seal >= FOR_ALL:
        return not is_store
    at = find_page(words, frame_end, root, view, paddr)
    if at < 0:
        return False
    mapping = words[(at + view[view_rules.MAPPING_AT]) >> 3]
    is_memory = mapping & view_rules.MAPPING_FLAGS
    if (is_memory or not is_store) and is_plain_mapping(words, frame_end, root, view, paddr):
        return True
    if (seen[SEEN_WRITE] != task) if is_store else (seen[SEEN_READ] != tenant):
        return False
    return is_as_seen(words, frame_end, root, view, seen, at)


REFUSED = {
    STORE: Verdict(
        granted=False, rule="W1", reason="a store to what nobody but the kernel's own patching of text writes"
    ),
    CODE: Verdict(granted=False, rule="W2", reason="kernel code from where none is"),
}
"""What is refused without a look at the page's owner."""


def refused_mapping(reason: str) -> Verdict:
    """Return the verdict on an access of user code, or by a user address, to a page that is not the tenant's to map."""
    return Verdict(granted=False, rule="W3", reason=f"an access of user code: {reason}")
