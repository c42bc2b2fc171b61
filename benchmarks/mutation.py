"""Breaks a module in one small way after another, and sees whether its tests notice.

Why it exists: a test that passes when what it tests is broken is worse than none. A mutant that survives is code that
no test would miss: a test is missing, or the code is not needed, or the two programs are one.

    python -m benchmarks.mutation                       # every module of TARGETS, minutes
    python -m benchmarks.mutation isolation/branches.py # one of them
    python -m benchmarks.mutation --sample 40           # at most so many mutants of each module, always the same

Rules of this file:
- Only tests that need no kernel: a mutant takes about a second. No file is changed; the mutated module is compiled from
  its tree in a process of its own, forked from one that has imported what is slow to import.
- What Numba compiles out of the file on disk is not mutated: tests of those functions run them interpreted.
- No clock decides; a mutant that uses a minute of CPU time loops without end, which counts as noticed.
"""

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.util
import json
import os
import random
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "thinbox"
_OTHERS = ("tests/isolation/policies/test_others.py",)
TARGETS: dict[str, tuple[str, ...]] = {
    "isolation/fault.py": ("tests/isolation/test_pagetable.py", "tests/isolation/test_fault.py"),
    "isolation/mappings.py": ("tests/isolation/test_mappings.py",),
    "isolation/page_ownership.py": ("tests/isolation/test_page_ownership.py",),
    "isolation/pagetable.py": ("tests/isolation/test_pagetable.py",),
    "isolation/policies/all_of.py": (*_OTHERS, "tests/isolation/policies/test_guard.py"),
    "isolation/policies/callgraph.py": _OTHERS,
    "isolation/policies/function.py": _OTHERS,
    "isolation/policies/guard.py": ("tests/isolation/policies/test_guard.py",),
    "isolation/policies/live.py": ("tests/isolation/policies/test_live.py",),
    "isolation/policies/patch.py": ("tests/isolation/test_policies.py",),
    "isolation/policies/profile.py": _OTHERS,
    "isolation/policies/sci.py": ("tests/isolation/test_policies.py",),
    "isolation/policies/transfer.py": ("tests/isolation/policies/test_transfer.py",),
    "isolation/stack.py": ("tests/isolation/test_stack.py",),
    "isolation/transfers.py": ("tests/isolation/test_transfers.py", "tests/isolation/policies/test_transfer.py"),
    "isolation/undo.py": ("tests/isolation/test_undo.py",),
    "isolation/verdict.py": ("tests/isolation/test_verdict.py", "tests/isolation/test_policies.py"),
    "isolation/view_rules.py": ("tests/isolation/test_view_rules.py",),
    "enforcement/call_switch.py": ("tests/enforcement/test_call_switch.py",),
    "enforcement/grants.py": ("tests/enforcement/test_grants.py",),
    "enforcement/hang_detector.py": ("tests/enforcement/test_hang_detector.py",),
    "enforcement/judge.py": ("tests/enforcement/test_judge.py",),
    "enforcement/open_call.py": ("tests/enforcement/test_open_call.py",),
    "enforcement/observers.py": ("tests/enforcement/test_observers.py",),
    "enforcement/shootdown.py": ("tests/enforcement/test_shootdown.py",),
    "enforcement/tables.py": ("tests/enforcement/test_tables.py",),
    "enforcement/tasks.py": ("tests/enforcement/test_tasks.py",),
    "planning/classic_bpf.py": ("tests/planning/test_classic_bpf.py",),
    "records/refusals.py": ("tests/records/test_refusals.py",),
}
"""Each module, and its tests that need no kernel. One that has none is told as such."""
LIMIT_S = 60
"""CPU time after which a mutant loops for ever; the tests of a module take seconds of it."""
_SURVIVED, _BROKEN = 0, 64
_COMPARISONS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_OPERATIONS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.Mod: ast.Mult,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mutant:
    """A module with one change: where, what, and its tree."""

    line: int
    change: str
    tree: ast.Module


def mutants(code: str) -> Iterator[Mutant]:
    """Yield every mutant of a module: a comparison, an operator, a constant, a condition, or a statement left out."""
    tree = ast.parse(code)
    for path in _sites(tree):
        node = _at(tree, path)
        for change, made in _changes(node):
            mutant = copy.deepcopy(tree)
            _put(mutant, path, made)
            said = f"{ast.unparse(node).partition(chr(10))[0]}  ->  {change}"
            yield Mutant(node.lineno, said, ast.fix_missing_locations(mutant))


def _sites(node: ast.AST, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where something can be changed, as a path of fields and indexes; not in what is only said or declared."""
    if isinstance(node, ast.Assert | ast.Import | ast.ImportFrom | ast.JoinedStr) or _is_declaration(node):
        return
    if path:
        yield path
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list", "type_params", "op", "ops", "bases"}:
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST):
                yield from _sites(child, (*path, (name, index)))


def _is_declaration(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return True
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in {"__all__", "__slots__"}


def _at(tree: ast.AST, path: tuple[Any, ...]) -> Any:
    node: Any = tree
    for name, index in path:
        node = getattr(node, name) if index is None else getattr(node, name)[index]
    return node


def _put(tree: ast.AST, path: tuple[Any, ...], made: ast.AST) -> None:
    owner, (name, index) = _at(tree, path[:-1]), path[-1]
    if index is None:
        setattr(owner, name, made)
    else:
        getattr(owner, name)[index] = made


def _changes(node: Any) -> Iterator[tuple[str, ast.AST]]:
    """Yield what may stand in a node's place, each with its wording."""
    if isinstance(node, ast.Expr | ast.Break | ast.Continue):
        yield "left out", ast.Pass()
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        # A loop whose condition always holds would only end by its own break.
        for test in (False,) if isinstance(node, ast.While) else (True, False):
            other = copy.copy(node)
            other.test = ast.Constant(test)
            yield f"always as if it were {test}", other
    else:
        for other in _replacements(node):
            yield ast.unparse(ast.fix_missing_locations(other)), other


def _replacements(node: Any) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(ops=ops):
            for index, op in enumerate(ops):
                changed = [*ops[:index], _COMPARISONS[type(op)](), *ops[index + 1 :]]
                yield ast.Compare(node.left, changed, node.comparators)
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(ast.And() if isinstance(op, ast.Or) else ast.Or(), values)
        case ast.UnaryOp(op=ast.Not() | ast.Invert() | ast.USub(), operand=operand):
            yield operand
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            yield ast.BinOp(left, _OPERATIONS[type(op)](), right)
        case ast.AugAssign(target=target, op=op, value=value) if type(op) in _OPERATIONS:
            yield ast.AugAssign(target, _OPERATIONS[type(op)](), value)
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() as value):
            yield ast.Constant(value + 1)
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield ast.Return(ast.Constant(None))


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one module, as its mutant."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self._name, self._path, self._tree = name, path, tree

    def find_spec(self, name: str, _path: object, _target: object = None) -> Any:
        return importlib.util.spec_from_file_location(name, self._path, loader=self) if name == self._name else None

    def create_module(self, _spec: object) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._tree, str(self._path), "exec"), module.__dict__)  # noqa: S102 - the module itself, mutated


def run_tests(path: Path, tree: ast.Module, tests: tuple[str, ...]) -> int:
    """Run `tests` in a process in which the module of file `path` is `tree`; return the status, 0 if all passed.

    Preconditions: this process has imported nothing of thinbox.
    """
    child = os.fork()
    if child == 0:
        status = _BROKEN
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
        with contextlib.suppress(BaseException):
            status = _run_here(path, tree, tests)
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run_here(path: Path, tree: ast.Module, tests: tuple[str, ...]) -> int:
    import pytest

    with open(os.devnull, "wb") as nothing:
        for stream in (1, 2):
            os.dup2(nothing.fileno(), stream)
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
    name = ".".join(("thinbox", *path.relative_to(SOURCE).with_suffix("").parts))
    sys.meta_path.insert(0, _Mutated(name, path, tree))
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not guest"]
    return int(pytest.main([*options, *tests]))


def measure(module: str, sample: int | None) -> dict[str, Any]:
    """Try a module's mutants; return how many there were, and those that survived."""
    path, tests = SOURCE / module, tuple(test for test in TARGETS[module] if (ROOT / test).exists())
    if not tests:
        return {"module": module, "tests": None, "mutants": 0, "survivors": []}
    found = list(mutants(path.read_text()))
    if sample is not None and sample < len(found):
        found = [found[at] for at in sorted(random.Random(module).sample(range(len(found)), sample))]  # noqa: S311
    if run_tests(path, ast.parse(path.read_text()), tests) != 0:
        raise SystemExit(f"{module}: its tests fail as it is: {' '.join(tests)}")
    alive = [mutant for mutant in found if run_tests(path, mutant.tree, tests) == _SURVIVED]
    survivors = [{"line": mutant.line, "change": mutant.change} for mutant in alive]
    return {"module": module, "tests": list(tests), "mutants": len(found), "survivors": survivors}


def main() -> None:
    """Say what survived; `--json` for a program to read."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutation", description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="as in TARGETS; all of them if none is named")
    parser.add_argument("--sample", type=int, metavar="N", help="at most N mutants of each module, always the same")
    parser.add_argument("--limit", type=float, default=3600, metavar="S", help="begin no module after S seconds")
    parser.add_argument("--json", metavar="FILE", help="write the results, too")
    given = parser.parse_args()
    if unknown := sorted(set(given.modules) - TARGETS.keys()):
        parser.error(f"no such module: {', '.join(unknown)}")
    import hypothesis  # noqa: F401 - imported once for all mutants
    import numpy as np  # noqa: F401
    import pytest  # noqa: F401

    started, results = time.monotonic(), []
    for module in given.modules or TARGETS:
        if time.monotonic() - started > given.limit:
            print(f"{module}: left out, {given.limit:g} s are over")
            continue
        results.append(found := measure(module, given.sample))
        said = "no test without a kernel" if found["tests"] is None else f"{len(found['survivors'])} survived"
        print(f"{module}: {found['mutants']} mutants, {said}", flush=True)
        for survivor in found["survivors"]:
            print(f"  {survivor['line']}: {survivor['change']}")
    if given.json:
        Path(given.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
