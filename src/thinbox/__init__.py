"""thinbox: run a program on a real kernel, every system call on its own reduced page table.

    import thinbox

    guest = thinbox.boot()
    result = guest.run(["id", "-u"])
    print(result.exit_code, result.text)

What is named in `__all__` is the public API: it keeps its names and its meaning. What is inside is imported when it is
first used, so that `import thinbox` itself takes no time. Wrong values are refused with `InputError`; what failed in
the machine is a `MachineError`; a killed tenant is a result, not an exception.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
"""The one place of the version; pyproject.toml reads it here."""

if TYPE_CHECKING:
    from thinbox.api import (
        Access,
        AccessKind,
        Attacker,
        AttackResult,
        AuditResult,
        CallError,
        CallView,
        Case,
        Guest,
        InputError,
        Inside,
        MachineError,
        NotOursError,
        Plan,
        Policy,
        Result,
        RunError,
        Tenant,
        TenantResults,
        ThinboxError,
        Verdict,
        Violation,
        boot,
        exactly,
        exploit,
        export,
        exporter,
        file_content,
        make_plan,
        render_report,
        wrong_registers,
    )


def __getattr__(name: str) -> Any:
    """Import the public API when one of its names is first used."""
    if name in __all__:
        return getattr(importlib.import_module("thinbox.api"), name)
    raise AttributeError(f"module 'thinbox' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "Access",
    "AccessKind",
    "AttackResult",
    "Attacker",
    "AuditResult",
    "CallError",
    "CallView",
    "Case",
    "Guest",
    "InputError",
    "Inside",
    "MachineError",
    "NotOursError",
    "Plan",
    "Policy",
    "Result",
    "RunError",
    "Tenant",
    "TenantResults",
    "ThinboxError",
    "Verdict",
    "Violation",
    "__version__",
    "boot",
    "exactly",
    "exploit",
    "export",
    "exporter",
    "file_content",
    "make_plan",
    "render_report",
    "wrong_registers",
]
