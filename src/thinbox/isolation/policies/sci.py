"""Policy `sci`: the text of the proposal (rule 6 of docs/rules.md).

Cannot see: anything done with kernel data, calls of whole functions with wrong arguments, and gadgets in
pages that were granted for good reasons.
"""

from thinbox.address import PAGE_BYTES, page_start
from thinbox.isolation.policy import CallView
from thinbox.isolation.verdict import Access, AccessKind, Verdict

DATA = Verdict(granted=True, rule="6", reason="kernel data", cacheable=True)
FUNCTION_START = Verdict(granted=True, rule="6a", reason="the start of a known symbol", cacheable=True)
MIDDLE = Verdict(
    granted=False, rule="6b", reason="a jump into the middle of a function that was not entered at its start"
)
NO_SYMBOL = Verdict(granted=False, rule="6c", reason="a fetch outside the known symbols of kernel and module text")


def next_page(start: int, before: int) -> Verdict:
    """Return the grant of the page that goes on behind `before`, in the function that starts at `start`."""
    reason = "the next page of a symbol whose start is mapped"
    return Verdict(granted=True, rule="6b", reason=reason, cacheable=True, while_mapped=(start, before))


class Sci:
    """Any data; code only at a symbol's start, or from there page by page."""

    name = "sci"
    judges_ends = False
    """The proposal is about calls; the ends of tasks are judged by `live`."""
    grants_all_data = True

    def check_access(self, access: Access, call: CallView) -> Verdict:
        """Judge one access."""
        if access.kind is not AccessKind.FETCH:
            return DATA
        if access.symbol is None or access.generated:
            return NO_SYMBOL
        if access.offset == 0:
            return FUNCTION_START
        page = page_start(access.vaddr)
        # The target page holding the symbol's start would mean the page is mapped already: no next page then.
        if page == page_start(access.symbol_start):
            return MIDDLE
        if call.is_executable(access.symbol_start) and call.is_executable(page - PAGE_BYTES):
            return next_page(access.symbol_start, page - PAGE_BYTES)
        return MIDDLE
