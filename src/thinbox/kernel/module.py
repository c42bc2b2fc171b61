"""Modules: the list of those that are loaded, where the text of each lies, and the names of its functions.

Shapes, newest first:
- a module's parts are an array, `module.mem`, by kind: MOD_TEXT, MOD_INIT_TEXT (6.4, commit ac3b43283923 "module:
  replace module_layout with module_memory").
- they are `module.core_layout` and `module.init_layout`, each with a part that is text.

A kernel without `modules` has none (CONFIG_MODULES=n).

Source: include/linux/module.h (`struct module`, `struct mod_kallsyms`), kernel/module/kallsyms.c.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "code of modules cannot be told from code of nobody"
HEAD = "modules"
_KINDS = ("MOD_TEXT", "MOD_INIT_TEXT")


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """`head_at` is the list, `link_at` its links in a module; `texts` are the offsets of (address, bytes in 32 bits) of
    each part that is text. The last four are of a module's table of symbols, and of that table's members."""

    head_at: int
    link_at: int
    texts: tuple[tuple[int, int], ...]
    table_at: int
    symbols_at: int
    names_at: int
    kinds_at: int
    count_at: int


def _texts(probe: Probe) -> tuple[tuple[int, int], ...]:
    if probe.member("module.mem", "module.core_layout") == "module.core_layout":
        base, size = probe.offset("module_layout.base"), probe.offset("module_layout.text_size")
        starts = [probe.offset(f"module.{part}") for part in ("core_layout", "init_layout")]
    else:
        base, size = probe.offset("module_memory.base"), probe.offset("module_memory.size")
        at, step = probe.offset("module.mem"), probe.size("module_memory")
        starts = [at + step * (probe.enumerator(kind) or 0) for kind in _KINDS]
    return tuple((start + base, start + size) for start in starts)


def probe_module(probe: Probe) -> ModuleShape | None:
    """Find it, None if this kernel has no modules; what is missing is noted in `probe`."""
    if not probe.has_symbol(HEAD):
        return None
    return ModuleShape(
        head_at=probe.symbol(HEAD),
        link_at=probe.offset("module.list"),
        texts=_texts(probe),
        table_at=probe.offset("module.kallsyms"),
        symbols_at=probe.offset("mod_kallsyms.symtab"),
        names_at=probe.offset("mod_kallsyms.strtab"),
        kinds_at=probe.offset("mod_kallsyms.typetab"),
        count_at=probe.offset("mod_kallsyms.num_symtab"),
    )


def find_module_shape(facts: "KernelFacts") -> ModuleShape | None:
    """Return it; `MissingFactError` if this kernel keeps its modules in another way."""
    probe = Probe(facts, HEAD, DISABLES)
    found = probe_module(probe)
    probe.check()
    return found
