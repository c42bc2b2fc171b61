"""What is left to an exploit inside one call, against the unisolated kernel as the whole.

Why it exists: a grant frees everything in its page, not only what the call needed. This measures it: pages,
gadgets, functions, for what the call was granted from its entry to its end, baseline included.

Rules of this file:
- A code page is one granted on a fetch (data grants are NX, decision 6) or executable in the baseline.
- A writable page is one whose mapping is writable, whatever access it was granted on (`FaultRecord.writable`).
- Pages taken from the table before the call ended (a torn-down mapping) count: the call had them.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from thinbox import paging
from thinbox.address import U64, page_start, to_signed
from thinbox.isolation.policies import CallView, Policy
from thinbox.isolation.verdict import Access, AccessKind
from thinbox.records.run import FaultRecord
from thinbox.surface.gadget_set import GadgetCounts, GadgetSet

if TYPE_CHECKING:
    from thinbox.guest.kernel_view import KernelView
    from thinbox.guest.sites import Sites
    from thinbox.image.symbols import SymbolTable
    from thinbox.machine.memory import Memory

Pages = frozenset[int]


@dataclass(frozen=True, slots=True)
class Grants:
    """The pages one call was granted, as page addresses: fetched from, read or written, and writable."""

    code: Pages = frozenset()
    data: Pages = frozenset()
    writable: Pages = frozenset()


@dataclass(frozen=True, slots=True)
class Residual:
    """What is left. Pages are 4 KiB of virtual memory; functions are distinct starts of text symbols.

    `functions_in_pages` start in a code page, so a jump to them is not even judged. `functions_startable`
    are those and the ones whose start the policy would grant (rule 6a): whole functions within one jump.
    `data_pages` hold kernel data, or code granted as data; `writable_pages` are those of them that may be written.
    """

    code_pages: int
    gadgets: GadgetCounts
    functions_in_pages: int
    functions_startable: int
    data_pages: int
    writable_pages: int

    def share_of(self, whole: "Residual") -> float:
        """Return the share of gadgets left, 0 to 1."""
        return self.gadgets.total / whole.gadgets.total if whole.gadgets.total else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain values; the gadgets with their sum."""
        return asdict(self) | {"gadgets": asdict(self.gadgets) | {"total": self.gadgets.total}}


@dataclass(frozen=True, slots=True)
class BaselinePages:
    """What every SCI table maps (rule 1): `code` page addresses, and how many pages hold data, stack included."""

    code: Pages
    data_pages: int
    writable_pages: int


def read_baseline(memory: "Memory", view: "KernelView", sites: "Sites") -> BaselinePages:
    """Walk the kernel's table of a ready guest for the baseline of a task; all stacks are alike."""
    code: set[int] = set()
    data: set[int] = set()
    writable: set[int] = set()
    root = view.kernel_root
    for vaddr in sites.baseline.pages(view.stack_of(view.current, root), view.stack_bytes):
        leaf = memory.tables.lookup(root, to_signed(vaddr))
        if not leaf:
            continue
        (data if leaf & paging.NO_EXECUTE else code).add(vaddr)
        if leaf & paging.WRITABLE:
            writable.add(vaddr)
    return BaselinePages(frozenset(code), len(data), len(writable))


def grants_of(faults: Iterable[FaultRecord]) -> dict[int, Grants]:
    """Return the grants of each call, by its `seq`."""
    sets: dict[int, tuple[set[int], set[int], set[int]]] = {}
    for fault in faults:
        code, data, writable = sets.setdefault(fault.seq, (set(), set(), set()))
        page = page_start(fault.vaddr)
        (code if fault.kind == AccessKind.FETCH.value else data).add(page)
        if fault.writable:
            writable.add(page)
    return {seq: Grants(*map(frozenset, three)) for seq, three in sets.items()}


class Surface:
    """One kernel under one policy; `measure_call` answers for a call, `whole` for the unisolated kernel.

    `mapped_pages` and `writable_pages` are the unisolated kernel's (`LiveKernel`). The policy is asked about function
    starts after the run, so its answers must depend on access and call alone.
    """

    def __init__(
        self,
        gadgets: GadgetSet,
        symbols: "SymbolTable",
        baseline: BaselinePages,
        policy: Policy,
        mapped_pages: int,
        writable_pages: int,
    ) -> None:
        self.gadgets, self.baseline, self.policy = gadgets, baseline, policy
        self._symbols = symbols
        starts = np.array(symbols.text_starts, np.uint64)
        executable = np.zeros(len(starts), np.bool_)
        for start, end in gadgets.spans:
            executable |= (starts >= np.uint64(start)) & (starts < np.uint64(end))
        self._starts = starts[executable]
        self._start_pages = self._starts & np.uint64(page_start(U64))
        self._cacheable = np.zeros(len(self._starts), np.bool_)
        self._known: dict[Grants, Residual] = {}
        self.whole = Residual(
            code_pages=gadgets.pages,
            gadgets=gadgets.counts,
            functions_in_pages=len(self._starts),
            functions_startable=len(self._starts),
            data_pages=mapped_pages - gadgets.pages,
            writable_pages=writable_pages,
        )

    def measure_call(self, grants: Grants) -> Residual:
        """Return what is left to an exploit in an isolated call that was given `grants`."""
        known = self._known.get(grants)
        if known is None:
            code = self.baseline.code | grants.code
            in_pages = np.isin(self._start_pages, np.array(sorted(code), np.uint64))
            known = self._known[grants] = Residual(
                code_pages=len(code),
                gadgets=self.gadgets.in_pages(code),
                functions_in_pages=int(np.count_nonzero(in_pages)),
                functions_startable=self._count_startable(in_pages, code, len(grants.code) + len(grants.data)),
                data_pages=self.baseline.data_pages + len(grants.data),
                writable_pages=self.baseline.writable_pages + len(grants.writable),
            )
        return known

    def _count_startable(self, in_pages: npt.NDArray[np.bool_], code: Pages, granted_pages: int) -> int:
        """Ask the policy for the start of every function outside `code`, as if the call went on there.

        It is asked with empty notes: what a policy remembers of a call is gone when the call has ended. A policy
        that wants to know more of the call (where the jump came from, say) counts as granting every start.
        """
        granted = in_pages | self._cacheable
        for index in np.flatnonzero(~granted).tolist():
            symbol = self._symbols.text_symbol_at(int(self._starts[index]))
            if symbol is None:
                continue
            access = Access(
                symbol.start, AccessKind.FETCH, symbol.start, symbol.name, symbol.start, symbol.end_exclusive
            )
            try:
                verdict = self.policy.check_access(access, cast("CallView", _EndOfCall(granted_pages, code)))
            except _NotKnownError:
                # Whether it would depends on how the CPU came there: never understate what is left.
                return len(self._starts)
            granted[index] = verdict.granted
            self._cacheable[index] = verdict.granted and verdict.cacheable and not verdict.while_mapped
        return int(np.count_nonzero(granted))


class _NotKnownError(Exception):
    """A policy asked for what no longer is known after the call."""


class _EndOfCall:
    """A call that has been granted all it will be, as a policy sees it."""

    def __init__(self, granted_pages: int, code: Pages) -> None:
        self.granted_pages = granted_pages
        self.notes: dict[str, Any] = {}
        self._code = code

    def is_executable(self, vaddr: int) -> bool:
        return page_start(vaddr) in self._code

    def __getattr__(self, name: str) -> Any:
        raise _NotKnownError(name)
