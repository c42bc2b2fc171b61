"""Policy `callgraph`: only functions this call's handler can reach in the static call graph of the live text.

As `function`, and besides: the function must be reachable from the call's entry path or from the handler of
its number (`thinbox.isolation.callgraph`).

Cannot see: what `function` cannot; any function whose address is taken somewhere, and what that one calls,
is reachable from every call, which is most of the kernel. It stops other calls' handlers and their helpers.
"""

from dataclasses import replace

from thinbox.isolation.policies.function import Function
from thinbox.isolation.policy import CallView
from thinbox.isolation.verdict import Access, AccessKind, Verdict

UNREACHABLE = Verdict(granted=False, rule="G", reason="no call leads there from this call's handler")


class Callgraph:
    """Any data; code as `function`, of reachable functions only."""

    name = "callgraph"
    grants_all_data = True
    needs_graph = True

    def __init__(self) -> None:
        self._function = Function()

    def check_access(self, access: Access, call: CallView) -> Verdict:
        """Judge one access."""
        verdict = self._function.check_access(access, call)
        if not verdict.granted or access.kind is not AccessKind.FETCH:
            return verdict
        if not call.graph.reaches(call.nr, access.vaddr):
            return UNREACHABLE
        return replace(verdict, rule=f"{verdict.rule} and G", per_syscall=True)
