"""Asks policy `guard` at the ends of calls, between them, and where the kernel starts a program.

Why it exists: what a policy guards is no page fault. It is compared where a call begins and ends, and looked at where
`call_usermodehelper_exec` is about to start a program as root.

Rules of this file:
- A tenant whose policy guards nothing pays nothing.
- A task's ids are followed from the end of its first isolated call on, through calls that are not isolated too.

Source: Linux 6.1 kernel/umh.c, kernel/cred.c.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from thinbox.enforcement.protected_objects import ProtectedObjectReader
from thinbox.machine import cpu as registers

if TYPE_CHECKING:
    from thinbox.enforcement.open_call import OpenCall
    from thinbox.enforcement.target import Target
    from thinbox.enforcement.tasks import TaskList, TaskState
    from thinbox.isolation.verdict import Verdict

_STARTS = "call_usermodehelper_exec"


class Integrity:
    """The guarded objects of one machine, before the policies of its tenants."""

    def __init__(self, target: "Target", tasks: "TaskList") -> None:
        self._target, self._tasks = target, tasks
        self._reader: ProtectedObjectReader | None = None

    def _policy(self, state: "TaskState") -> Any:
        """The policy of a task's tenant, if it guards anything, else None."""
        policy = state.tenant.judge.policy
        if not getattr(policy, "guards_end", False):
            return None
        if self._reader is None:
            self._reader = ProtectedObjectReader(self._target.view, self._target.memory)
        return policy

    def install(self, refuse: "Callable[[TaskState, OpenCall, Verdict, int], None]") -> None:
        """Watch for programs that the kernel starts; `refuse` acts on what is found."""
        self._refuse = refuse
        for vaddr in self._target.view.symbols.addresses_with_variants(_STARTS):
            self._target.cpu.add_code_hook(vaddr, self._starts)

    def born(self, child: "TaskState") -> None:
        """A tenant's new task begins with the ids it was given."""
        if self._policy(child) is not None and self._reader is not None:
            child.identity = self._reader.read(child.task, self._target.kernel_root)[0].content

    def begins(self, state: "TaskState", call: "OpenCall") -> "tuple[Verdict, int] | None":
        """A call begins, on the kernel's own table: return what changed since the last one, and where."""
        policy = self._policy(state)
        if policy is None or self._reader is None or not (call.isolated or state.identity is not None):
            return None
        now = self._reader.read(state.task, self._target.kernel_root)
        found: tuple[Verdict, int] | None = (
            policy.check_between(state.identity, now[0]) if state.identity is not None else None
        )
        if found is None:
            call.guarded = now if call.isolated else ()
        return found

    def ends(self, state: "TaskState", call: "OpenCall") -> "tuple[Verdict, int] | None":
        """A call is about to return: compare; return what was found, and where."""
        policy = self._policy(state)
        if policy is None or self._reader is None or not (call.guarded or state.identity is not None):
            return None
        now = self._reader.read(state.task, self._target.kernel_root)
        found: tuple[Verdict, int] | None = (
            policy.check_end(call.record.name, call.guarded, now) if call.guarded else None
        )
        if found is None:
            state.identity = now[0].content
        return found

    def _starts(self) -> None:
        """`call_usermodehelper_exec(info, wait)`."""
        target, state = self._target, self._tasks.running
        if state is None or state.call is None or not state.call.guarded or state.task != target.view.current:
            return
        policy = self._policy(state)
        if policy is None or self._reader is None:
            return
        place, path = self._reader.read_program(target.cpu.regs[registers.RDI], target.kernel_root)
        found = policy.check_program(path, state.call.guarded, place)
        if found is not None:
            self._refuse(state, state.call, *found)
