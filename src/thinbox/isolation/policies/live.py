"""Policy `live`: as `function`, and the code that the kernel generated and lists itself.

Rule 6c refuses every fetch outside kernel and module text, so a tenant with a seccomp filter, a socket filter
or a traced function is killed for what its engine, or its administrator, set up. Here code that stands in the
kernel's own lists (BPF programs and their trampolines, ftrace's trampolines, the task's own seccomp filters)
is a function like any other: entered at its start, or from inside it.

Cannot see: what `function` cannot; a list that the attacker changed (they are kernel data, and data is
granted); what generated code does.
"""

from thinbox.isolation.policies.function import INSIDE, Function
from thinbox.isolation.policies.sci import MIDDLE
from thinbox.isolation.policy import CallView
from thinbox.isolation.verdict import Access, AccessKind, Verdict

LISTED = Verdict(granted=True, rule="6c (live)", reason="the start of code the kernel generated and lists")


class Live:
    """Any data; functions as policy `function`; generated code at its start, and from inside itself."""

    name = "live"
    grants_all_data = True

    def __init__(self) -> None:
        self._function = Function()

    def check_access(self, access: Access, call: CallView) -> Verdict:
        """Judge one access."""
        if access.kind is not AccessKind.FETCH or not access.generated:
            return self._function.check_access(access, call)
        if access.offset == 0:
            return LISTED
        source = call.source
        last = 0 if source is None else (source.start if source.straight else source.end - 1)
        inside = access.symbol_start <= last < access.symbol_end
        return INSIDE if inside and call.is_executable(access.symbol_start) else MIDDLE


def judges_ends(policy: object) -> bool:
    """Tell whether a policy judges the ends of tasks as it judges calls; where it does not, `live` does. Of several
    joined ones, each must."""
    return all(getattr(part, "judges_ends", True) for part in getattr(policy, "parts", (policy,)))
