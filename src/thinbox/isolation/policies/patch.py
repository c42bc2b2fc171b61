"""Policy `patch`: the code that was posted, where it differs from its text (rule 6 of docs/rules.md).

A fetch in the middle of a function needs only that the page before it holds some recorded address; at most
256 pages and 64 recorded addresses fit in a call, after which everything is refused. Kept to measure
against: it kills calls that do nothing wrong.
"""

from thinbox.address import PAGE_SHIFT
from thinbox.isolation.policy import CallView
from thinbox.isolation.verdict import Access, AccessKind, Verdict

MAX_PAGES = 256
MAX_ADDRESSES = 64
"""SCI_MAX_PTES and SCI_MAX_RIPS of the posted patch."""

_DATA = Verdict(granted=True, rule="6", reason="kernel data")
_START = Verdict(granted=True, rule="6a", reason="the start of a known symbol")
_NEXT = Verdict(granted=True, rule="6b (posted)", reason="the page after a recorded address")
_MIDDLE = Verdict(granted=False, rule="6b (posted)", reason="a jump into the middle of a function")
_NO_SYMBOL = Verdict(granted=False, rule="6c", reason="a fetch outside the known symbols of kernel and module text")
_FULL = Verdict(
    granted=False, rule="limits (posted)", reason="the call ran out of room: 256 pages or 64 recorded addresses"
)


class Patch:
    """The posted `sci_verify_and_map` and `sci_verify_code_access`."""

    name = "patch"
    judges_ends = False
    """The limits are a call's; the ends of tasks are judged by `live`."""
    grants_all_data = False

    def check_access(self, access: Access, call: CallView) -> Verdict:
        """Judge one access."""
        recorded: list[int] = call.notes.setdefault("recorded", [])
        if call.granted_pages >= MAX_PAGES or len(recorded) >= MAX_ADDRESSES:
            return _FULL
        if access.kind is not AccessKind.FETCH:
            return _DATA
        if access.symbol is None or access.generated:
            return _NO_SYMBOL
        if access.offset:
            page = access.vaddr >> PAGE_SHIFT
            return _NEXT if any(page == (address >> PAGE_SHIFT) + 1 for address in recorded) else _MIDDLE
        recorded.append(access.rip)
        return _START
