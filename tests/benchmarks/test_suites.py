"""The suites of others are read as they are written, and their table says what was found and nothing else."""

import dataclasses

import pytest
from benchmarks import suite_page, suites
from benchmarks.programs import Ran
from benchmarks.suite_root import Suite, load_suites, parse_results

SUITES = load_suites()
SUITE = Suite("s", "tests of s", "run $PART", {"one": "a b", "two": "c"}, packages=("s",))


def ran(stdout=b"", kills=(), failure=""):
    return Ran(0, stdout, b"", 2.0, 3.0, {"calls": 10, "isolated": 10}, kills, "6.1.0", failure)


def found(part="one", kills=(), different=None, failure=""):
    counts = {"passed": 5, "failed": 1, "skipped": 2, "calls": 1000, "isolated": 0, "kills": [], "failure": ""}
    counts["failures"] = ["f"]
    live = counts | {"isolated": 1000, "kills": list(kills), "failure": failure}
    told = {"key": SUITE.key(part), "kernel": "6.1.0", "versions": ["s 1"], "different": different or {}}
    return told | {"cells": {"none": counts, "live": live}}


def test_the_suites_are_those_of_several_programs_and_each_has_parts():
    assert {"cpython", "busybox", "perl", "stress-ng"} <= set(SUITES)
    assert all(suite.parts and "$PART" in suite.script for suite in SUITES.values())
    assert all(bool(suite.source) == bool(suite.takes) for suite in SUITES.values())


def test_a_field_that_there_is_not_is_refused(tmp_path):
    file = tmp_path / "suites.toml"
    file.write_text("[a]\nof = 'o'\nscript = 's'\nparts = ['p']\nmemory = 3\n")
    with pytest.raises(TypeError, match="memory"):
        load_suites(file)


def test_parts_are_a_list_of_what_is_run_or_names_for_it(tmp_path):
    file = tmp_path / "suites.toml"
    file.write_text("[a]\nof='o'\nscript='s'\nparts=['p']\n[b]\nof='o'\nscript='s'\nparts={'all of it'='*'}\n")
    assert {name: dict(suite.parts) for name, suite in load_suites(file).items()} == {
        "a": {"p": "p"},
        "b": {"all of it": "*"},
    }


def test_a_part_is_handed_to_the_script_as_one_word_and_is_in_the_key():
    assert SUITE.program("one").script == "PART='a b'\nrun $PART"
    assert SUITE.key("one") != SUITE.key("two")
    assert dataclasses.replace(SUITE, source="s").key("one") != SUITE.key("one")
    assert dataclasses.replace(SUITE, reasons={"t": "why"}).key("one") == SUITE.key("one")


def test_lines_of_busybox_and_of_unittest_are_read():
    text = "PASS: cp-a\nFAIL: mv x\nUNTESTED: tar\nSKIPPED: sum (not built)\nsaid\nERROR: t.A.x\nXFAIL: t.A.y\nSKIP: t.A.z\n"
    assert parse_results(text) == {
        "cp-a": "passed",
        "mv x": "failed",
        "tar": "skipped",
        "sum (not built)": "skipped",
        "t.A.x": "failed",
        "t.A.y": "passed",
        "t.A.z": "skipped",
    }


def test_tap_is_read_by_file_and_number_and_its_directives_count():
    text = "== op/a.t\n1..4\nok 1 - x\nnot ok 2 - y\nok 3 # skip no IPC\nnot ok 4 - z # TODO later\n# ok 9\n== op/b.t\nok\nok\n"
    assert parse_results(text) == {
        "op/a.t 1": "passed",
        "op/a.t 2": "failed",
        "op/a.t 3": "skipped",
        "op/a.t 4": "passed",
        "op/b.t 1": "passed",
        "op/b.t 2": "passed",
    }


def test_exit_statuses_are_outcomes_and_which_one_it_was_counts():
    text = "EXIT 0: fork\nEXIT 4: rdrand\nEXIT 3: tun\nEXIT 2: mmap\nEXIT 137: vm\n"
    came = parse_results(text)
    assert came == {
        "fork": "passed",
        "rdrand": "skipped",
        "tun": "skipped",
        "mmap": "failed with 2",
        "vm": "failed with 137",
    }
    assert suites.summary(ran(), came)["failures"] == ["mmap", "vm"]
    assert suites.summary(ran(), came)["failed"] == 2


def test_a_name_that_is_said_twice_is_two_tests():
    assert parse_results("PASS: a\nFAIL: a\nPASS: a\n") == {"a": "passed", "a (2)": "failed", "a (3)": "passed"}


def test_what_differs_is_told_by_test_even_if_one_side_never_ran_it():
    plain = {"a": "passed", "b": "passed", "c": "failed"}
    isolated = {"a": "passed", "b": "failed", "d": "passed"}
    assert suites.differing(plain, isolated) == {
        "b": ("passed", "failed"),
        "c": ("failed", "not run"),
        "d": ("not run", "passed"),
    }
    assert suites.differing(plain, isolated, broken_off=True) == {"b": ("passed", "failed")}


def test_the_table_counts_what_was_run_as_it_is_and_lists_what_differs():
    suite = dataclasses.replace(SUITE, reasons={"t|1": "because"})
    state = {
        "s/one": found(different={"t|1": ("passed", "failed")}, kills=["mmap: fetch"], failure="hangs"),
        "s/two": found("one"),  # the key of another script
        "s/gone": found(),
    }
    text = suite_page.render({"s": suite}, state)
    assert text.startswith("1 of 2 parts of 1 suites were run, on 6.1.0.\n")
    assert "| one | 1,000 | 5 of 6 | 5 of 6; hangs | 1 | 1 |" in text
    assert "| s/one | t\\|1 | passed | failed | because |" in text
    assert "| s/one | mmap: fetch |  | killed | not known |" in text
    assert "- 1 tests differ; 1 calls were killed." in text


def test_without_a_difference_the_page_says_so():
    assert "Nothing of what was run." in suite_page.render({"s": SUITE}, {"s/one": found()})


def test_what_fails_without_isolation_is_named_and_long_lists_are_cut():
    told = found()
    told["cells"]["none"]["failures"] = [f"t{number}" for number in range(20)]
    text = suite_page.render({"s": SUITE}, {"s/one": told})
    assert "t0; t1; " in text
    assert "; t11 and 8 more |" in text
    assert "t12" not in text
