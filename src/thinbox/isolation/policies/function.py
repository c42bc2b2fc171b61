"""Policy `function`: rule 6b by function, not page by page.

As `sci`; besides, once the page of a function's start is mapped, a fetch that comes from inside the same
function is allowed on any page of it. `.cold` parts belong to the function they were split from (gcc,
-freorder-blocks-and-partition): they are jumped into, and back from, in the middle.

Cannot see: what `sci` cannot; and any transfer from one place of a function to another place of it.
"""

from thinbox.isolation.policies.sci import MIDDLE, Sci
from thinbox.isolation.policy import CallView
from thinbox.isolation.verdict import Access, Verdict

INSIDE = Verdict(granted=True, rule="6b (function)", reason="a transfer inside a function whose start is mapped")
_COLD = ".cold"


class Function:
    """Any data; code at a symbol's start, and from inside a function on any page of it."""

    name = "function"
    grants_all_data = True

    def __init__(self) -> None:
        self._sci = Sci()

    def check_access(self, access: Access, call: CallView) -> Verdict:
        """Judge one access."""
        verdict = self._sci.check_access(access, call)
        if verdict.granted or verdict is not MIDDLE:
            return verdict
        source = call.source
        # The last byte of the block lies in the function that made the transfer, also where a block crosses two.
        origin = None if source is None else call.symbol_at(source.start if source.straight else source.end - 1)
        if origin is None or access.symbol is None:
            return MIDDLE
        if origin.start in (access.symbol_start, _symbol_start(access, call)):
            return INSIDE if _is_entered(access.symbol, access.symbol_start, call) else MIDDLE
        if origin.name.removesuffix(_COLD) == access.symbol.removesuffix(_COLD):
            # Entered at the whole function's start, which is mapped: the part that is not cold.
            whole = access.symbol_start if origin.name.endswith(_COLD) else origin.start
            return INSIDE if call.is_executable(whole) else MIDDLE
        return MIDDLE


def _is_entered(name: str, start: int, call: CallView) -> bool:
    """Whether the page of a function's start is mapped; a cold part has none of its own, it is entered at the
    whole's."""
    if call.is_executable(start):
        return True
    whole = name.removesuffix(_COLD)
    return whole != name and any(map(call.is_executable, call.starts_of(whole, start)))


def _symbol_start(access: Access, call: CallView) -> int:
    """The start of the symbol itself, where `access` names the function it is a part of (isolation.assembly)."""
    symbol = call.symbol_at(access.vaddr)
    return access.symbol_start if symbol is None else symbol.start
