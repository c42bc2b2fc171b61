"""What a policy is, and what it may know of the call it judges: the protocols alone.

Why it exists: the policies, which `isolation.policies` loads by name, and whoever asks them agree on these words and
need not know each other.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from thinbox.isolation.verdict import Access, Verdict

if TYPE_CHECKING:
    from thinbox.isolation.callgraph import CallGraph
    from thinbox.isolation.transfers import Source, Stack


class CodeSymbol(Protocol):
    """A function: `name` covers `start` up to `end_exclusive`."""

    @property
    def name(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def end_exclusive(self) -> int: ...


class CallView(Protocol):
    """What a policy may know of the call it judges."""

    granted_pages: int
    """Pages granted to this call so far."""
    notes: dict[str, Any]
    """The policy's own memory, empty when the call begins, forgotten when it ends."""
    nr: int
    """The call's number; -1 for a 32-bit call."""
    name: str
    """The call's name."""
    text_start: int
    """Where the kernel's text begins."""
    text_version: int
    """Changes when the kernel patched its own text: whatever was decoded before may be stale."""

    def is_executable(self, vaddr: int) -> bool:
        """Whether the page of `vaddr` is mapped, and executable, in the call's SCI table."""
        ...

    @property
    def source(self) -> "Source | None":
        """Where the fetch came from; None where thinbox itself lets the task go on after it slept."""
        ...

    @property
    def stack(self) -> "Stack":
        """The stack, walked by the kernel's own tables."""
        ...

    @property
    def registers(self) -> Sequence[int]:
        """The general registers in encoding order (RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 …)."""
        ...

    @property
    def graph(self) -> "CallGraph":
        """The static call graph; only for a policy with `needs_graph`."""
        ...

    def read_code(self, vaddr: int, size_bytes: int) -> bytes:
        """The live bytes of kernel text."""
        ...

    def read_word(self, vaddr: int) -> int | None:
        """The 8-byte word at a kernel address, None where nothing is mapped."""
        ...

    def symbol_at(self, vaddr: int) -> CodeSymbol | None:
        """The function around an address of kernel text."""
        ...

    def starts_of(self, name: str, near: int) -> Sequence[int]:
        """Where the functions called exactly `name` start: in the module that holds the address `near`, else in the
        kernel's text. Static functions share names."""
        ...

    def is_fixup(self, vaddr: int) -> bool:
        """Whether the kernel's exception table sends a faulting instruction there."""
        ...


class Policy(Protocol):
    """The protocol: a name, and a judgement. The rest may be left out.

    `judges_stack` (bool): no fetch is granted without asking unless every frame of the stack was under a
    fetch this policy granted before. `needs_graph` (bool): `CallView.graph` is wanted. `guards_end` (bool): it has
    `check_end`, `check_between` and `check_program`, see policy `guard`.
    """

    name: str
    grants_all_data: bool
    """True: every access to kernel data is granted, without asking; such faults take the fast path."""

    def check_access(self, access: Access, call: CallView) -> Verdict:
        """Judge one access."""
        ...
