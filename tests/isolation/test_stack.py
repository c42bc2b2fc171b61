"""The walk over a stack by the kernel's unwind table, and the table of approvals, on plain lists."""

import bisect

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.isolation.test_pagetable import KERNEL_ROOT, NX, POOL_FIRST, RAM_END, TEXT_2M, Kernel
from thinbox import paging
from thinbox.isolation import stack
from thinbox.isolation.stack import BROKEN, FRAME_FOUND

STACK = -(1 << 42)
FRAME = 0x6000
F, G, H, ENTRY = TEXT_2M, TEXT_2M + 0x1000, TEXT_2M + 0x2000, TEXT_2M + 0x3000
SP, BP, PREV, BP_IND, SP_IND, NONE = 5, 4, 1, 8, 9, 0


def orc(sp_reg, sp_offset, bp_reg=NONE, bp_offset=0):
    return sp_offset & 0xFFFF | (bp_offset & 0xFFFF) << 16 | sp_reg << 32 | bp_reg << 48


class Walk:
    """A stack page at STACK; `table` is the unwind table: {address: entry}."""

    def __init__(self, table):
        self.kernel = Kernel()
        self.kernel.put(STACK, FRAME | 0x163 | NX, 12)
        self.words = self.kernel.words
        self.ips, self.orc = sorted(table), [table[ip] for ip in sorted(table)]
        self.out = [7, 7, 7]

    def store(self, vaddr, value):
        self.words[(FRAME + vaddr - STACK) >> 3] = value

    def next(self, ip, sp, bp=0):
        return stack.next_frame(
            self.words, POOL_FIRST, KERNEL_ROOT, self.ips, self.orc, len(self.ips), ip, sp, bp, self.out
        )


# -- one frame -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "caller"),
    [
        (orc(SP, 16), STACK + 0x110),
        (orc(SP, -16), STACK + 0xF0),
        (orc(BP, 32), STACK + 0x220),
        (orc(BP, -32), STACK + 0x1E0),
        (orc(BP_IND, 8), STACK + 0x308),
        (orc(BP_IND, -8), STACK + 0x2F8),
        (orc(SP_IND, 24), STACK + 0x418),
        (orc(SP_IND, -24), STACK + 0x3E8),
    ],
)
def test_where_the_caller_is_the_table_says(entry, caller):
    walk = Walk({F: entry})
    sp, bp = STACK + 0x100, STACK + 0x200
    walk.store(bp + 8, STACK + 0x308)
    walk.store(bp - 8, STACK + 0x2F8)
    walk.store(sp, STACK + 0x400)
    walk.store(caller - 8, G + 5)
    assert walk.next(F + 3, sp, bp) == FRAME_FOUND
    assert walk.out == [G + 5, caller, bp]


@pytest.mark.parametrize(
    ("bp_reg", "offset", "wanted"),
    [(NONE, 0, 0x200), (PREV, -16, 0x111), (PREV, 8, 0x112), (BP, 24, 0x221), (BP, -8, 0x222)],
)
def test_where_the_callers_frame_pointer_is_the_table_says_too(bp_reg, offset, wanted):
    walk = Walk({F: orc(SP, 16, bp_reg, offset)})
    sp, bp = STACK + 0x100, STACK + 0x200
    for at, value in ((0x108, G), (0x100, 0x111), (0x118, 0x112), (0x218, 0x221), (0x1F8, 0x222)):
        walk.store(STACK + at, value)
    assert walk.next(F, sp, bp) == FRAME_FOUND
    assert walk.out[stack.CALLER_BP] == (bp if bp_reg == NONE else wanted)


@pytest.mark.parametrize("sp_reg", [0, 1, 2, 3, 6, 7, 10, 15])
def test_a_frame_of_another_kind_cannot_be_followed(sp_reg):
    walk = Walk({F: orc(sp_reg, 16)})
    walk.store(STACK + 0x108, G)
    assert walk.next(F, STACK + 0x100) == BROKEN


@pytest.mark.parametrize("bp_reg", [2, 3, 5, 8, 9])
def test_a_frame_pointer_of_another_kind_cannot_be_followed(bp_reg):
    walk = Walk({F: orc(SP, 16, bp_reg)})
    walk.store(STACK + 0x108, G)
    assert walk.next(F, STACK + 0x100, STACK) == BROKEN


@pytest.mark.parametrize(
    ("ip", "sp"),
    [(F - 1, STACK + 0x100), (F, STACK + 0x104), (F, STACK + 0x1000), (F, 0x100)],
    ids=["before the table", "not aligned", "not mapped", "a user address"],
)
def test_what_cannot_be_read_is_broken(ip, sp):
    walk = Walk({F: orc(SP, 16)})
    for at in range(0, 4096, 8):
        walk.store(STACK + at, G)
    assert walk.next(ip, sp) == BROKEN
    assert walk.next(F, STACK + 0x100) == FRAME_FOUND


def test_no_return_address_is_broken():
    assert Walk({F: orc(SP, 16)}).next(F, STACK + 0x100) == BROKEN


def test_words_at_the_end_of_the_guests_memory_are_read_and_none_behind():
    kernel = Kernel()
    kernel.put(STACK, POOL_FIRST - 0x1000 | 0x163, 12)
    kernel.put(STACK + 0x1000, POOL_FIRST | 0x163, 12)
    kernel.words[POOL_FIRST // 8 - 1] = kernel.words[POOL_FIRST // 8] = 77
    load = lambda vaddr: stack.load_word(kernel.words, POOL_FIRST, KERNEL_ROOT, vaddr)
    assert (load(STACK + 0xFF8), load(STACK + 0x1000), load(STACK + 0xFF9)) == (77, 0, 0)


@given(st.lists(st.integers(0, 60), max_size=20).map(sorted), st.integers(-1, 61))
def test_the_last_at_or_before_is_that_of_the_standard_library(values, wanted):
    assert stack.last_at_or_before(values, len(values), wanted) == bisect.bisect_right(values, wanted) - 1


# -- a whole stack ---------------------------------------------------------------------------------------

ROWS = 64


class Approved(Walk):
    """F was called by G, G by H, H by the entry; every frame approved, every page executable."""

    def __init__(self):
        super().__init__({F: orc(SP, 16), G: orc(SP, 32), H: orc(SP, 8)})
        self.rows = [0] * stack.ROW_WORDS * ROWS
        self.sp = STACK + 0x100
        self.backs = [(self.sp + 8, G + 0x15, F), (self.sp + 40, H + 0x25, G), (self.sp + 48, ENTRY + 5, H)]
        for place, back, start in self.backs:
            self.store(place, back)
            self.approve(back, start, 0, stack.FRAME_TAG)
            self.kernel.grant(back - 1, paging.FAULT_FETCH)
        self.bottoms = [ENTRY + 5]

    def approve(self, *row):
        at = stack.ROW_WORDS * stack.row_of(self.rows, ROWS - 1, *row)
        self.rows[at : at + stack.ROW_WORDS] = row

    def holds(self):
        starts = [F, G, H, ENTRY]
        return stack.is_stack_approved(
            self.words, POOL_FIRST, RAM_END, self.kernel.root, KERNEL_ROOT, self.ips, self.orc, len(self.ips), starts, len(starts),
            self.bottoms, len(self.bottoms), self.rows, ROWS - 1, F + 9, self.sp, 0, self.out,
        )  # fmt: skip


def test_a_stack_of_approved_frames_down_to_the_entry_holds():
    assert Approved().holds()


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("change", ["not approved", "not executed", "another return address", "gone"])
def test_one_frame_that_is_not_as_approved_is_enough(which, change):
    walk = Approved()
    place, back, _start = walk.backs[which]
    if change == "not approved":
        walk.rows = [0] * len(walk.rows)
        for at, (_place, other, start) in enumerate(walk.backs):
            if at != which:
                walk.approve(other, start, 0, stack.FRAME_TAG)
    elif change == "not executed":
        walk.kernel.grant(back - 1, paging.FAULT_FETCH)
        walk.words[walk.kernel.row[3]] = 0
    else:
        walk.store(place, back + 1 if change == "another return address" else 0)
    assert not walk.holds()


def test_a_stack_that_ends_nowhere_does_not_hold():
    walk = Approved()
    walk.bottoms = []
    assert not walk.holds()
    walk.bottoms = [ENTRY + 6]
    assert not walk.holds()
    walk.bottoms = [1, ENTRY + 5]
    assert walk.holds()


@pytest.mark.parametrize(("frames", "holds"), [(stack.MAX_FRAMES, True), (stack.MAX_FRAMES + 1, False)])
def test_a_chain_longer_than_any_of_real_functions_is_no_stack(frames, holds):
    walk = Approved()
    walk.orc[0] = orc(SP, 8)
    walk.approve(F + 0x15, F, 0, stack.FRAME_TAG)
    walk.approve(ENTRY + 5, F, 0, stack.FRAME_TAG)
    walk.kernel.grant(F, paging.FAULT_FETCH)
    for number in range(frames - 1):
        walk.store(walk.sp + 8 * number, F + 0x15)
    walk.store(walk.sp + 8 * (frames - 1), ENTRY + 5)
    assert bool(walk.holds()) is holds


# -- approvals -------------------------------------------------------------------------------------------

rows_of_calls = st.tuples(st.sampled_from([-9, -8, 5, 6]), st.integers(0, 2), st.integers(0, 2), st.integers(-2, 2))


@given(st.lists(rows_of_calls, max_size=20))
def test_a_row_is_found_by_all_of_its_words(rows):
    table, mask = [0] * stack.ROW_WORDS * 64, 63
    for row in rows:
        at = stack.ROW_WORDS * stack.row_of(table, mask, *row)
        assert (table[at] != 0) == (row in [tuple(table[n : n + 4]) for n in range(0, len(table), 4)])
        table[at : at + stack.ROW_WORDS] = row
    assert sorted(tuple(table[n : n + 4]) for n in range(0, len(table), 4) if table[n]) == sorted(set(rows))


BLOCK = (-100, -90)


@pytest.mark.parametrize("kinds", [0, 2, 4, 8, 14])
@pytest.mark.parametrize(
    ("row", "kind"),
    [((-7, *BLOCK, stack.ANY_CALL), 2), ((-7, 0, 0, 39), 4), ((-7, *BLOCK, 39), 8)],
)
def test_an_approval_is_looked_for_only_where_its_kind_is_there(kinds, row, kind):
    table, mask = [0] * stack.ROW_WORDS * 64, 63
    at = stack.ROW_WORDS * stack.row_of(table, mask, *row)
    table[at : at + stack.ROW_WORDS] = row
    asked = lambda vaddr, block, nr: stack.is_approved(table, mask, vaddr, *block, nr, kinds)
    assert asked(-7, BLOCK, 39) is bool(kinds & kind)
    assert not asked(-8, BLOCK, 39)
    assert asked(-7, BLOCK, 40) is (kind == 2 and bool(kinds & kind))
    assert asked(-7, (-100, -89), 39) is (kind == 4 and bool(kinds & kind))
