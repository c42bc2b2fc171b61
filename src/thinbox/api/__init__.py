"""The public API, as `import thinbox` shows it: what is here keeps its names and its meaning."""

from thinbox.api.failures import RunError
from thinbox.api.guest import Guest, boot
from thinbox.api.inside import Inside
from thinbox.api.options import Tenant
from thinbox.api.plans import export, exporter, make_plan
from thinbox.api.policy import Policy
from thinbox.api.results import AttackResult, AuditResult, Result, TenantResults, render_report
from thinbox.attacks.attacker import Attacker
from thinbox.attacks.bug import wrong_registers
from thinbox.attacks.exploit import exploit
from thinbox.audit.case import Case
from thinbox.audit.case_runner import file_content
from thinbox.audit.expect import exactly
from thinbox.errors import InputError, MachineError, ThinboxError
from thinbox.isolation.policies import CallView
from thinbox.isolation.verdict import Access, AccessKind, Verdict, Violation
from thinbox.sandbox.emulation import CallError, NotOursError
from thinbox.sandbox.plan import Plan

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
