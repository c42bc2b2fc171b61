"""Views on a running guest: which data pages a tenant's isolated call may map, and for how long.

Why it exists: `isolation.view` and `isolation.hidden` say what may be seen; this asks them at the fault, takes back
what changed hands, and ends grants that are for one block of code only.

Rules of this file:
- Not asked: fetches (the policy's), pages of the user half and the baseline (the task's own).
- A task that runs again has what its call holds checked before its first instruction: whatever is not plainly its own
  goes, and is judged again when it is touched.
- A brief grant ends with the block of code it was given to, whatever else happens.
"""

from typing import TYPE_CHECKING

from thinbox import paging
from thinbox.address import U64
from thinbox.errors import InputError, MachineError
from thinbox.guest.charged_sockets import ChargedSockets
from thinbox.isolation import view
from thinbox.isolation.hidden import ViewVerdict, check_page
from thinbox.machine import slots
from thinbox.session.errands import Errands
from thinbox.session.mappings import UserMappings
from thinbox.session.tenants import Cgroups, Tenant

if TYPE_CHECKING:
    from thinbox.session.enforcer import Enforcer
    from thinbox.session.tasks import OpenCall, TaskState


def view_rule(name: str) -> int:
    """Return the rule of a view's name; InputError for one there is not."""
    if name not in view.NAMES:
        raise InputError(f"there is no view {name!r}; use {', '.join(view.NAMES)}")
    return view.NAMES.index(name)


class Views:
    """Applies the tenants' views on one machine."""

    def __init__(self, enforcer: "Enforcer") -> None:
        self._enforcer = enforcer
        self._memory, self._cpu, self._slot = enforcer.memory, enforcer.cpu, enforcer.slot
        self.cgroups = Cgroups(enforcer.view, enforcer.memory)
        self._words = self.cgroups.pages.words
        self._host_words = self._cpu.keep_array(self._words)
        self._brief: list[tuple[int, int]] = []
        self._mappings = UserMappings(enforcer, self.cgroups)
        Errands(enforcer, self._back_from_errand)
        save = enforcer.undo.save if enforcer.undo else None
        ChargedSockets(enforcer.machine, enforcer.view, save, self._may_write)

    def _back_from_errand(self, state: "TaskState") -> None:
        assert state.call is not None
        if self.recheck(state.call):
            self._cpu.load_cr3(self._cpu.cr3)
        self._enforcer.admit_here(state)

    def _may_write(self, vaddr: int) -> bool:
        """Tell whether the running call might write at `vaddr` by its tenant's view."""
        state = self._enforcer.running
        if state is None or state.call is None or not state.call.isolated or not self._slot[slots.VIEW]:
            return True
        found = self.check(state.tenant, vaddr, self._cpu.rip, is_write=True)
        return found is not None and found.verdict.granted

    def reset(self) -> None:
        """Begin again after the machine was restored."""
        self.cgroups.owners.clear()
        self._brief.clear()
        self._mappings.reset()
        self._slot[slots.VIEW] = 0

    def add(self, name: str, memcg: int) -> None:
        """From now on what is charged to `memcg`, or to a cgroup below it, belongs to tenant `name`."""
        self.cgroups.owners[memcg] = name

    def adopt(self, tenant: Tenant, task: int, root: int) -> None:
        """Take the memory cgroup of a tenant's first task as the tenant's own.

        MachineError if it is the root cgroup while the tenant has a view: then nothing could be told apart.
        """
        memcg = self.cgroups.memcg_of(task, root)
        if memcg == int(self._words[view.ROOT]) & U64:
            if view_rule(tenant.isolation.view) != view.NONE:
                raise MachineError(f"tenant {tenant.name} has a view but no memory cgroup of its own")
            return
        tenant.memcg = memcg
        self.add(tenant.name, memcg)

    def use(self, tenant: Tenant) -> None:
        """The call that runs now is of `tenant`."""
        rule = view_rule(tenant.isolation.view)
        self._slot[slots.VIEW] = self._host_words if rule else 0
        self._words[view.RULE] = rule
        self._words[view.OWN] = tenant.memcg - (1 << 64) if tenant.memcg >> 63 else tenant.memcg

    def check(self, tenant: Tenant, vaddr: int, rip: int, *, is_write: bool) -> ViewVerdict | None:
        """Judge a data access (signed addresses); None if the tenant's view hides nothing."""
        rule = view_rule(tenant.isolation.view)
        if rule == view.NONE or vaddr >= 0:
            return None
        memory, root = self._memory, self._slot[slots.KERNEL_ROOT]
        paddr = paging.translate(memory.quads, memory.guest_bytes, root, vaddr)
        if paddr < 0:
            return None
        facts = self.cgroups.facts(paddr, root)
        symbol = self._enforcer.view.symbols.text_symbol_at(rip & U64)
        return check_page(rule, tenant.name, facts, None if symbol is None else symbol.name, is_write=is_write)

    def ends(self, state: "TaskState", call: "OpenCall") -> bool:
        """The call is about to return: look at its tenant's page tables (V7); tell whether that was a violation.

        From inside a code hook.
        """
        if not call.isolated or not self._slot[slots.VIEW]:
            return False
        self._enforcer.grants.drain(state, call)
        found = self._mappings.check(state, call, self._words[view.RULE])
        if found is None:
            return False
        hidden, vaddr = found
        self._enforcer.consequence.refuse_here(state, call, hidden.verdict, vaddr, hidden)
        return True

    def ends_dead(self, state: "TaskState", call: "OpenCall") -> bool:
        """As `ends`, of a call whose task is dead and about to leave the CPU; tell whether it is undone."""
        if not call.isolated or not self._slot[slots.VIEW]:
            return False
        self._enforcer.grants.drain(state, call)
        found = self._mappings.check(state, call, self._words[view.RULE], is_dead=True)
        return found is not None and self._enforcer.consequence.of_dead(state, call, found[1], found[0])

    # -- brief grants ----------------------------------------------------------------------------------
    def entry_before(self, state: "TaskState", vaddr: int) -> int:
        """Return what the table holds for `vaddr` before a brief grant."""
        words, end = self._memory.quads, self._memory.total_bytes
        index = paging.entry_index(words, end, state.root, vaddr)
        return words[index] if index >= 0 else 0

    def make_brief(self, state: "TaskState", vaddr: int, before: int, rip: int) -> None:
        """The page of `vaddr`, just granted, goes as soon as the block at `rip` has run."""
        index = paging.entry_index(self._memory.quads, self._memory.total_bytes, state.root, vaddr)
        self._brief.append((index, before))
        slot = self._slot
        # The hook will take back what of the block is to run once more (hooks.uncount_block); the block then
        # starts before this moment, and the next one does not.
        now = slot[slots.CLOCK]
        if slot[slots.BLOCK_START] <= rip < slot[slots.BLOCK_END]:
            now -= slot[slots.BLOCK_END] - rip
        slot[slots.DEADLINE] = min(slot[slots.DEADLINE], now + 1)
        slot[slots.ATTENTION] = min(slot[slots.ATTENTION], now + 1)

    def end_brief(self) -> None:
        """Take brief grants back: between two runs of the CPU, and whenever the call leaves its table."""
        if not self._brief:
            return
        for index, before in reversed(self._brief):
            self._memory.words[index] = before
        self._brief.clear()
        if self._slot[slots.ACTIVE]:
            self._cpu.load_cr3(self._cpu.cr3)

    # -- pages that change hands -------------------------------------------------------------------------
    def recheck(self, call: "OpenCall") -> int:
        """Take back what the call, about to go on, holds and no longer plainly may; return how many pages."""
        if not self._slot[slots.VIEW]:
            return 0
        root = self._enforcer.kernel_root
        return sum(self._cpu.drop_unseen(rows, root) for rows in call.rows)
