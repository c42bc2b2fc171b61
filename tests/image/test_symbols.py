"""The table keeps every symbol, names addresses the same way every time, and answers without a walk."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinbox.errors import KernelImageError
from thinbox.image import KernelFacts, KernelImage, SymbolTable

BASE = 0xFFFFFFFF81000000
SYMBOLS = [
    (0x1000, "A", "per_cpu_thing"),
    (BASE, "T", "_stext"),
    (BASE, "T", "startup_64"),
    (BASE + 0x10, "t", "twice"),
    (BASE + 0x20, "t", "twice"),
    (BASE + 0x30, "W", "a_weak"),
    (BASE + 0x30, "t", "b_local"),
    (BASE + 0x30, "T", "z_global"),
    (BASE + 0x30, "T", "y_global"),
    (BASE + 0x40, "t", "cloned.isra.0"),
    (BASE + 0x50, "t", "cloned.constprop.1.isra.2"),
    (BASE + 0x58, "t", "cloned.cold"),
    (BASE + 0x60, "T", "__ia32_sys_getpid"),
    (BASE + 0x60, "T", "__x64_sys_getpid"),
    (BASE + 0x70, "D", "data_in_text"),
    (BASE + 0x100, "T", "_etext"),
    (BASE + 0x200, "T", "init_text"),
]


@pytest.fixture
def table() -> SymbolTable:
    return SymbolTable.from_symbols(list(reversed(SYMBOLS)))


def test_every_symbol_is_kept(table: SymbolTable) -> None:
    assert sorted((int(start), kind, name) for start, kind, name in table) == sorted(SYMBOLS)
    assert len(table) == len(SYMBOLS)
    assert table.addresses_of("twice") == (BASE + 0x10, BASE + 0x20)


def test_names_are_found(table: SymbolTable) -> None:
    assert table.address_of("twice") == BASE + 0x10
    assert table.find("nope") is None
    assert "twice" in table and "nope" not in table
    with pytest.raises(KeyError):
        table.address_of("nope")


def test_a_clone_is_found_by_the_name_in_the_source_but_not_its_cold_part(table: SymbolTable) -> None:
    assert table.find_prefix("cloned") == BASE + 0x40
    assert table.addresses_with_variants("cloned") == (BASE + 0x40, BASE + 0x50)
    assert table.find_prefix("clone") is None
    assert table.find_prefix("twice") == BASE + 0x10


def test_the_best_name_of_an_address_is_always_the_same_one(table: SymbolTable) -> None:
    assert table.describe(BASE) == "startup_64"
    assert table.describe(BASE + 0x31) == "y_global+0x1"
    assert table.describe(BASE + 0x60) == "__x64_sys_getpid"
    assert table.names_at(BASE + 0x30) == ("y_global", "z_global", "b_local", "a_weak")


def test_a_function_ends_where_the_next_begins(table: SymbolTable) -> None:
    symbol = table.text_symbol_at(BASE + 0x1F)
    assert symbol is not None
    assert (symbol.name, symbol.start, symbol.end_exclusive) == ("twice", BASE + 0x10, BASE + 0x20)
    last = table.text_symbol_at(BASE + 0xFF)
    assert last is not None and last.end_exclusive == BASE + 0x100  # data symbols end no function


def test_only_the_text_has_functions(table: SymbolTable) -> None:
    assert table.text_symbol_at(BASE - 1) is None
    assert table.text_symbol_at(BASE + 0x100) is None
    assert table.text_symbol_at(BASE + 0x200) is None
    assert table.describe(BASE + 0x200) == hex(BASE + 0x200)


def test_a_slid_kernel_moves_all_but_its_offsets(table: SymbolTable) -> None:
    moved = table.slid(0x1A000000)
    assert moved.address_of("twice") == BASE + 0x1A000010
    assert moved.address_of("per_cpu_thing") == 0x1000
    assert moved.describe(BASE + 0x1A000031) == "y_global+0x1"
    assert [name for _, _, name in moved.slid(-0x1A000000)] == [name for _, _, name in table]
    assert np.array_equal(moved.slid(-0x1A000000).starts, table.starts)


def test_a_table_without_text_is_refused() -> None:
    with pytest.raises(KernelImageError):
        SymbolTable.from_symbols([(BASE, "T", "main")])
    with pytest.raises(KernelImageError):
        SymbolTable.from_symbols([])


@given(
    st.lists(st.tuples(st.integers(BASE, BASE + 0xFF), st.sampled_from("tTwWdA"), st.sampled_from("abcdef"))), st.data()
)
def test_the_answer_is_that_of_a_plain_search(drawn: list[tuple[int, str, str]], data: st.DataObject) -> None:
    symbols = [*drawn, (BASE, "T", "_stext"), (BASE + 0x100, "T", "_etext")]
    table = SymbolTable.from_symbols(symbols)
    vaddr = data.draw(st.integers(BASE - 2, BASE + 0x101))
    below = [start for start, kind, _ in symbols if kind in "tTwW" and BASE <= start < BASE + 0x100 and start <= vaddr]
    found = table.text_symbol_at(vaddr)
    if not BASE <= vaddr < BASE + 0x100:
        assert found is None
    else:
        assert found is not None and found.start == max(below)
        assert found.start <= vaddr < found.end_exclusive


class Counted(list[int]):
    """A list that counts how often an element of it is looked at."""

    looks = 0

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        self.looks += 1
        return super().__getitem__(index)

    def __iter__(self):  # type: ignore[no-untyped-def]
        raise AssertionError("the whole table was walked")


def test_finding_a_function_looks_at_few_of_them_and_the_second_time_at_fewer(
    default_facts: tuple[KernelImage, KernelFacts], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it takes in seconds, `thinbox bench` tells; a search by halves looks at the logarithm of their number."""
    table = default_facts[1].symbols
    starts = Counted(table.text_starts)
    assert len(starts) > 10_000
    monkeypatch.setattr(table, "_text_starts", starts)
    monkeypatch.setattr(table, "_text_symbols", {})
    place = starts[len(starts) // 3] + 3
    starts.looks = 0
    first = table.text_symbol_at(place)
    once, starts.looks = starts.looks, 0
    assert once <= len(starts).bit_length() + 3
    assert table.text_symbol_at(place) is first
    assert starts.looks < once
