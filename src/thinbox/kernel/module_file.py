"""`struct module` as it stands in a module's file: its size, its name, and where its functions are put.

One shape is known, of Linux 5.10 to 7.3. Without CONFIG_MODULE_UNLOAD a module has no exit function.

Source: include/linux/module.h, kernel/module/main.c (`load_module`), scripts/mod/modpost.c (`add_header`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "no module can be made for this kernel"


@dataclass(frozen=True, slots=True)
class ModuleFileShape:
    """Bytes of the whole, and offsets; `exit_at` is None where there is none."""

    module_bytes: int
    name_at: int
    init_at: int
    exit_at: int | None


def probe_module_file(probe: Probe) -> ModuleFileShape:
    """Find it; what is missing is noted in `probe`."""
    return ModuleFileShape(
        module_bytes=probe.size("module"),
        name_at=probe.offset("module.name"),
        init_at=probe.offset("module.init"),
        exit_at=probe.offset("module.exit") if probe.has_member("module.exit") else None,
    )


def find_module_file(facts: "KernelFacts") -> ModuleFileShape:
    """Return it; `MissingFactError` if this kernel's modules are of another kind, or it has none."""
    probe = Probe(facts, "files of modules", DISABLES)
    found = probe_module_file(probe)
    probe.check()
    return found
