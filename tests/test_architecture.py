"""The rooms keep their walls: who imports what, how long a module is, what it is called."""

import ast
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
PURE_ROOMS = ("thinbox.isolation", "thinbox.paging", "thinbox.address")
PURE_FORBIDDEN = ENGINE | {
    "time", "os", "pathlib", "io", "sys", "random", "socket", "subprocess", "shutil", "tempfile", "threading", "ctypes",
}  # fmt: skip
PURE_ALLOWED_ROOMS = {"thinbox.isolation", "thinbox.paging", "thinbox.address", "thinbox.errors"}

LAYERS = (
    {"thinbox.address", "thinbox.errors", "thinbox", "thinbox.paging"},
    {"thinbox.syscalls", "thinbox.image", "thinbox.isolation"},
    {"thinbox.machine"},
    {"thinbox.guest", "thinbox.records"},
    {"thinbox.container"},
    {"thinbox.boot"},
    {"thinbox.enforcement", "thinbox.sandbox"},
    {"thinbox.coverage"},
    {"thinbox.session"},
    {"thinbox.cost"},
    {"thinbox.report", "thinbox.bench", "thinbox.surface", "thinbox.planning"},
    {"thinbox.audit"},
    {"thinbox.attacks"},
    {"thinbox.api"},
    {"thinbox.cli", "thinbox.__main__"},
)
"""Imports point to the same room or to an earlier layer. Imports for type checkers only do not count."""


def name_of(path: Path) -> str:
    parts = list(path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, *, typing_too: bool = False) -> set[str]:
    """Dotted names of the modules imported anywhere in `path`, within functions too."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not typing_too:
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found.add(node.module)
            if node.module == "thinbox" or (SOURCE / node.module.replace(".", "/")).is_dir():
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
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


@pytest.mark.parametrize("path", MODULES, ids=name_of)
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
