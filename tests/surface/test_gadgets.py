"""The gadgets of a kernel: by page, from several processes, from the cache, in the live text."""

import capstone
import numpy as np
import pytest
from thinbox.address import PAGE_BYTES
from thinbox.guest.kernel_view import KernelView
from thinbox.image.cache import CACHE_VARIABLE
from thinbox.image.facts import load_facts
from thinbox.image.source import resolve_kernel
from thinbox.image.symbols import SymbolTable
from thinbox.machine.machine import Machine
from thinbox.machine.snapshot import restore_snapshot
from thinbox.surface import gadgets as gadgets_module
from thinbox.surface.gadget_set import GadgetCounts, GadgetSet
from thinbox.surface.gadgets import PIECE_BYTES, find_gadgets, find_thunks, gadgets_of, load_gadgets
from thinbox.surface.live_kernel import LiveKernel, TextRegion, read_live_kernel
from thinbox.surface.scan import Found, GadgetKind

pytestmark = pytest.mark.slow

START = 0xFFFF_FFFF_8100_0000
OTHER = 0xFFFF_FFFF_C000_0000
SHA = "ab" * 32
SYMBOLS = SymbolTable.from_symbols([(START, "T", "_stext"), (START + 64, "T", "_etext")])


def small_kernel(seed=1):
    rng = np.random.default_rng(seed)
    size = 2 * PIECE_BYTES + 3 * PAGE_BYTES
    regions = tuple(TextRegion(start, rng.integers(0, 256, size, np.uint8).tobytes()) for start in (START, OTHER))
    return LiveKernel(regions, 1000, 500)


def same(one, other):
    return all(getattr(one, name).tolist() == getattr(other, name).tolist() for name in ("starts", "lengths", "kinds"))


@pytest.fixture(scope="module")
def live(guest):
    machine = Machine(guest.params.memory_mib)
    restore_snapshot(machine, guest.snapshot)
    view = KernelView(machine, guest.facts)
    return view, read_live_kernel(machine.memory, view.kernel_root)


def test_a_gadget_over_two_pages_is_left_only_if_both_are():
    starts = [START, START + PAGE_BYTES - 2, START + PAGE_BYTES - 1, START + PAGE_BYTES, START + 3 * PAGE_BYTES - 1]
    found = Found(np.array(starts, np.uint64), np.array([1, 2, 3, 4, 2], np.uint8), np.array([0, 0, 1, 2, 3], np.uint8))
    gadgets = GadgetSet(found, ((START, START + 4 * PAGE_BYTES),), "")
    first, second, third, fourth = (START + n * PAGE_BYTES for n in range(4))
    assert gadgets.in_pages([]) == GadgetCounts()
    assert gadgets.in_pages({first}) == GadgetCounts(returns=2)
    assert gadgets.in_pages([first, second + 5]) == GadgetCounts(returns=2, jumps=1, calls=1)
    assert gadgets.in_pages(np.array([second, third], np.uint64)) == GadgetCounts(calls=1)
    assert gadgets.in_pages({third, fourth}) == GadgetCounts(system=1)
    assert gadgets.in_pages({first, second, third, fourth}) == gadgets.counts == GadgetCounts(2, 1, 1, 1)
    assert gadgets.counts.total == gadgets.count == 5
    assert gadgets.pages == 4


def test_the_number_of_jobs_changes_nothing():
    kernel = small_kernel()
    thunks = {START + 0x1234: GadgetKind.JUMP}
    one, three = find_gadgets(kernel, thunks, None, 1), find_gadgets(kernel, thunks, None, 3)
    assert len(one.starts) > 1000
    assert same(one, three)
    assert (np.diff(one.starts.astype(object)) > 0).all()


def test_what_is_cached_is_what_was_found_and_damage_is_rebuilt(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    kernel = small_kernel()
    said = []
    fresh = gadgets_of(kernel, SYMBOLS, SHA, said.append, 1)
    assert not fresh.from_cache
    assert said[-1].endswith("100 %")
    again = gadgets_of(kernel, SYMBOLS, SHA, jobs=1)
    assert again.from_cache
    assert same(fresh.found, again.found)
    assert again.spans == fresh.spans
    (path,) = (tmp_path / "gadgets").iterdir()
    good = path.read_bytes()
    assert len(good) < 6 * fresh.count + 400
    bent = bytearray(good)
    bent[len(bent) // 2] ^= 1
    for damage in (b"", good[:20], good[:100], good[:-1], good + b"\0", bytes(bent), b"x" * len(good)):
        path.write_bytes(damage)
        rebuilt = gadgets_of(kernel, SYMBOLS, SHA, jobs=1)
        assert not rebuilt.from_cache
        assert same(fresh.found, rebuilt.found)
        assert path.read_bytes() == good


def test_other_text_is_another_entry_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    one = gadgets_of(small_kernel(1), SYMBOLS, SHA, jobs=1)
    other = gadgets_of(small_kernel(2), SYMBOLS, SHA, jobs=1)
    assert not other.from_cache
    assert one.text_hash != other.text_hash
    assert gadgets_of(small_kernel(1), SYMBOLS, SHA, jobs=1).found.starts.tolist() == one.found.starts.tolist()


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    (tmp_path / "gadgets").write_text("in the way")
    said = []
    assert gadgets_of(small_kernel(), SYMBOLS, SHA, said.append, 1).count
    assert [line for line in said if line.startswith("warning: ")]


def test_a_kernel_without_executable_memory_has_no_gadgets(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    for _ in range(2):
        found = gadgets_of(LiveKernel((), 0, 0), SYMBOLS, SHA)
        assert (found.count, found.pages, found.counts) == (0, 0, GadgetCounts())


def test_every_gadget_of_the_live_kernel_decodes_to_its_length_and_kind(guest, live):
    """Capstone, asked here by itself, for one gadget in 97."""
    view, kernel = live
    gadgets = load_gadgets(guest)
    thunks = find_thunks(view.symbols)
    ends = {
        GadgetKind.RETURN: ("ret", "retf", "repz ret"),
        GadgetKind.JUMP: ("jmp", "notrack jmp"),
        GadgetKind.CALL: ("call", "notrack call"),
        GadgetKind.SYSTEM: ("syscall", "sysret", "sysretq", "sysenter", "iret", "iretd", "iretq", "int"),
    }
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    through_thunks = 0
    found = gadgets.found
    for index in range(0, gadgets.count, 97):
        start, length, kind = int(found.starts[index]), int(found.lengths[index]), GadgetKind(found.kinds[index])
        (region,) = (r for r in kernel.regions if r.start <= start < r.end)
        code = region.data[start - region.start : start - region.start + length]
        instructions = list(decoder.disasm_lite(code, start))
        assert sum(size for _a, size, _m, _o in instructions) == length
        mnemonic, operands = instructions[-1][2:]
        if operands.startswith("0x") and mnemonic in ("jmp", "call"):
            assert thunks[int(operands, 16)] is (GadgetKind.RETURN if kind is GadgetKind.RETURN else GadgetKind.JUMP)
            through_thunks += 1
        else:
            assert mnemonic in ends[kind]
    assert through_thunks > 20


def test_known_gadgets_of_the_live_kernel_are_found(guest, live):
    """The last `ret` of getpid's handler; the calls of `f_op->write` in vfs_write, through a thunk."""
    view, kernel = live
    gadgets = load_gadgets(guest)
    place = {int(start): index for index, start in enumerate(gadgets.found.starts)}
    (text,) = (r for r in kernel.regions if r.start <= view.symbols.text_start < r.end)
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)

    def instructions(name):
        symbol = view.symbols.text_symbol_at(view.symbols.address_of(name))
        return list(
            decoder.disasm_lite(text.data[symbol.start - text.start : symbol.end_exclusive - text.start], symbol.start)
        )

    returns = [line[0] for line in instructions("__x64_sys_getpid") if line[2] == "ret"]
    assert returns
    for vaddr in returns:
        assert gadgets.found.kinds[place[vaddr]] == GadgetKind.RETURN
        assert gadgets.found.lengths[place[vaddr]] == 1
    thunks = find_thunks(view.symbols)
    calls = [
        line[0]
        for line in instructions("vfs_write")
        if line[2] == "call" and line[3].startswith("0x") and int(line[3], 16) in thunks
    ]
    assert calls
    for vaddr in calls:
        assert gadgets.found.kinds[place[vaddr]] == GadgetKind.CALL
        assert gadgets.found.lengths[place[vaddr]] == 5


def test_the_text_that_is_scanned_is_the_live_one(guest, live):
    """Return thunks are patched to plain returns at boot: in the file a function ends in a jump."""
    view, kernel = live
    image, _facts = load_facts(resolve_kernel(None, lambda _line: None))
    symbol = view.symbols.text_symbol_at(view.symbols.address_of("__x64_sys_getpid"))
    thunk = view.symbols.address_of("__x86_return_thunk")
    size = symbol.end_exclusive - symbol.start
    (text,) = (r for r in kernel.regions if r.start <= symbol.start < r.end)
    code = text.data[symbol.start - text.start : symbol.end_exclusive - text.start]
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    on_disk = list(decoder.disasm_lite(image.read_vaddr(symbol.start, size), symbol.start))
    (jump,) = (line[0] for line in on_disk if line[2:] == ("jmp", f"{thunk:#x}"))
    assert code[jump - symbol.start] == 0xC3
    gadgets = load_gadgets(guest)
    assert gadgets.text_hash == kernel.text_hash
    index = int(np.searchsorted(gadgets.found.starts, np.uint64(jump)))
    assert (int(gadgets.found.starts[index]), int(gadgets.found.lengths[index])) == (jump, 1)


def test_sums_over_pages_are_the_whole(guest):
    gadgets = load_gadgets(guest)
    pages = [page for start, end in gadgets.spans for page in range(start, end, PAGE_BYTES)]
    assert len(pages) == gadgets.pages
    assert gadgets.in_pages(pages) == gadgets.counts
    assert gadgets.counts.total == gadgets.count > 100_000
    half = len(pages) // 2
    one, other = gadgets.in_pages(pages[:half]), gadgets.in_pages(pages[half:])
    alone = sum(gadgets.in_pages([page]).total for page in pages)
    assert alone < one.total + other.total <= gadgets.count  # those over two pages are in neither page alone


def test_a_worker_that_dies_is_an_error(monkeypatch):
    import os

    from thinbox.errors import MachineError

    monkeypatch.setattr(gadgets_module, "_ignore_interrupts", lambda: os._exit(1))
    with pytest.raises(MachineError, match="died"):
        find_gadgets(small_kernel(), {}, None, 2)
