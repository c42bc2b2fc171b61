"""The access a policy judges, and its verdict.

Why it exists: a killed tenant is a result, and this is its wording.
"""

import enum
from dataclasses import dataclass

from thinbox import paging

PLANNED = "call"
"""`Violation.kind` of a call that a plan kills: no access was judged."""


class AccessKind(enum.StrEnum):
    """What the CPU was doing when the page was missing."""

    FETCH = "fetch"
    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Access:
    """An access to kernel memory that the SCI table refused and the kernel's own table would allow.

    `generated` says that the symbol is code the kernel made at run time and lists (a BPF program, a trampoline).

    `symbol`, `symbol_start`, `symbol_end` describe the text symbol around `vaddr` (None, 0, 0 outside
    kernel text); `rip` is the instruction that ran, for a fetch the target itself.
    """

    vaddr: int
    kind: AccessKind
    rip: int
    symbol: str | None
    symbol_start: int
    symbol_end: int
    generated: bool = False

    @property
    def offset(self) -> int:
        """Bytes from the symbol's start."""
        return self.vaddr - self.symbol_start if self.symbol is not None else 0

    @property
    def place(self) -> str:
        """`symbol+0xoffset`, or the address."""
        return f"{self.symbol}+{self.offset:#x}" if self.symbol is not None else f"{self.vaddr:#x}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`granted`, by which `rule`, and the reason in words.

    `cacheable` means: the same access would be granted in any call at any time, so it need not be asked again.
    Three qualifications of it: `per_source`, if it comes from the same block of code (until the kernel
    patches its text); `per_syscall`, if it happens in a call of the same number; `while_mapped`, if the call's table
    maps these addresses executable (one or two; with another qualification, or more, it is not remembered).
    """

    granted: bool
    rule: str
    reason: str
    cacheable: bool = False
    per_source: bool = False
    per_syscall: bool = False
    while_mapped: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Violation:
    """A refused access: what thinbox kills for."""

    call: str
    reason: str
    rule: str
    vaddr: int
    symbol: str | None
    offset: int
    policy: str
    kind: str
    undone: bool = False
    """The call was rolled back to its entry before its task was killed."""
    tenant: str = "tenant"
    view: str | None = None
    """The view that refused the access; None if the policy did."""
    owner: str | None = None
    """The tenant the hidden page belongs to, if it is a tenant's."""

    def sentence(self) -> str:
        """Name call, address, symbol, offset, rule and policy in one sentence."""
        if self.kind == PLANNED:
            return f"{self.call} was killed: {self.reason}"
        place = f"{self.symbol}+{self.offset:#x} ({self.vaddr:#x})" if self.symbol else f"{self.vaddr:#x}"
        by = f"policy {self.policy}" if self.view is None else f"view {self.view}"
        return f"{self.call} was killed: {self.kind} at {place} refused by rule {self.rule} of {by}: {self.reason}"


def remedy(violation: Violation) -> str:
    """Return which policy a program that did no wrong would have run under, "" if none is known.

    Rule 6b of `sci` (and `patch`) refuses pages of a function that its own code goes on to, rule 6c of all but `live`
    code that the kernel generated: seccomp filters, BPF, trampolines (docs/policies.md).
    """
    parts = violation.policy.split("+")
    rule = violation.rule.split()[0]
    helps = (rule == "6b" and {"sci", "patch"} & set(parts)) or (rule == "6c" and parts[0] != "live")
    if violation.view is not None or violation.kind != AccessKind.FETCH or not helps:
        return ""
    better = "+".join(["live", *(part for part in parts if part == "guard")])
    what = "its own pages from inside a function" if rule == "6b" else "code that the kernel generated and lists"
    return f"if that was no attack, try --policy {better}, which also allows {what}"


def kind_of(error: int) -> AccessKind:
    """Return what the CPU was doing, from the page fault's error code."""
    if error & paging.FAULT_FETCH:
        return AccessKind.FETCH
    return AccessKind.WRITE if error & paging.FAULT_WRITE else AccessKind.READ
