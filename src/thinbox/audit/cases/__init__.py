"""The corpus: one module per area of the kernel, loaded by name."""

from importlib import import_module
from pathlib import Path
from types import ModuleType


def load_corpus() -> tuple[ModuleType, ...]:
    """Import every module of this folder, in order of name."""
    paths = sorted(Path(__file__).parent.glob("[a-z]*.py"))
    return tuple(import_module(f"{__name__}.{path.stem}") for path in paths)
