"""What a policy is asked, and what of its answer is kept, without a guest."""

from types import SimpleNamespace

import pytest
from tests.support.fake_target import FakeGuest

from thinbox import paging
from thinbox.address import to_signed
from thinbox.enforcement import judge as judge_module
from thinbox.enforcement.judge import Judge
from thinbox.guest.live_symbols import LiveSymbol, Origin
from thinbox.isolation import fault, stack
from thinbox.isolation.assembly import ONE_FUNCTION
from thinbox.isolation.transfers import Frame, Source, Stack
from thinbox.isolation.verdict import AccessKind, Verdict
from thinbox.machine import slots

TEXT = 0xFFFF_FFFF_8100_0000
F, G, MODULE = TEXT, TEXT + 0x1000, 0xFFFF_FFFF_C000_0000
FETCH, READ, WRITE = paging.FAULT_FETCH, 0, paging.FAULT_WRITE
CODE_KEY = 39


class Policy:
    """Answers what it is told to, and keeps what it was asked."""

    def __init__(self, **traits):
        self.name, self.asked, self.answer = "p", [], Verdict(granted=True, rule="6a", reason="", cacheable=True)
        for name, value in traits.items():
            setattr(self, name, value)

    def check_access(self, access, call):
        self.asked.append((access, call))
        return self.answer


class Live:
    """The running kernel's own lists: a module's function at MODULE, generated code behind it."""

    def __init__(self, _view, _memory):
        self.asked = []

    def symbol_at(self, vaddr, _root):
        self.asked.append(vaddr)
        if MODULE <= vaddr < MODULE + 0x100:
            return LiveSymbol("in_module", MODULE, MODULE + 0x100, Origin.MODULE)
        if MODULE + 0x100 <= vaddr < MODULE + 0x200:
            return LiveSymbol("bpf_prog", MODULE + 0x100, MODULE + 0x200, Origin.GENERATED)
        return None


class Judging(FakeGuest):
    def __init__(self, monkeypatch, places=None, **traits):
        super().__init__(**(places or {"f": (F, G), "g": (G, G + 0x1000)}))
        monkeypatch.setattr(judge_module, "LiveSymbols", Live)
        monkeypatch.setattr(Judge, "_share_unwind_table", lambda _self: None)
        self.policy = Policy(**traits)
        self.judge = Judge(self.target, self.policy)
        self.judge.use()
        self.call = self.task(self.tenant(), isolated=True).call
        self.slot[slots.BLOCK_START], self.slot[slots.BLOCK_END] = to_signed(F + 0x10), to_signed(F + 0x20)
        self.slot[slots.CALL_KEY] = CODE_KEY

    def answer(self, **verdict):
        self.policy.answer = Verdict(**({"granted": True, "rule": "r", "reason": "", "cacheable": True} | verdict))

    def ask(self, vaddr, error=FETCH, rip=None, **more):
        rip = vaddr if rip is None else rip
        return self.judge.ask(0x1000, self.call, to_signed(vaddr), error, to_signed(rip), **more)

    def map_code(self, vaddr, flags=0):
        """Map a page of the SCI table ROOT."""
        self.next, table = getattr(self, "next", ROOT + 0x1000), ROOT
        for shift in (39, 30, 21):
            at = (table >> 3) + (vaddr >> shift & 511)
            if not self.target.memory.words[at]:
                self.target.memory.words[at] = self.next | paging.PRESENT
                self.next += 0x1000
            table = self.target.memory.words[at] & paging.FRAME_MASK
        self.target.memory.words[(table >> 3) + (vaddr >> 12 & 511)] = 0x7000 | paging.PRESENT | flags

    def is_met(self, vaddr):
        """What the compiled hook asks of what was granted on a condition."""
        table, mask = self.cpu.kept[self.slot[slots.CONDITIONS] - 1], self.slot[slots.CONDITIONS_MASK]
        words, end = self.target.memory.words, self.target.memory.total_bytes
        return fault.is_approved_while_mapped(words, end, ROOT, table, mask, to_signed(vaddr))

    def needs_asking(self, vaddr):
        """What the compiled hook asks, of the very table."""
        table, mask = self.cpu.kept[self.slot[slots.APPROVED] - 1], self.slot[slots.APPROVED_MASK]
        assert len(table) == mask + 1
        return fault.needs_judgement(self.memory.words, 1 << 20, 0, table, mask, 0, to_signed(vaddr), FETCH)

    def is_approved(self, vaddr, start=F + 0x10, end=F + 0x20, nr=CODE_KEY):
        rows, mask = self.cpu.kept[self.slot[slots.ROWS] - 1].data, self.slot[slots.ROWS_MASK]
        kinds = self.slot[slots.ROW_KINDS]
        return stack.is_approved(rows, mask, to_signed(vaddr), to_signed(start), to_signed(end), nr, kinds)


@pytest.fixture
def judging(monkeypatch):
    return Judging(monkeypatch)


# -- what is kept ----------------------------------------------------------------------------------------


def test_what_is_granted_for_good_is_not_asked_again_and_nothing_else_is_granted_by_it(judging):
    assert judging.needs_asking(G)
    access, verdict = judging.ask(G)
    assert verdict is judging.policy.answer and (access.vaddr, access.symbol) == (G, "g")
    assert not judging.needs_asking(G)
    assert judging.needs_asking(F) and judging.needs_asking(G + 0x1000)
    assert not judging.is_approved(G)


@pytest.mark.parametrize(
    ("vaddr", "error", "verdict"),
    [
        (G, FETCH, {"granted": False}),
        (G, FETCH, {"cacheable": False}),
        (G, READ, {}),
        (G, WRITE, {}),
        (MODULE, FETCH, {}),
        (MODULE + 0x100, FETCH, {}),
    ],
    ids=["refused", "not for good", "a read", "a write", "a module's", "generated"],
)
def test_nothing_else_is_kept(judging, vaddr, error, verdict):
    """What is not the image's own text can go, and its address become another's."""
    judging.answer(**verdict)
    judging.ask(vaddr, error)
    assert judging.needs_asking(vaddr) and not judging.is_approved(vaddr)


@pytest.mark.parametrize(("source", "syscall"), [(True, False), (False, True), (True, True)])
def test_what_is_granted_from_one_block_or_in_one_call_holds_there_only(judging, source, syscall):
    judging.answer(per_source=source, per_syscall=syscall)
    judging.ask(G)
    assert judging.needs_asking(G), "not for everywhere"
    assert judging.is_approved(G)
    assert judging.is_approved(G, start=F, end=F + 8) is not source
    assert judging.is_approved(G, start=F + 0x10, end=F + 0x24) is not source
    assert judging.is_approved(G, nr=CODE_KEY + 1) is not syscall
    assert not judging.is_approved(F)


ROOT, PAGES = 0x8000, (F, G + 0x1000)


@pytest.mark.parametrize("pages", [PAGES, PAGES[:1]], ids=["two pages", "one"])
def test_what_is_granted_while_pages_are_mapped_holds_only_then(judging, pages):
    judging.answer(while_mapped=pages)
    judging.ask(G)
    assert judging.needs_asking(G), "not for everywhere"
    assert not judging.is_approved(G)
    assert not judging.is_met(G)
    for page in pages:
        assert not judging.is_met(G)
        judging.map_code(page)
    assert judging.is_met(G)
    assert not judging.is_met(F)
    judging.map_code(pages[-1], paging.NO_EXECUTE)
    assert not judging.is_met(G), "data is no code"


@pytest.mark.parametrize("more", [{"per_source": True}, {"per_syscall": True}, {"while_mapped": (F, G, TEXT + 0x5000)}])
def test_more_conditions_than_can_be_kept_are_asked_about_each_time(judging, more):
    judging.answer(**({"while_mapped": PAGES} | more))
    judging.ask(G)
    for page in (*PAGES, G, TEXT + 0x5000):
        judging.map_code(page)
    assert judging.needs_asking(G) and not judging.is_met(G) and not judging.is_approved(G)


def test_conditions_that_fill_their_table_are_forgotten(judging, monkeypatch):
    monkeypatch.setattr(judge_module, "CONDITION_SLOTS", 4)
    judging.judge = Judge(judging.target, judging.policy)
    judging.judge.use()
    judging.answer(while_mapped=(F,))
    judging.map_code(F)
    for vaddr in (G, G + 0x100, G + 0x200, G + 0x300):
        judging.ask(vaddr)
        assert judging.is_met(vaddr)
    assert not judging.is_met(G)


def test_where_the_source_is_not_known_a_grant_for_one_is_not_kept(judging):
    judging.answer(per_source=True)
    judging.ask(G, resumed=True)
    assert not judging.is_approved(G) and not judging.is_approved(G, 0, 0)
    assert judging.slot[slots.ROW_KINDS] == 0


def test_when_the_kernel_patches_its_text_what_was_read_from_it_goes(judging, monkeypatch):
    guest = Judging(
        monkeypatch,
        {
            "f": (F, G),
            "g": (G, G + 0x1000),
            "__text_poke": (F + 0x20, F + 0x30),
            "text_poke_sync": (F + 0x40, F + 0x50),
        },
    )
    guest.judge.install()
    guest.answer(per_source=True)
    guest.ask(G)
    assert guest.policy.asked[-1][1].text_version == 0
    guest.cpu.reach(F + 0x20)
    assert not guest.is_approved(G)
    guest.ask(G)
    assert guest.policy.asked[-1][1].text_version == 1
    assert guest.is_approved(G), "and it can be approved again"


@pytest.mark.parametrize("kind", ["everywhere", "by block"])
def test_a_full_table_is_emptied_and_what_was_forgotten_is_asked_again(judging, monkeypatch, kind):
    monkeypatch.setattr(judge_module, "APPROVED_SLOTS", 8)
    monkeypatch.setattr(judge_module, "ROW_COUNT", 8)
    guest = Judging(monkeypatch)
    guest.answer(per_source=kind == "by block")
    known = guest.is_approved if kind == "by block" else lambda vaddr: not guest.needs_asking(vaddr)
    places = [F + 0x40 * number for number in range(12)]
    for number, vaddr in enumerate(places):
        guest.ask(vaddr)
        assert known(vaddr)
        # Five of eight are the most it holds; the sixth finds it empty.
        kept = [place for place in places if known(place)]
        assert kept == places[5 * (number // 5) : number + 1]


def test_each_policys_tables_are_its_own(judging, monkeypatch):
    judging.answer(per_syscall=True)
    judging.ask(G)
    judging.answer()
    judging.ask(F)
    other = Judge(judging.target, Policy())
    other.use()
    assert judging.needs_asking(F) and not judging.is_approved(G) and judging.slot[slots.ROW_KINDS] == 0
    judging.judge.use()
    assert not judging.needs_asking(F) and judging.is_approved(G)


@pytest.mark.parametrize("flag", [True, False])
def test_the_hooks_are_told_what_the_policy_grants_and_judges(monkeypatch, flag):
    guest = Judging(monkeypatch, grants_all_data=flag, judges_stack=flag)
    assert guest.slot[slots.CACHEABLE_DATA] == guest.slot[slots.STACK_JUDGED] == flag
    assert Judging(monkeypatch).slot[slots.CACHEABLE_DATA] == 0


# -- what is asked ---------------------------------------------------------------------------------------


def test_an_access_is_told_with_the_symbol_around_it(judging):
    describe = judging.judge.describe
    inside = describe(G + 0x123, FETCH, F)
    assert (inside.vaddr, inside.kind, inside.rip) == (G + 0x123, AccessKind.FETCH, F)
    assert (inside.symbol, inside.symbol_start, inside.symbol_end) == ("g", G, G + 0x1000)
    assert not inside.generated
    data = describe(0xFFFF_8880_0000_0000, WRITE, F)
    assert (data.kind, data.symbol, data.symbol_start, data.symbol_end) == (AccessKind.WRITE, None, 0, 0)
    assert judging.judge.live.asked == [], "data is in no list of code"


@pytest.mark.parametrize(("offset", "name", "generated"), [(0x10, "in_module", False), (0x110, "bpf_prog", True)])
def test_code_that_came_after_the_boot_is_told_as_such(judging, offset, name, generated):
    found = judging.judge.describe(MODULE + offset, FETCH, F)
    start = MODULE + (offset & 0x100)
    assert (found.symbol, found.symbol_start, found.symbol_end, found.generated) == (
        name,
        start,
        start + 0x100,
        generated,
    )
    assert judging.judge.describe(MODULE + offset, READ, F).symbol is None


def test_assembly_of_several_symbols_is_one_function(monkeypatch):
    part, whole = next(iter(ONE_FUNCTION.items()))
    guest = Judging(monkeypatch, {whole: (F, G), part: (G, G + 0x100)})
    inside, start = guest.judge.describe(G + 8, FETCH, F), guest.judge.describe(G, FETCH, F)
    assert (inside.symbol, inside.symbol_start, inside.symbol_end) == (whole, F, G + 0x100)
    assert (start.symbol, start.symbol_start) == (part, G), "a fetch of its own start is one of it"
    # A kernel in which the whole lies behind, or is not there, has no such function.
    for places in ({part: (F, G), whole: (G, G + 0x100)}, {part: (F, G)}):
        assert Judging(monkeypatch, places).judge.describe(F + 8, FETCH, F).symbol == part


@pytest.mark.parametrize(
    ("rip", "source"),
    [(None, Source(F + 0x10, F + 0x20)), (F + 0xFF0, Source(F + 0xFF0, G, straight=True))],
    ids=["a jump", "read on over a page's end"],
)
def test_a_fetch_is_told_with_the_block_it_came_from(judging, rip, source):
    judging.ask(G, rip=rip)
    assert judging.policy.asked[-1][1].source == source


def test_data_and_a_task_that_goes_on_have_no_source(judging):
    judging.ask(G, READ)
    judging.ask(G, resumed=True)
    assert [call.source for _access, call in judging.policy.asked] == [None, None]


def test_a_policy_sees_of_the_call_what_it_may(judging):
    judging.call.granted_pages, judging.call.notes["mine"] = 7, 8
    judging.ask(G)
    call = judging.policy.asked[-1][1]
    assert (call.granted_pages, call.name, call.nr, call.notes) == (7, "getpid", 39, {"mine": 8})
    assert call.text_start == TEXT
    assert call.symbol_at(G + 4).name == "g" and call.symbol_at(MODULE).name == "in_module"
    judging.call.record.name = "i386#39"
    judging.ask(G)
    assert judging.policy.asked[-1][1].nr == -1, "the number of a 32-bit call means another"


def test_words_are_read_by_the_kernels_own_table_and_no_others(judging):
    place = 0xFFFF_8880_0000_0000
    judging.map(to_signed(place), 0x10000 | paging.PRESENT)
    judging.map(to_signed(place + 0x1000), judging.memory.total_bytes | paging.PRESENT)
    judging.slot[slots.KERNEL_ROOT] = 0x1000
    judging.memory.words[0x10008 >> 3] = -2
    judging.ask(G)
    call = judging.policy.asked[-1][1]
    assert call.read_word(place + 8) == (1 << 64) - 2
    assert [call.read_word(place + at) for at in (4, 0x1000, 0x2000)] == [None] * 3
    assert call.read_code(place + 8, 4) == b"\xfe\xff\xff\xff"
    assert not call.is_executable(place + 0x2000)


@pytest.mark.parametrize("what", ["stack", "graph"])
def test_a_policy_that_did_not_say_what_it_looks_at_is_told_so(judging, what):
    judging.ask(G)
    with pytest.raises(ValueError, match="judges_stack = True" if what == "stack" else "needs_graph = True"):
        getattr(judging.policy.asked[-1][1], what)


@pytest.mark.parametrize("complete", [True, False])
def test_frames_of_a_granted_stack_are_approved_if_it_was_walked_to_its_end(monkeypatch, complete):
    guest = Judging(monkeypatch, judges_stack=True)
    seen = Stack((Frame(F + 8, G + 0x40), Frame(MODULE, G + 0x50)), complete=complete)
    monkeypatch.setattr(Judge, "walk", lambda _self, _rip: seen)
    guest.answer(cacheable=False)
    guest.ask(G)
    rows, mask = guest.cpu.kept[guest.slot[slots.ROWS] - 1].data, guest.slot[slots.ROWS_MASK]
    kept = lambda back, start: rows[
        stack.ROW_WORDS * stack.row_of(rows, mask, to_signed(back), to_signed(start), 0, stack.FRAME_TAG)
    ]
    assert bool(kept(G + 0x40, F)) is complete
    assert not kept(G + 0x50, MODULE) and not kept(G + 0x50, F)


def test_a_refused_stack_is_not_approved(monkeypatch):
    guest = Judging(monkeypatch, judges_stack=True)
    monkeypatch.setattr(Judge, "walk", lambda _self, _rip: pytest.fail("nothing is to be approved"))
    guest.answer(granted=False)
    guest.ask(G)
    guest.answer()
    guest.ask(G, READ)


def test_the_graph_is_loaded_for_who_asks_for_it(monkeypatch):
    monkeypatch.setattr(judge_module, "_load_graph", lambda target: ("graph of", target))
    guest = Judging(monkeypatch, needs_graph=True)
    guest.ask(G)
    assert guest.policy.asked[-1][1].graph == ("graph of", guest.target)
    assert SimpleNamespace(graph=guest.judge.graph).graph == ("graph of", guest.target)
