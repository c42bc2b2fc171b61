"""Views on a running guest: which data pages a tenant's isolated call may map, and for how long.

Why it exists: `isolation.view_rules` and `isolation.page_ownership` say what may be seen; this asks them at the fault,
takes back what changed hands, and ends grants that are for one block of code only.

Rules of this file:
- Not asked: fetches (the policy's), pages of the user half and the baseline (the task's own).
- A task that runs again has what its call holds checked before its first instruction: whatever is not plainly its own
  goes, and is judged again when it is touched.
- A one-block grant ends with the block of code it was given to, whatever else happens.
"""

from typing import TYPE_CHECKING

from thinbox.address import U64
from thinbox.enforcement.seen_pages import SeenPages
from thinbox.enforcement.tenants import Tenant
from thinbox.enforcement.user_tables import UserTables
from thinbox.errors import MachineError
from thinbox.guest.charged_sockets import ChargedSockets
from thinbox.guest.memory_cgroups import MemoryCgroups
from thinbox.isolation import view_rules
from thinbox.isolation.page_ownership import ViewVerdict, check_page
from thinbox.isolation.view_rules import view_rule
from thinbox.machine import slots

if TYPE_CHECKING:
    from thinbox.enforcement.grants import Grants
    from thinbox.enforcement.open_call import OpenCall
    from thinbox.enforcement.target import Target
    from thinbox.enforcement.tasks import TaskList, TaskState
    from thinbox.enforcement.undo import Undo


class Views:
    """Applies the tenants' views on one machine."""

    def __init__(self, target: "Target", tasks: "TaskList", grants: "Grants", undo: "Undo | None") -> None:
        self._target, self._tasks, self._grants = target, tasks, grants
        self._memory, self._cpu, self._slot = target.memory, target.cpu, target.slot
        self.cgroups = MemoryCgroups(target.view, target.memory)
        self._words = self.cgroups.pages.words
        self._host_words = self._cpu.keep_array(self._words)
        self.seen = SeenPages(target, self._words)
        self._user_tables = UserTables(target, tasks, grants, self.cgroups, self.seen)
        ChargedSockets(target.machine, target.view, undo.save if undo else None, self._may_write)

    def _may_write(self, vaddr: int) -> bool:
        """Tell whether the running call might write at `vaddr` by its tenant's view."""
        state = self._tasks.running
        if state is None or state.call is None or not state.call.isolated or not self._slot[slots.VIEW]:
            return True
        found = self.check(state, vaddr, self._cpu.rip, is_write=True)
        return found is not None and found.verdict.granted

    def reset(self) -> None:
        """Begin again after the machine was restored."""
        self.cgroups.owners.clear()
        self._user_tables.reset()
        self.seen.reset()
        self._slot[slots.VIEW] = 0

    def add(self, name: str, memcg: int) -> None:
        """From now on what is charged to `memcg`, or to a cgroup below it, belongs to tenant `name`."""
        self.cgroups.owners[memcg] = name

    def adopt(self, tenant: Tenant, task: int, root: int) -> None:
        """Take the memory cgroup of a tenant's first task as the tenant's own.

        MachineError if it is the root cgroup while the tenant has a view: then nothing could be told apart.
        """
        memcg = self.cgroups.memcg_of(task, root)
        if memcg == int(self._words[view_rules.ROOT]) & U64:
            if view_rule(tenant.isolation.view) != view_rules.NONE:
                raise MachineError(f"tenant {tenant.name} has a view but no memory cgroup of its own")
            return
        tenant.memcg = memcg
        self.add(tenant.name, memcg)

    def use(self, state: "TaskState") -> None:
        """The call that runs now is of this task's."""
        self.use_of(state.tenant, state.view)

    def use_of(self, tenant: Tenant, view: str) -> None:
        """As `use`, for a view of `tenant`."""
        rule = view_rule(view)
        self._slot[slots.VIEW] = self._host_words if rule else 0
        self._words[view_rules.RULE] = rule
        self._words[view_rules.OWN] = tenant.memcg - (1 << 64) if tenant.memcg >> 63 else tenant.memcg

    def check(self, state: "TaskState", vaddr: int, rip: int, *, is_write: bool) -> ViewVerdict | None:
        """Judge a data access (signed addresses); None if the task's view hides nothing."""
        rule = view_rule(state.view)
        if rule == view_rules.NONE or vaddr >= 0:
            return None
        memory, root = self._memory, self._slot[slots.KERNEL_ROOT]
        paddr = memory.tables.translate(root, vaddr)
        if paddr < 0:
            return None
        facts = self.cgroups.facts(paddr, root, is_write=is_write)
        symbol = self._target.view.symbols.text_symbol_at(rip & U64)
        return check_page(rule, state.tenant.name, facts, None if symbol is None else symbol.name, is_write=is_write)

    def ends(self, state: "TaskState", call: "OpenCall", *, is_dead: bool = False) -> tuple[ViewVerdict, int] | None:
        """The call is about to return (`is_dead`: its task is about to leave the CPU for good): look at its tenant's
        page tables (V7); return what was found, and where."""
        if not call.isolated or not self._slot[slots.VIEW]:
            return None
        self._grants.drain(state, call)
        return self._user_tables.check(state, call, self._words[view_rules.RULE], is_dead=is_dead)

    @property
    def host_words(self) -> int:
        """Host address of the words of `isolation.view_rules`, which are those of the tenant that runs."""
        return self._host_words

    def check_user(self, state: "TaskState", frame: int, *, is_write: bool) -> ViewVerdict:
        """Judge an access of user code of a task that runs, or of the kernel by a user address, to the page `frame`."""
        return self._user_tables.judge_access(state, self._words[view_rules.RULE], frame, is_write=is_write)

    # -- pages that change hands -------------------------------------------------------------------------
    def recheck(self, call: "OpenCall") -> int:
        """Take back what the call, about to go on, holds and no longer plainly may; return how many pages."""
        if not self._slot[slots.VIEW]:
            return 0
        root = self._target.kernel_root
        return sum(self._target.sci.drop_unseen(rows, root) for rows in call.rows)
