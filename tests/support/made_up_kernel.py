"""A kernel of a few words: struct pages, and what they lead to, for rules that compiled code shares."""

from thinbox.isolation import view_rules

MEMMAP, OBJECTS, TOP = -(1 << 46), -(1 << 45), 1 << 20
OWN, ROOT, OTHER = OBJECTS + 0x100, OBJECTS + 0x200, OBJECTS + 0x300
MINE, THEIRS, VECTOR = OBJECTS + 0x400, OBJECTS + 0x500, OBJECTS + 0x600
PAGE = 7 << 12
RESERVED, SLAB = 1 << 12, 1 << 9


class Kernel:
    """struct pages at MEMMAP (guest-physical 0x10000), other objects at OBJECTS (0x20000)."""

    def __init__(self, rule):
        self.words = [0] * (TOP >> 3)
        self.next = 0x2000
        self.put(MEMMAP, 0x10000)
        self.put(OBJECTS, 0x20000)
        self.view = [0] * view_rules.WORD_COUNT
        for at, value in (
            (view_rules.RULE, rule), (view_rules.OWN, OWN), (view_rules.ROOT, ROOT), (view_rules.VMEMMAP, MEMMAP), (view_rules.PAGE_BYTES, 64),
            (view_rules.HEAD_AT, 8), (view_rules.FLAGS_AT, 0), (view_rules.MEMCG_AT, 56), (view_rules.COUNT_AT, 48), (view_rules.COUNT_SHIFT, 32),
            (view_rules.OBJECTS_AT, 40), (view_rules.OBJECTS_SHIFT, 16), (view_rules.OBJECTS_MASK, 0x7FFF), (view_rules.RESERVED, RESERVED),
            (view_rules.SLAB_AT, 0), (view_rules.SLAB_MASK, SLAB), (view_rules.SLAB_VALUE, SLAB), (view_rules.POINTER_MASK, ~3),
            (view_rules.OWNER_BYTES, 8), (view_rules.OBJCG_MEMCG_AT, 16), (view_rules.CACHE_AT, 24), (view_rules.CACHE_SIZE_AT, 24),
            (view_rules.CACHE_SIZE_SHIFT, 32), (view_rules.MAPPING_AT, 32), (view_rules.HOST_AT, 8), (view_rules.NUMBER_AT, 32),
            (view_rules.GENERATION_AT, 40), (view_rules.GENERATION_SHIFT, 32), (view_rules.MODE_SHIFT, 16), (view_rules.UID_AT, 8),
            (view_rules.GID_AT, 16), (view_rules.SUPER_AT, 24),
            (view_rules.KERNEL_AT, 56), (view_rules.KERNEL_MASK, 2), (view_rules.KERNEL_VALUE, 2), (view_rules.KERNEL_BY_OBJCG, 1),
        ):  # fmt: skip
            self.view[at] = value
        self.store(MINE + 16, OWN)
        self.store(THEIRS + 16, OTHER)

    def put(self, vaddr, frame):
        table, shift = 0x1000, 39
        while shift > 12:
            at = (table >> 3) + (vaddr >> shift & 511)
            if not self.words[at]:
                self.words[at] = self.next | 3
                self.next += 0x1000
            table, shift = self.words[at] & ~0xFFF, shift - 9
        self.words[(table >> 3) + (vaddr >> 12 & 511)] = frame | 3

    def store(self, vaddr, value):
        base = 0x10000 if vaddr < OBJECTS else 0x20000
        self.words[(base + (vaddr & 0xFFF)) >> 3] = value

    def page(self, number=7, *, flags=0, head=0, memcg=0, count=1, objects=0, mapping=0, page_type=0):
        values = (
            (0, flags), (8, head), (32, mapping), (40, objects << 16), (48, count << 32 | page_type), (56, memcg)
        )  # fmt: skip
        for at, value in values:
            self.store(MEMMAP + 64 * number + at, value)

    def visible(self):
        return view_rules.is_plainly_visible(self.words, TOP, 0x1000, self.view, PAGE)
