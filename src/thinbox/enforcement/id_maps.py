"""Who has made the maps of user namespaces: what guest memory says of them counts if a call wrote it that may.

Why it exists: in a user namespace of its own a task may take the ids that the namespace maps (rule G7). A map that an
exploit has written names anybody's ids, and the kernel's own `setresuid` gives them out.

Rules of this file:
- A map is known from the moment the kernel's own function wrote it, for a task that may (rule G8), and from then on by
  what thinbox keeps of it: one that guest memory has otherwise maps nothing.
- Who the writer is, its identity says that was known when its call began.
- A namespace is forgotten when a new one is made where it was.

Source: Linux 6.1 kernel/user_namespace.c (map_write, new_idmap_permitted), kernel/capability.c (ns_capable),
security/commoncap.c (cap_capable). The kernel asks the credentials of who opened the file, too; here the writer's stand
for both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from thinbox.isolation.policies.guard import ProtectedObject, may_map
from thinbox.kernel.id_maps import GROUPS, USERS, find_id_map_shape
from thinbox.machine import cpu as registers

if TYPE_CHECKING:
    from thinbox.enforcement.target import Target
    from thinbox.enforcement.tasks import TaskList, TaskState

Ranges = tuple[range, ...]
KINDS = (USERS, GROUPS)
_MOST_LEVELS = 33
"""User namespaces nest 32 deep (create_user_ns)."""


@dataclass(frozen=True, slots=True)
class _Write:
    namespace: int
    kind: int
    writer: ProtectedObject | None
    """None: of a tenant that is not guarded, or no tenant's."""


class IdMaps:
    """The maps of one guest's user namespaces; `read` returns what guest memory has (namespace, kind)."""

    def __init__(self, target: "Target", tasks: "TaskList", read: Callable[[int, int], Ranges]) -> None:
        self._target, self._tasks, self._read = target, tasks, read
        self._shape = find_id_map_shape(target.view.facts)
        self._known: dict[tuple[int, int], Ranges] = {}
        self._writes: dict[int, list[_Write]] = {}
        for vaddr, kind in self._shape.writers.items():
            target.cpu.add_code_hook(vaddr, partial(self._is_written, kind))

    def reset(self) -> None:
        """Begin again after the machine was restored."""
        self._known.clear()
        self._writes.clear()

    def _is_written(self, kind: int) -> None:
        """`proc_uid_map_write(file, …)` or the other: the running call will have written a map."""
        file = self._target.cpu.regs[registers.RDI]
        namespace = self._word(self._word(file + self._shape.file_private_at) + self._shape.seq_private_at)
        state = self._tasks.running
        task, writer = (0, None) if state is None else (state.task, state.identity)
        self._writes.setdefault(task, []).append(_Write(namespace, kind, writer))

    def _word(self, vaddr: int) -> int:
        return self._target.memory.word_at(self._target.kernel_root, vaddr)

    def fresh(self, namespace: int) -> None:
        """A namespace was made, whose maps are empty."""
        for kind in KINDS:
            self._known.pop((namespace, kind), None)

    def of(self, namespace: int, kind: int) -> Ranges:
        """Return the ids (the first namespace's numbers) that the namespace maps, by right."""
        for writes in self._writes.values():
            for write in writes:
                if (write.namespace, write.kind) == (namespace, kind):
                    self._settle(write)
        known = self._known.get((namespace, kind), ())
        return known if known == self._read(namespace, kind) else ()

    def is_forged(self, namespace: int, kind: int) -> bool:
        """Tell whether guest memory has another map of the namespace than was written by right."""
        found = self._read(namespace, kind)
        return bool(found) and self.of(namespace, kind) != found

    def refused(self, state: "TaskState") -> list[tuple[int, int]]:
        """The running call of the task ends: return the maps (namespace, kind) that it wrote and may not."""
        writes = self._writes.pop(state.task, [])
        self._writes.pop(0, [])
        return [(write.namespace, write.kind) for write in writes if not self._settle(write)]

    def _settle(self, write: _Write) -> bool:
        """Take note of a map that was written; False if its writer may not have written it."""
        key = (write.namespace, write.kind)
        found = self._read(*key)
        if not found or self._known.get(key) == found:
            # Not written yet, or the write failed.
            return True
        if self._known.get(key) or not self._may(write, found):
            # It is written once.
            return False
        self._known[key] = found
        return True

    def _may(self, write: _Write, wanted: Ranges) -> bool:
        writer = write.writer
        if writer is None:
            return True
        line: list[tuple[int, int]] = []
        namespace = write.namespace
        while namespace and namespace != writer.first_namespace and len(line) <= _MOST_LEVELS:
            above = self._word(namespace + self._shape.parent_at)
            line.append((above, self._owner(namespace)))
            namespace = above
        if not line:
            return False
        parent = line[0][0]
        mapped = None if parent == writer.first_namespace else self.of(parent, write.kind)
        return may_map(writer, write.kind == USERS, tuple(line), mapped, wanted)

    def _owner(self, namespace: int) -> int:
        at = namespace + self._shape.owner_at
        return self._word(at & ~7) >> 8 * (at & 7) & 0xFFFF_FFFF
