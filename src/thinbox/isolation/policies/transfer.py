"""Policy `transfer`: how the CPU came there. Jumps and calls as compiled, returns to where a call was made.

All data. A fetch that needs a page is judged by the last instruction of the block before it, decoded from
the live text: a direct jump or call, and going on in a straight line, is as compiled; an indirect one must
hit the start of a function, or stay in its own; a return must go behind a call, on a page that executed in
this call. Besides, at every such fetch, the whole stack must lead down to the call's entry, frame by frame:
each return address behind a call, on a page that executed in this call, of a function that the call can
have led to.

Cannot see: what happens between two faults and leaves no trace on the stack; an indirect call of a
whole function with the wrong type or arguments; data. See docs/policies/transfer.md.
"""

from thinbox.address import page_start
from thinbox.isolation.policies.sci import DATA, NO_SYMBOL
from thinbox.isolation.policy import CallView
from thinbox.isolation.transfers import DecodedFunction, Flow, Instruction, LiveCode, Source
from thinbox.isolation.verdict import Access, AccessKind, Verdict

AS_COMPILED = Verdict(granted=True, rule="T1", reason="a jump or call as compiled", cacheable=True, per_source=True)
ENTERED = Verdict(
    granted=True, rule="T2", reason="an indirect jump or call to a function's start", cacheable=True, per_source=True
)
OWN_FUNCTION = Verdict(
    granted=True, rule="T2", reason="an indirect jump inside a function", cacheable=True, per_source=True
)
RETURNED = Verdict(granted=True, rule="T3", reason="a return behind a call on a page that executed in this call")
RESUMED = Verdict(granted=True, rule="T4", reason="the task goes on where it slept")
FIXED_UP = Verdict(granted=True, rule="T5", reason="an exception that the kernel's exception table sends there")

NOT_CODE = Verdict(granted=False, rule="T0", reason="the code before it is no instruction sequence as compiled")
NOT_COMPILED = Verdict(granted=False, rule="T1", reason="the instruction before it does not lead there")
BAD_ENTRY = Verdict(granted=False, rule="T2", reason="an indirect jump or call to no function's start")
NO_CALL = Verdict(granted=False, rule="T3", reason="a return to an address that is not behind a call")
NEVER_CALLED = Verdict(granted=False, rule="T3", reason="a return to a call on a page that never executed in this call")
NOT_INTERRUPTED = Verdict(granted=False, rule="T5", reason="a return from an exception to where none is fixed up")
NO_STACK = Verdict(granted=False, rule="T6", reason="the stack does not lead down to the call's entry")
FORGED_FRAME = Verdict(granted=False, rule="T6", reason="a frame of the stack does not return behind a call")
STALE_FRAME = Verdict(granted=False, rule="T6", reason="a frame's call is on a page that never executed in this call")
WRONG_CALLEE = Verdict(granted=False, rule="T6", reason="a frame's call does not lead to the function that runs")

_THUNK = "__x86_indirect_"
"""arch/x86/lib/retpoline.S: `__x86_indirect_thunk_rax` and its like replace an indirect jump or call; they end in
`ret`. The code between the symbols of one thunk array is reached by their own direct calls."""
_ANYWHERE = 0
_MOST_FOLLOWED = 4096
"""Functions followed through tail jumps; the most come of `x64_sys_call`, which jumps to every handler."""


class Transfer:
    """Judges each transfer into a page that the call has not executed yet."""

    name = "transfer"
    judges_ends = False
    """The stack it judges leads to a call's entry; that of a task which a signal ends does not: `live` judges ends."""
    grants_all_data = True
    judges_stack = True

    def __init__(self) -> None:
        self._code = LiveCode()
        self._pairs: set[tuple[int, int]] = set()
        self._reached: dict[int, frozenset[int]] = {}
        self._version = -1

    def check_access(self, access: Access, call: CallView) -> Verdict:
        """Judge one access."""
        if access.kind is not AccessKind.FETCH:
            return DATA
        if access.symbol is None or access.generated:
            return NO_SYMBOL
        source = call.source
        verdict = RESUMED if source is None else self._judge_transfer(access, call, source)
        return (self._check_stack(call) or verdict) if verdict.granted else verdict

    # -- the transfer -----------------------------------------------------------------------------------
    def _judge_transfer(self, access: Access, call: CallView, source: Source) -> Verdict:
        if source.straight:
            return self._judge_straight(access, call, source)
        first, last = self._function(call, source.start), self._function(call, source.end - 1)
        if first is None or last is None or source.start not in first.starts:
            return NOT_CODE
        instruction = last.by_end.get(source.end)
        if instruction is None:
            return NOT_CODE
        target, flow = access.vaddr, instruction.flow
        if flow is Flow.RETURN and not self._is_thunk(call, instruction.vaddr):
            return self._judge_return(target, call)
        if flow in (Flow.RETURN, Flow.CALL_INDIRECT, Flow.JUMP_INDIRECT):
            return self._judge_indirect(access, call, last, instruction)
        if flow is Flow.IRET:
            return FIXED_UP if call.is_fixup(target) else NOT_INTERRUPTED
        falls = flow in (Flow.NEXT, Flow.BRANCH) and target == source.end
        jumps = flow is not Flow.NEXT and target == instruction.target
        return AS_COMPILED if falls or jumps else NOT_COMPILED

    def _judge_straight(self, access: Access, call: CallView, source: Source) -> Verdict:
        """The engine reads on, over the end of a page, from a block that has not run."""
        function = self._function(call, source.start)
        if function is None or source.start not in function.starts or not source.start < access.vaddr < function.end:
            return NOT_CODE
        return AS_COMPILED

    def _judge_indirect(
        self, access: Access, call: CallView, function: DecodedFunction, instruction: Instruction
    ) -> Verdict:
        symbol = call.symbol_at(access.vaddr)
        if symbol is not None and access.vaddr == symbol.start:
            return ENTERED
        # Jump tables; kernels built with retpolines have none (-fno-jump-tables), so a thunk's jump is not let off.
        stays = function.start <= access.vaddr < function.end and access.vaddr in function.starts
        return OWN_FUNCTION if instruction.flow is Flow.JUMP_INDIRECT and stays else BAD_ENTRY

    def _judge_return(self, target: int, call: CallView) -> Verdict:
        """A page that executed is mapped. So the call must be the last instruction of the page before the target."""
        if self._call_before(call, target) is None:
            return NO_CALL
        if page_start(target) == page_start(target - 1) or not call.is_executable(target - 1):
            return NEVER_CALLED
        return RETURNED

    # -- the stack ----------------------------------------------------------------------------------------
    def _check_stack(self, call: CallView) -> Verdict | None:
        """Return the refusal, or None if every frame is as it must be."""
        stack = call.stack
        if not stack.complete:
            return NO_STACK
        if self._version != call.text_version:
            self._pairs.clear()
            self._reached.clear()
            self._version = call.text_version
        for frame in stack.frames:
            if not call.is_executable(frame.back - 1):
                return STALE_FRAME
            symbol = call.symbol_at(frame.lookup)
            if symbol is None:
                return WRONG_CALLEE
            if (symbol.start, frame.back) in self._pairs:
                continue
            made = self._call_before(call, frame.back)
            if made is None:
                return FORGED_FRAME
            if made.flow is Flow.CALL and not self._leads_to(call, made.target, symbol.start):
                return WRONG_CALLEE
            self._pairs.add((symbol.start, frame.back))
        return None

    def _leads_to(self, call: CallView, target: int, wanted: int) -> bool:
        """Whether a call of `target` can have the function at `wanted` running: itself, or through tail jumps."""
        reached = self._reached.get(target)
        if reached is None:
            reached = self._reached[target] = self._follow(call, target)
        return wanted in reached or _ANYWHERE in reached

    def _follow(self, call: CallView, target: int) -> frozenset[int]:
        """The functions a call of `target` ends up in; `_ANYWHERE` among them if one of them jumps indirectly."""
        waiting, seen = [target], set[int]()
        while waiting:
            function = self._function(call, waiting.pop())
            if function is None or function.start in seen:
                continue
            seen.add(function.start)
            if function.jumps_indirectly or self._is_thunk(call, function.start) or len(seen) > _MOST_FOLLOWED:
                seen.add(_ANYWHERE)
                break
            waiting.extend(function.leaves)
        return frozenset(seen)

    # -- code ---------------------------------------------------------------------------------------------
    def _function(self, call: CallView, vaddr: int) -> DecodedFunction | None:
        symbol = call.symbol_at(vaddr)
        if symbol is None:
            return None
        return self._code.function(symbol.start, symbol.end_exclusive, call.text_version, call.read_code)

    def _call_before(self, call: CallView, vaddr: int) -> Instruction | None:
        """The call instruction that ends at `vaddr`."""
        function = self._function(call, vaddr - 1)
        made = None if function is None else function.by_end.get(vaddr)
        return made if made is not None and made.flow in (Flow.CALL, Flow.CALL_INDIRECT) else None

    @staticmethod
    def _is_thunk(call: CallView, vaddr: int) -> bool:
        symbol = call.symbol_at(vaddr)
        return symbol is not None and symbol.name.startswith(_THUNK)
