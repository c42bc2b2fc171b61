"""The corpus of real programs is what the issue asks for, and its table says what was found and nothing else."""

import dataclasses

import pytest
from benchmarks import program_page, programs
from benchmarks.program_root import load_corpus

CORPUS = load_corpus()


def ran(stdout=b"said\n", exit_code=0, kills=(), failure=""):
    return programs.Ran(exit_code, stdout, b"", 2.0, 3.0, {"calls": 10, "isolated": 10}, kills, "6.1.0", failure)


def found(name, **over):
    cell = {"cpu_s": 5.0, "calls": 1000, "isolated": 1000, "killed": 0}
    cells = {
        "start": cell | {"cpu_s": 1.0, "isolated": 0},
        "none": cell | {"isolated": 0},
        "live": cell | {"cpu_s": 7.0},
        "best": cell | {"cpu_s": 9.0},
    }
    known = {"key": CORPUS[name].key, "kernel": "6.1.0", "versions": [f"{name} 1"], "cells": cells}
    return known | {"unisolated": "", "different": {"live": "", "best": ""}} | over


def test_the_corpus_has_sixty_programs_of_debian_and_of_pypi():
    assert len(CORPUS) >= 60
    assert {"git", "postgresql", "python3", "bash", "gcc", "numpy"} <= set(CORPUS)
    assert sum(bool(program.wheels) for program in CORPUS.values()) >= 10
    assert all("==" in wheel for program in CORPUS.values() for wheel in program.wheels)
    assert 3 <= sum(program.short for program in CORPUS.values()) <= 5


def test_a_field_that_there_is_not_is_refused(tmp_path):
    file = tmp_path / "corpus.toml"
    file.write_text("[a]\ncategory = 'c'\nwork = 'w'\nscript = 's'\nmemory = 3\n")
    with pytest.raises(TypeError, match="memory"):
        load_corpus(file)


def test_what_is_run_is_in_the_key_and_what_is_said_of_it_is_not():
    program = CORPUS["git"]
    assert dataclasses.replace(program, script="true").key != program.key
    assert dataclasses.replace(program, without=("x",)).key != program.key
    assert dataclasses.replace(program, work="other words").key == program.key


def test_any_difference_is_told():
    plain = ran()
    assert programs.difference(plain, ran()) == ""
    assert programs.difference(plain, ran(b"said\nmore\n")) == "line 2 is 'more\\n'"
    assert programs.difference(plain, ran(b"")) == "line 1 is missing"
    assert programs.difference(plain, ran(b"said")) == "line 1 is 'said'"
    assert programs.difference(plain, ran(exit_code=3)) == "exit status 3, not 0"
    assert programs.difference(plain, ran(kills=("mmap: fetch",))) == "1 killed: mmap: fetch"
    assert programs.difference(plain, ran(failure="hangs")) == "hangs"


def test_only_what_was_run_as_it_is_counts_as_known():
    git = CORPUS["git"]
    known, all_cells = found("git"), tuple(programs.CELLS)
    assert programs.is_known(git, known, all_cells)
    assert not programs.is_known(git, {}, all_cells)
    assert not programs.is_known(git, known | {"key": "other"}, all_cells)
    quick = known | {"cells": {name: cell for name, cell in known["cells"].items() if name != "best"}}
    assert not programs.is_known(git, quick, all_cells)
    assert programs.is_known(git, quick, ("start", "none", "live"))
    assert programs.is_known(git, quick | {"cells": {}, "unisolated": "exit status 1"}, all_cells)


def test_the_table_says_ratios_without_the_start_and_what_went_wrong():
    state = {
        "git": found("git"),
        "bash": found("bash", different={"live": "", "best": "1 killed: a | b"}),
        "gcc": found("gcc", key="of another script"),
        "gone": found("git"),
    }
    lines = program_page.render(CORPUS, state).splitlines()
    assert "| git 1 | 1,000 | 4.0 | 1.50 | 2.00 | equal |" in next(line for line in lines if line.startswith("| git"))
    row = next(line for line in lines if line.startswith("| bash"))
    assert row.endswith("| 1.50 |  | the best combination: 1 killed: a \\| b |")
    assert not [line for line in lines if line.startswith(("| gcc", "| gone"))]
    assert lines[0] == f"2 of {len(CORPUS)} programs were run, on 6.1.0."
    assert any(line.startswith("- Under the best combination: 1 of 2 equal") for line in lines)
    assert any(line.startswith("- Under `live`: 2 of 2 equal; 0 kills in 2,000 isolated calls") for line in lines)


def test_a_program_too_short_to_be_compared_has_no_ratio_and_moves_no_median():
    short = found("bash")
    short["cells"]["none"] = short["cells"]["none"] | {"cpu_s": 1.5}
    lines = program_page.render(CORPUS, {"git": found("git"), "bash": short}).splitlines()
    assert next(line for line in lines if line.startswith("| bash")).endswith("| 0.5 |  |  | equal |")
    assert any("2 of 2 equal" in line and "median ratio 1.50" in line for line in lines)
