"""The TLB model: two levels, paging-structure caches, PCID tags, global pages, pages of 4 KiB, 2 MiB and 1 GiB.

Why it exists: the price of a table switch is mostly the misses after it. This counts them for a trace of
page references on the geometry of one CPU.

Rules of this file:
- The subset of Python that Numba compiles (see `machine.compiled`); state is one `int64` array.
- Replacement is least recently used. Real CPUs approximate it (pseudo-LRU); the modes differ by flushes, not by it.
- A flush costs nothing here: it notes the time, and an entry older than the last flush of its tag is dead. Dead
  entries are replaced first, as if they had been removed.

Source: Intel SDM vol. 3A, 4.10 (caching translation information, invalidation); AMD APM vol. 2, 5.5.
"""

from thinbox.paging import Words

HIT_L1, HIT_L2, WALK = 0, 1, 2

KINDS = 8
I4K, I2M, D4K, D2M, D1G, SECOND_I, SECOND_D, SECOND_1G = range(KINDS)
"""Structures: first-level instruction and data by page size, second level. SECOND_I equal to SECOND_D in the
geometry means one unified structure; a missing one has no ways."""
PDE, PDPTE, PML4E = 8, 9, 10
STRUCTURES = 11
"""Paging-structure caches, fully associative: which level a walk can start below."""

GEOMETRY_COLUMNS = 4
G_START, G_SETS, G_WAYS, G_ALIAS = range(GEOMETRY_COLUMNS)
"""Of each structure in the head of the state: first word of its entries, sets (a power of two), ways, and its own
number or that of the structure it shares."""

TAGS = 64
"""Room for tags: PCIDs, or the single tag 0 of a CPU without; `GLOBAL` marks global entries."""
GLOBAL = TAGS - 1
HEAD = STRUCTURES * GEOMETRY_COLUMNS
CLOCK = HEAD
FLUSHED = HEAD + 1
FLUSHED_PSC = FLUSHED + TAGS
ENTRIES = FLUSHED_PSC + TAGS
"""Layout of the state: geometry, the clock of flushes, the time of each tag's last flush (entries, then
paging-structure entries), then (key, time) pairs, each set in order of use."""


def tlb_key(vaddr_page: int, shift: int, tag: int) -> int:
    """Return the key of a translation: the page's number at its own size, the size, the tag."""
    return ((vaddr_page >> (shift - 12)) << 10) | ((shift - 12) // 9 << 8) | tag


def probe(s: Words, structure: int, key: int, index: int) -> bool:
    """Look `key` up in set `index`; move it to the front and return True if a living entry has it."""
    row = structure * GEOMETRY_COLUMNS
    ways = s[row + G_WAYS]
    if ways == 0:
        return False
    first = s[row + G_START] + 2 * ways * (index & (s[row + G_SETS] - 1))
    alive = s[FLUSHED + (key & 255)] if structure < PDE else s[FLUSHED_PSC + (key & 255)]
    if s[first] == key and s[first + 1] >= alive:
        return True
    for way in range(1, ways):
        at = first + 2 * way
        if s[at] == key:
            born = s[at + 1]
            if born < alive:
                return False
            while at > first:
                s[at] = s[at - 2]
                s[at + 1] = s[at - 1]
                at -= 2
            s[first] = key
            s[first + 1] = born
            return True
    return False


def insert(s: Words, structure: int, key: int, index: int) -> None:
    """Put `key`, known to be absent or dead, in front of set `index`, over a dead entry or the least recently used.

    Preconditions: `probe` has just returned False for it.
    """
    row = structure * GEOMETRY_COLUMNS
    ways = s[row + G_WAYS]
    if ways == 0:
        return
    first = s[row + G_START] + 2 * ways * (index & (s[row + G_SETS] - 1))
    base = FLUSHED if structure < PDE else FLUSHED_PSC
    last = first + 2 * (ways - 1)
    at = first
    while at < last:
        held = s[at]
        if held == key or held < 0 or s[at + 1] < s[base + (held & 255)]:
            break
        at += 2
    while at > first:
        s[at] = s[at - 2]
        s[at + 1] = s[at - 1]
        at -= 2
    s[first] = key
    s[first + 1] = s[CLOCK]


def first_level(shift: int, code: bool) -> int:
    """Return the first-level structure for a page of 2**shift bytes."""
    if code:
        return I4K if shift == 12 else I2M
    if shift == 12:
        return D4K
    return D2M if shift == 21 else D1G


def access(s: Words, page: int, shift: int, tag: int, context: int, code: bool) -> int:
    """Translate one reference; return loads of the walk << 2 | `HIT_L1`, `HIT_L2` or `WALK`.

    `page` is the 4 KiB page number, non-negative; the page lies in a mapping of 2**shift bytes.
    `context` is the tag in use, `tag` that or `GLOBAL`.
    """
    key = tlb_key(page, shift, tag)
    number = page >> (shift - 12)
    one = first_level(shift, code)
    one = s[one * GEOMETRY_COLUMNS + G_ALIAS]
    if probe(s, one, key, number):
        return HIT_L1
    two = SECOND_1G if shift == 30 else (SECOND_I if code else SECOND_D)
    two = s[two * GEOMETRY_COLUMNS + G_ALIAS]
    if probe(s, two, key, number):
        insert(s, one, key, number)
        return HIT_L2
    loads = walk(s, page, shift, context)
    insert(s, one, key, number)
    insert(s, two, key, number)
    return loads << 2 | WALK


def walk(s: Words, page: int, shift: int, context: int) -> int:
    """Count the page-table entries a walk loads, with the paging-structure caches; fill them.

    The caches are tagged by PCID, also for global pages (SDM 4.10.3): a walk uses the entries of its tag.
    """
    pde, pdpte, pml4e = tlb_key(page, 21, context), tlb_key(page, 30, context), tlb_key(page, 39, context)
    loads = (48 - shift) // 9
    if shift == 12 and probe(s, PDE, pde, 0):
        return 1
    if shift <= 21 and probe(s, PDPTE, pdpte, 0):
        loads = 2 if shift == 12 else 1
    else:
        if probe(s, PML4E, pml4e, 0):
            loads -= 1
        else:
            insert(s, PML4E, pml4e, 0)
        if shift <= 21:
            insert(s, PDPTE, pdpte, 0)
    if shift == 12:
        insert(s, PDE, pde, 0)
    return loads


def flush_tag(s: Words, tag: int) -> None:
    """Forget every entry of `tag`, global ones excepted (CR3 write, INVPCID of a single context)."""
    s[CLOCK] += 1
    s[FLUSHED + tag] = s[CLOCK]
    s[FLUSHED_PSC + tag] = s[CLOCK]


def flush_all(s: Words) -> None:
    """Forget everything, global entries too (CR4.PGE toggled, INVPCID of all contexts)."""
    s[CLOCK] += 1
    for i in range(2 * TAGS):
        s[FLUSHED + i] = s[CLOCK]


def flush_page(s: Words, page: int, tag: int) -> None:
    """INVLPG: forget the page in `tag` and globally, at every size, and all paging-structure entries of `tag`."""
    for structure in range(KINDS):
        row = structure * GEOMETRY_COLUMNS
        ways = s[row + G_WAYS]
        for step in range(3):
            shift = 12 + 9 * step
            number = page >> (shift - 12)
            for which in range(2):
                key = tlb_key(page, shift, tag if which == 0 else GLOBAL)
                if ways == 0:
                    continue
                first = s[row + G_START] + 2 * ways * (number & (s[row + G_SETS] - 1))
                for way in range(ways):
                    if s[first + 2 * way] == key:
                        s[first + 2 * way + 1] = -1
    s[CLOCK] += 1
    s[FLUSHED_PSC + tag] = s[CLOCK]


def run_trace(s: Words, ops: Words, count: int, out: Words) -> None:
    """Run `count` rows of `ops` (op, page, shift, tag, context, is code) and store each result in `out`.

    Ops: 0 access, 1 flush of a tag, 2 flush of all, 3 INVLPG. For tests and the benchmark.
    """
    for i in range(count):
        at = 6 * i
        op = ops[at]
        if op == 0:
            out[i] = access(s, ops[at + 1], ops[at + 2], ops[at + 3], ops[at + 4], ops[at + 5] != 0)
        elif op == 1:
            flush_tag(s, ops[at + 3])
        elif op == 2:
            flush_all(s)
        else:
            flush_page(s, ops[at + 1], ops[at + 3])
