"""A probe takes the newest shape there is, and names all that is missing at once."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MachineError, MissingFactError
from thinbox.kernel.probe import Probe


def test_the_first_alternative_there_is_is_taken_and_noted():
    facts = fake_facts("old", "older", members={"page.old": 8, "page.older": 16}, enums={"B": 0, "C": 2})
    probe = Probe(facts, "pages", "nothing works")
    assert probe.offset("page.new", "page.old", "page.older") == 8
    assert probe.symbol("new", "old", "older") == 0x1000
    assert probe.enumerator("A", "B", "C") == 0
    assert probe.shapes == ["page.old", "old", "B"]
    probe.check()


def test_all_that_is_missing_is_said_in_one_line_with_what_it_disables():
    probe = Probe(fake_facts("here"), "pages", "views cannot be had")
    probe.offset("page.new", "page.old"), probe.symbol("here"), probe.symbol("gone"), probe.enumerator("PG")
    probe.symbols("nowhere"), probe.size("slab"), probe.symbol("gone")
    with pytest.raises(MissingFactError) as caught:
        probe.check()
    text = str(caught.value)
    assert text.count("\n") == 0 and "'" not in text[:1]
    for word in ("pages", "page.new or page.old", "gone", "PG", "nowhere", "struct slab", "views cannot be had"):
        assert word in text
    assert text.count("gone") == 1 and "no here" not in text


def test_it_is_an_error_of_ours_and_a_key_error_for_who_can_do_without():
    error = MissingFactError("the kernel has no symbol x")
    assert isinstance(error, MachineError) and isinstance(error, KeyError)
    assert str(error) == "the kernel has no symbol x"


def test_copies_that_compilers_make_are_found():
    probe = Probe(fake_facts("finish.isra.0", "other"), "x", "y")
    assert probe.has_variant("finish") and not probe.has_symbol("finish")
    assert probe.symbols("finish") == (0x1000,)
