"""The corpus: one module per area of the kernel, loaded by name."""

from importlib import import_module
from pathlib import Path


def load_corpus() -> None:
    """Import every module of this folder, in order of name."""
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        import_module(f"{__name__}.{path.stem}")
