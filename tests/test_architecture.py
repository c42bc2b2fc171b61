"""The rooms keep their walls: who imports what, how long a module is, what it is called."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
MODULES = sorted(SOURCE.rglob("*.py"))
LONGEST = 400

ENGINE = {"unicorn", "numba", "llvmlite"}
ENGINE_EXCEPTIONS = {
    "thinbox.boot.sequence": {"unicorn"},  # register numbers (x86_const) for the entry state of the boot protocol
    "thinbox.boot.ready": {"unicorn"},  # its version is part of a snapshot's key, for the CPU state is its own
}
PURE_ROOMS = ("thinbox.isolation", "thinbox.paging", "thinbox.address", "thinbox.foreign_text", "thinbox.foreign_yaml")
PURE_FORBIDDEN = ENGINE | {
    "time", "os", "pathlib", "io", "sys", "random", "socket", "subprocess", "shutil", "tempfile", "threading", "ctypes",
}  # fmt: skip
PURE_ALLOWED_ROOMS = {
    "thinbox.isolation", "thinbox.paging", "thinbox.address", "thinbox.errors", "thinbox.foreign_text",
}  # fmt: skip

LAYERS = (
    {"thinbox.address", "thinbox.errors", "thinbox", "thinbox.paging", "thinbox.foreign_text", "thinbox.foreign_yaml"},
    {"thinbox.host"},
    {"thinbox.syscalls", "thinbox.image", "thinbox.isolation"},
    {"thinbox.kernel"},
    {"thinbox.machine"},
    {"thinbox.guest", "thinbox.records"},
    {"thinbox.container"},
    {"thinbox.boot"},
    {"thinbox.enforcement", "thinbox.sandbox"},
    {"thinbox.coverage"},
    {"thinbox.session"},
    {"thinbox.harness"},
    {"thinbox.cost"},
    {"thinbox.report", "thinbox.bench", "thinbox.surface", "thinbox.planning"},
    {"thinbox.audit"},
    {"thinbox.attacks"},
    {"thinbox.api"},
    {"thinbox.cli", "thinbox.__main__"},
)
"""Imports point to the same room or to an earlier layer, those for type checkers only, too."""
APART = {"thinbox.audit", "thinbox.attacks"}
FACE = "thinbox"
"""The package itself names the public API for type checkers, and imports it when it is asked: no arrow of its own."""


def name_of(path: Path) -> str:
    parts = list(path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Dotted names of the modules imported anywhere in `path`, within functions and for type checkers too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found.add(node.module)
            if node.module == "thinbox" or (SOURCE / node.module.replace(".", "/")).is_dir():
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def arrows_of(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules among `modules` that `path` imports: of `from package import module` the module alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(named & modules.keys())
            if named - modules.keys():
                found.add(node.module or "")
    return found & modules.keys()


def circles_in(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """The strongly connected components of more than one module, and modules that import themselves (Tarjan)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: set[frozenset[str]] = set()

    def visit(name: str) -> None:
        index[name] = lowest[name] = len(index)
        stack.append(name)
        for target in graph[name]:
            if target not in index:
                visit(target)
            if target in stack:
                lowest[name] = min(lowest[name], lowest[target])
        if lowest[name] == index[name]:
            at = stack.index(name)
            component = frozenset(stack[at:])
            del stack[at:]
            if len(component) > 1 or name in graph[name]:
                found.add(component)

    for name in graph:
        if name not in index:
            visit(name)
    return found


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def in_rooms(module: str, rooms: tuple[str, ...]) -> bool:
    return any(module == room or module.startswith(room + ".") for room in rooms)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_engine_is_imported_in_the_machine_only(path: Path) -> None:
    module = name_of(path)
    used = {name.split(".")[0] for name in imports_of(path)} & ENGINE
    if not in_rooms(module, ("thinbox.machine",)):
        assert used == ENGINE_EXCEPTIONS.get(module, set())


def test_every_exception_is_still_needed() -> None:
    assert ENGINE_EXCEPTIONS.keys() <= {name_of(path) for path in MODULES}


@pytest.mark.parametrize("path", [p for p in MODULES if in_rooms(name_of(p), PURE_ROOMS)], ids=name_of)
def test_verdicts_and_page_tables_are_pure(path: Path) -> None:
    imported = imports_of(path)
    assert not {name.split(".")[0] for name in imported} & PURE_FORBIDDEN
    assert {room_of(name) for name in imported if name.startswith("thinbox.")} <= PURE_ALLOWED_ROOMS
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"open", "print", "input", "exec", "eval", "__import__"}


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p) != FACE], ids=name_of)
def test_imports_point_down(path: Path) -> None:
    room = room_of(name_of(path))
    height = {name: level for level, layer in enumerate(LAYERS) for name in layer}
    assert room in height, f"{room} has no layer; add it to LAYERS and to ARCHITECTURE.md"
    for target in imports_of(path):
        if not target.startswith("thinbox."):
            continue
        below = room_of(target)
        if below not in height:  # a name of the package itself, such as __version__
            continue
        assert below == room or height[below] <= height[room], f"{name_of(path)} imports {target}"


def test_no_module_is_in_a_circle_of_imports() -> None:
    """An import for type checkers counts: it says who knows whom as well as any other."""
    modules = {name_of(path): path for path in MODULES}
    graph = {name: arrows_of(path, modules) if name != FACE else set() for name, path in modules.items()}
    assert sum(map(len, graph.values())) > 3 * len(graph) / 2
    assert circles_in(graph) == set()


@pytest.mark.parametrize("path", [p for p in MODULES if in_rooms(name_of(p), tuple(APART))], ids=name_of)
def test_audits_and_attacks_know_the_harness_and_not_each_other(path: Path) -> None:
    others = APART - {room_of(name_of(path))}
    assert not {room_of(name) for name in imports_of(path)} & others


def test_a_circle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": set(), "f": {"e"}, "g": {"g"}}
    assert circles_in(graph) == {frozenset("abc"), frozenset("g")}


def test_an_import_for_type_checkers_is_an_arrow(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from thinbox.cli import run\n    from thinbox.cli.run import run as r\n"
        "def f():\n    from thinbox.paging import walk\n"
    )
    modules = {name_of(found): found for found in MODULES}
    assert arrows_of(path, modules) == {"thinbox.cli.run", "thinbox.paging"}
    assert {"thinbox.cli.run", "thinbox.paging"} <= imports_of(path)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_fits_in_the_head(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_named_after_what_it_holds(path: Path) -> None:
    words = set(path.stem.split("_")) | set(path.parent.name.split("_"))
    assert not words & {"util", "utils", "helper", "helpers", "common", "base", "misc", "manager", "managers"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert not any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(tree))


NAMED = re.compile(r"`([a-z_]+(?:\.[a-z_]+)*(?:\.[A-Z]\w+)?)`")
"""A room, a module of one, or a class of it, as ARCHITECTURE.md names them."""


def is_there(dotted: str) -> bool:
    """Whether a name below `thinbox` is a room, a module, or something that a module defines."""
    place = SOURCE / "thinbox"
    parts = dotted.split(".")
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    path = place / "__init__.py"
    if parts and (place / f"{parts[0]}.py").exists():
        path = place / f"{parts.pop(0)}.py"
    if not parts:
        return path.exists()
    defined = {
        name
        for node in ast.parse(path.read_text()).body
        for name in (
            [getattr(node, "name", "")]
            + [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
            + [alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)]
        )
    }
    return parts == parts[:1] and parts[0] in defined


def test_architecture_names_what_there_is() -> None:
    text = (SOURCE.parent / "ARCHITECTURE.md").read_text()
    rooms = {name.removeprefix("thinbox.") for layer in LAYERS for name in layer if "." in name}
    named = {name for name in NAMED.findall(text) if name.split(".")[0] in rooms}
    assert len(named) > 100
    assert not {name for name in named if not is_there(name)}
    assert rooms - {"__main__"} <= {name for name in named if "." not in name}
    assert (
        is_there("session.session.Session") and not is_there("session.session.Nothing") and not is_there("session.no")
    )
