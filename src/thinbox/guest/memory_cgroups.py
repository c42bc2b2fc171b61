"""Attribution by the guest's memory cgroups: whose a page or a task is.

Why it exists: a tenant is a memory cgroup, with all cgroups below it; whose memory is, and whose any task of the guest
is, the guest's own structures say.

Rules of this file: nothing is remembered of cgroups but the tenants' own pointers, which live as long as the tenants.

Source: Linux 6.1 include/linux/cgroup-defs.h (struct css_set, struct cgroup_subsys_state), include/linux/sched.h.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from thinbox.address import U64
from thinbox.errors import InputError, MachineError
from thinbox.guest.page_facts import PageReader
from thinbox.isolation.page_ownership import PageFacts
from thinbox.kernel.memcg import find_memcg_shape
from thinbox.kernel.task import find_task_shape

if TYPE_CHECKING:
    from thinbox.guest.kernel_view import KernelView
    from thinbox.machine.memory import Memory

_MOST_TASKS = 1 << 16


class MemoryCgroups:
    """Attribution by the guest's memory cgroups; `owners` maps each tenant's own to its name."""

    def __init__(self, kernel: "KernelView", memory: "Memory") -> None:
        self._kernel, self._memory = kernel, memory
        self._require_kernel_memory()
        self.pages = PageReader(kernel, memory)
        self._memcg, self._tasks = find_memcg_shape(kernel.facts), find_task_shape(kernel.facts)
        self.owners: dict[int, str] = {}

    def _require_kernel_memory(self) -> None:
        """Refuse a kernel that was told to charge no memory of its own (mm/memcontrol.c, `cgroup_memory`)."""
        told = self._kernel.symbols.find("cgroup_memory_nokmem")
        if told is not None and self._kernel.read_u64(told & ~7, self._kernel.kernel_root) >> 8 * (told & 7) & 0xFF:
            raise InputError(
                "with cgroup.memory=nokmem the kernel charges its own memory to nobody, so a view would take a "
                "tenant's for everybody's; leave it out of --append, or use --view none"
            )

    def memcg_of(self, task: int, root: int) -> int:
        """Return the memory cgroup a task is in (`task->cgroups->subsys[memory_cgrp_id]`)."""
        css_set = self._kernel.read_u64(task + self._memcg.task_cgroups_at, root)
        return (self._kernel.read_u64(css_set + self._memcg.set_css_at, root) - self._memcg.memcg_css_at) & U64

    def owner_of(self, memcg: int, root: int) -> str | None:
        """Return the tenant whose cgroup `memcg` is, or lies under; None for the kernel's and others'."""
        for above in self.pages.memcg_line(memcg, root):
            if above in self.owners:
                return self.owners[above]
        return None

    def facts(
        self, paddr: int, root: int, spaces: frozenset[int] = frozenset(), *, is_write: bool = False
    ) -> PageFacts:
        """Return what the page of `paddr` is, its owners by tenants' names; `root` is the kernel's table. What the
        mm_structs `spaces` have mapped counts as held. `is_writable` is looked for only if `is_write`."""
        return self.pages.facts(paddr, root, lambda memcg: self.owner_of(memcg, root), spaces, is_write=is_write)

    def owner_of_task(self, task: int, root: int) -> str | None:
        """Return the tenant a task is of."""
        return self.owner_of(self.memcg_of(task, root), root)

    def census(self, root: int) -> dict[int, str | None]:
        """Return every task of the guest (task_struct address) with its tenant, None for the kernel's and the agent."""
        return {task: self.owner_of_task(task, root) for task in self._all_tasks(root)}

    def _all_tasks(self, root: int) -> Iterator[int]:
        """Walk processes from init_task, and the threads of each (include/linux/sched/signal.h)."""
        read, first = self._kernel.read_u64, self._tasks.first_at
        leader = int(first)
        for _ in range(_MOST_TASKS):
            head = read(leader + self._tasks.signal_at, root) + self._tasks.threads_at
            link = read(head, root)
            while link != head:
                yield link - self._tasks.node_at
                link = read(link, root)
            leader = read(leader + self._tasks.tasks_at, root) - self._tasks.tasks_at
            if leader == first:
                return
        raise MachineError("the guest's list of tasks does not end")
