"""Asks policy `guard` at the ends of calls, between them, and where the kernel starts a program.

Why it exists: what a policy guards is no page fault. It is compared where a call begins and ends, and looked at where
`call_usermodehelper_exec` is about to start a program as root.

Rules of this file:
- A tenant whose policy guards nothing pays nothing.
- A task's ids are followed from the end of its first isolated call on, through calls that are not isolated too.

Source: Linux 6.1 kernel/umh.c, kernel/cred.c.
"""

from typing import TYPE_CHECKING, Any

from thinbox.isolation.verdict import Access, AccessKind
from thinbox.machine import cpu as registers
from thinbox.session.guarded import GuardedReader

if TYPE_CHECKING:
    from thinbox.session.enforcer import Enforcer
    from thinbox.session.tasks import OpenCall, TaskState

_STARTS = "call_usermodehelper_exec"


class Guards:
    """The guarded objects of one machine, before the policies of its tenants."""

    def __init__(self, enforcer: "Enforcer") -> None:
        self._enforcer = enforcer
        self._reader: GuardedReader | None = None

    def _policy(self, state: "TaskState") -> Any:
        """The policy of a task's tenant, if it guards anything, else None."""
        policy = state.tenant.judge.policy
        if not getattr(policy, "guards_end", False):
            return None
        if self._reader is None:
            self._reader = GuardedReader(self._enforcer.view, self._enforcer.memory)
        return policy

    def install(self) -> None:
        """Watch for programs that the kernel starts."""
        for vaddr in self._enforcer.view.symbols.addresses_with_variants(_STARTS):
            self._enforcer.cpu.add_code_hook(vaddr, self._starts)

    def born(self, child: "TaskState") -> None:
        """A tenant's new task begins with the ids it was given."""
        if self._policy(child) is not None and self._reader is not None:
            child.identity = self._reader.read(child.task, self._enforcer.kernel_root)[0].content

    def begins(self, state: "TaskState", call: "OpenCall") -> bool:
        """A call begins, on the kernel's own table: look at what changed since the last one; tell whether its task is
        killed for it. From inside a code hook."""
        policy, enforcer = self._policy(state), self._enforcer
        if policy is None or self._reader is None or not (call.isolated or state.identity is not None):
            return False
        now = self._reader.read(state.task, enforcer.view.kernel_root)
        found = policy.check_between(state.identity, now[0]) if state.identity is not None else None
        if found is None:
            call.guarded = now if call.isolated else ()
            return False
        verdict, vaddr = found
        enforcer.consequence.kill(state, call, verdict, Access(vaddr, AccessKind.WRITE, enforcer.cpu.rip, None, 0, 0))
        enforcer.cpu.jump(enforcer.sites.death)
        return True

    def ends(self, state: "TaskState", call: "OpenCall") -> bool:
        """A call is about to return: compare; tell whether that was a violation. From inside a code hook."""
        policy = self._policy(state)
        if policy is None or self._reader is None or not (call.guarded or state.identity is not None):
            return False
        now = self._reader.read(state.task, self._enforcer.kernel_root)
        found = policy.check_end(call.record.name, call.guarded, now) if call.guarded else None
        if found is None:
            state.identity = now[0].content
            return False
        self._enforcer.consequence.refuse_here(state, call, *found)
        return True

    def _starts(self) -> None:
        """`call_usermodehelper_exec(info, wait)`."""
        enforcer = self._enforcer
        state = enforcer.running
        if state is None or state.call is None or not state.call.guarded or state.task != enforcer.view.current:
            return
        policy = self._policy(state)
        if policy is None or self._reader is None:
            return
        place, path = self._reader.read_program(enforcer.cpu.regs[registers.RDI], enforcer.kernel_root)
        found = policy.check_program(path, state.call.guarded, place)
        if found is not None:
            enforcer.consequence.refuse_here(state, state.call, *found)
