"""The user namespaces there are, and who made their maps: guest memory counts if the kernel wrote it for one who may.

Why it exists: in a user namespace of its own a task has every capability, and may take the ids that the namespace maps
(rule G7). A namespace that an exploit has written, or its map, gives the victim's ids and files away.

Rules of this file:
- A namespace is what `create_user_ns` has returned, with the parent and the owner that it had then, until
  `free_user_ns`. Nothing else in guest memory is one: it is neither believed nor written to.
- A map is known from the moment the kernel's own function wrote it, for a task that may (rule G8); where guest memory
  has another, it maps nothing, and what is known can be put back.
- Who the writer is, its identity says that was known when its call began.

Source: Linux 6.1 kernel/user_namespace.c (create_user_ns, free_user_ns, map_write, new_idmap_permitted),
kernel/capability.c (ns_capable), security/commoncap.c (cap_capable). The kernel asks the credentials of who opened the
file, too; here the writer's stand for both.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from thinbox.address import U64
from thinbox.isolation.policies.guard import ProtectedObject, Standing, may_map
from thinbox.kernel.id_maps import GROUPS, USERS, find_id_map_shape
from thinbox.machine import cpu as registers

if TYPE_CHECKING:
    from thinbox.enforcement.target import Target
    from thinbox.enforcement.tasks import TaskList, TaskState

Ranges = tuple[range, ...]
KINDS = (USERS, GROUPS)
_MOST_LEVELS = 33
"""User namespaces nest 32 deep (create_user_ns)."""
_MOST_CALLERS = 8
"""Places that call `create_user_ns`; a kernel has two."""


@dataclass(slots=True)
class _Map:
    """One map: what it maps, its bytes; and who writes it in a call that has not ended (task and identity: None of a
    task that is not guarded), if anybody does."""

    ranges: Ranges
    raw: bytes
    writer: tuple[int, ProtectedObject | None] | None = None


@dataclass(slots=True)
class _Namespace:
    parent: int
    owner: int
    maker: int
    """The task in whose call it was made; 0 once that has ended."""
    maps: dict[int, _Map] = field(default_factory=dict)


class IdMaps:
    """The user namespaces of one guest; `read` returns what guest memory maps (namespace, kind), and `read_raw` its
    bytes."""

    def __init__(
        self,
        target: "Target",
        tasks: "TaskList",
        read: Callable[[int, int], Ranges],
        read_raw: Callable[[int, int], bytes],
    ) -> None:
        self._target, self._tasks, self._read, self._read_raw = target, tasks, read, read_raw
        self._shape = find_id_map_shape(target.view.facts)
        self._known: dict[int, _Namespace] = {}
        self._making: dict[int, tuple[int, int]] = {}
        """By task: the cred that gets a new namespace, and the stack pointer behind the call."""
        self._callers: set[int] = set()
        add_hook = target.cpu.add_code_hook
        for vaddr, kind in self._shape.writers.items():
            add_hook(vaddr, partial(self._is_written, kind))
        if self._shape.makes_at:
            add_hook(self._shape.makes_at, self._is_made)
            add_hook(self._shape.frees_at, self._is_freed)

    def reset(self) -> None:
        """Begin again after the machine was restored."""
        self._known.clear()
        self._making.clear()

    def _word(self, vaddr: int) -> int:
        return self._target.memory.word_at(self._target.kernel_root, vaddr & U64)

    def _task(self) -> int:
        return 0 if self._tasks.running is None else self._tasks.running.task

    # -- namespaces --------------------------------------------------------------------------------------
    def _is_made(self) -> None:
        """`create_user_ns(cred)`: what it made, its caller finds in the cred."""
        regs = self._target.cpu.regs
        behind = self._word(regs[registers.RSP])
        if behind not in self._callers:
            if len(self._callers) >= _MOST_CALLERS or not self._target.view.symbols.is_text(behind):
                return
            self._callers.add(behind)
            self._target.cpu.add_code_hook(behind, self._was_made)
        self._making[self._task()] = (regs[registers.RDI] & U64, (regs[registers.RSP] + 8) & U64)

    def _was_made(self) -> None:
        regs, task = self._target.cpu.regs, self._task()
        cred, behind = self._making.get(task, (0, 0))
        if regs[registers.RSP] & U64 != behind:
            return
        del self._making[task]
        if regs[registers.RAX] & 0xFFFF_FFFF:
            return
        namespace = self._word(cred + self._shape.cred_namespace_at)
        made = _Namespace(self._word(namespace + self._shape.parent_at), self._owner(namespace), task)
        made.maps = {kind: _Map((), self._read_raw(namespace, kind)) for kind in KINDS}
        self._known[namespace] = made

    def _is_freed(self) -> None:
        """`free_user_ns(work)`: the namespace, and those above that nobody else uses: they go with it."""
        namespace = (self._target.cpu.regs[registers.RDI] - self._shape.work_at) & U64
        gone = self._known.pop(namespace, None)
        while gone is not None and gone.parent in self._known and self._count(gone.parent) <= 1:
            gone = self._known.pop(gone.parent)

    def _count(self, namespace: int) -> int:
        at = namespace + self._shape.count_at
        return self._word(at & ~7) >> 8 * (at & 7) & 0xFFFF_FFFF

    def _owner(self, namespace: int) -> int:
        at = namespace + self._shape.owner_at
        return self._word(at & ~7) >> 8 * (at & 7) & 0xFFFF_FFFF

    def standing(self, namespace: int, task: int) -> Standing:
        """Return what thinbox knows of a namespace that a task is in."""
        found = self._known.get(namespace)
        made = found is not None and task != 0 and found.maker == task
        return Standing(self.of(namespace, USERS), self.of(namespace, GROUPS), self._line(namespace), made)

    def _line(self, namespace: int) -> tuple[tuple[int, int], ...]:
        """For a namespace and each above it that is known: in which it lies, and its owner."""
        line: list[tuple[int, int]] = []
        while (found := self._known.get(namespace)) is not None and len(line) < _MOST_LEVELS:
            line.append((found.parent, found.owner))
            namespace = found.parent
        return tuple(line)

    # -- maps --------------------------------------------------------------------------------------------
    def _is_written(self, kind: int) -> None:
        """`proc_uid_map_write(file, …)` or the other: the running call will have written a map."""
        file = self._target.cpu.regs[registers.RDI]
        namespace = self._word(self._word(file + self._shape.file_private_at) + self._shape.seq_private_at)
        if namespace in self._known:
            self._settle(namespace, kind)
            state = self._tasks.running
            identity = None if state is None else state.identity
            self._known[namespace].maps[kind].writer = (self._task(), identity)

    def of(self, namespace: int, kind: int) -> Ranges:
        """Return the ids (the first namespace's numbers) that the namespace maps, by right."""
        if namespace not in self._known:
            return ()
        self._settle(namespace, kind)
        known = self._known[namespace].maps[kind].ranges
        return known if known == self._read(namespace, kind) else ()

    def forged(self, namespaces: Iterable[int]) -> list[tuple[int, int]]:
        """Return which maps (namespace, kind) of these, as far as they are namespaces, are not what was written."""
        found = []
        for namespace in namespaces:
            for kind in KINDS if namespace in self._known else ():
                self._settle(namespace, kind)
                known = self._known[namespace].maps[kind]
                maps_any = known.ranges or self._read(namespace, kind)
                if maps_any and self._read_raw(namespace, kind) != known.raw:
                    found.append((namespace, kind))
        return found

    def raw(self, namespace: int, kind: int) -> bytes:
        """Return the bytes of a namespace's map, as it was written."""
        return self._known[namespace].maps[kind].raw

    def all(self) -> tuple[int, ...]:
        """Return every namespace but the first."""
        return tuple(self._known)

    def ends(self, state: "TaskState") -> list[tuple[int, int]]:
        """A call of the task ends: return the maps (namespace, kind) that it wrote and may not have."""
        refused = []
        for namespace, found in self._known.items():
            if found.maker == state.task:
                found.maker = 0
            for kind, one in found.maps.items():
                if one.writer is not None and one.writer[0] == state.task:
                    if not self._settle(namespace, kind):
                        refused.append((namespace, kind))
                    one.writer = None
        return refused

    def _settle(self, namespace: int, kind: int) -> bool:
        """Take note of a map that is being written; False if its writer may not."""
        known = self._known[namespace].maps[kind]
        if known.writer is None or self._read_raw(namespace, kind) == known.raw:
            return True
        wanted, writer = self._read(namespace, kind), known.writer[1]
        if not wanted and not known.ranges:
            # The kernel writes the extents first, and last how many there are.
            return True
        # It is written once.
        if known.ranges or (writer is not None and not self._may(namespace, kind, writer, wanted)):
            return False
        known.ranges, known.raw = wanted, self._read_raw(namespace, kind)
        return True

    def _may(self, namespace: int, kind: int, writer: ProtectedObject, wanted: Ranges) -> bool:
        line = self._line(namespace)
        parent = line[0][0]
        mapped = None if parent == writer.first_namespace else self.of(parent, kind)
        return may_map(writer, kind == USERS, line, mapped, wanted)
