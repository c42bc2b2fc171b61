"""The mutation tool finds what a test would miss, and believes no test that fails anyway."""

import ast

import pytest
from benchmarks import mutation

CODE = '''"""Says nothing."""
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import os
LIMIT = 3
def is_small(number: int = 0) -> bool:
    """Tell."""
    assert number >= 0
    if number < LIMIT and not number == 2:
        return True
    return bool(number & 8)
'''


def changes(code):
    return [mutant.change for mutant in mutation.mutants(code)]


def test_every_kind_of_change_is_made_and_what_is_only_said_is_left_alone():
    found = changes(CODE)
    assert found == [
        "3  ->  4",
        "0  ->  1",
        "if number < LIMIT and (not number == 2):  ->  always as if it were True",
        "if number < LIMIT and (not number == 2):  ->  always as if it were False",
        "number < LIMIT and (not number == 2)  ->  number < LIMIT or not number == 2",
        "number < LIMIT  ->  number <= LIMIT",
        "not number == 2  ->  number == 2",
        "number == 2  ->  number != 2",
        "2  ->  3",
        "True  ->  False",
        "return bool(number & 8)  ->  return None",
        "number & 8  ->  number | 8",
        "8  ->  9",
    ]


def test_a_mutant_differs_from_the_module_in_one_place_and_compiles():
    plain = ast.unparse(ast.parse(CODE))
    for mutant in mutation.mutants(CODE):
        compile(mutant.tree, "x", "exec")
        lines = ast.unparse(mutant.tree).splitlines()
        assert sum(a != b for a, b in zip(lines, plain.splitlines(), strict=True)) == 1, mutant.change
    assert ast.unparse(ast.parse(CODE)) == plain


@pytest.mark.parametrize(("code", "found"), [("while a:\n    b()\n    break", 3), ("a += 1", 2), ("x = -1", 2)])
def test_loops_statements_and_signs(code, found):
    assert len(changes(code)) == found


def test_every_target_is_a_module_and_what_is_named_for_it_is_there():
    for module, tests in mutation.TARGETS.items():
        assert (mutation.SOURCE / module).is_file()
        assert all((mutation.ROOT / test).is_file() for test in tests), module


@pytest.mark.slow
def test_survivors_are_told_from_those_that_were_noticed(tmp_path, monkeypatch):
    """A process that has imported thinbox cannot fork a mutant: another one does it."""
    import json
    import subprocess
    import sys

    out = tmp_path / "out.json"
    words = [sys.executable, "-m", "benchmarks.mutation", "enforcement/tasks.py", "--json", str(out)]
    subprocess.run(words, check=True, cwd=mutation.ROOT, capture_output=True)
    (found,) = json.loads(out.read_text())
    assert found["mutants"] > 10 and len(found["survivors"]) < found["mutants"] / 2
