"""Asks policy `guard` at the ends of calls, between them, and where the kernel starts a program; says who wrote.

Why it exists: what a policy guards is no page fault. It is compared where calls begin, sleep and end, and looked at
where `call_usermodehelper_exec` is about to start a program as root.

Rules of this file:
- Nothing is acted on here: a `Finding` says what changed, whether the running call wrote it, and what puts it back.
- Whoever wrote is to blame. An isolated call can write only what it holds writable; a change in a page that the
  running call does not hold was another's, is put back, and costs nobody his life.
- What a task's ids were is known from its birth, and changes only at the end of a call that may change them.
- A tenant whose policy guards nothing pays nothing.

Source: Linux 6.1 kernel/umh.c, kernel/cred.c (`override_creds` changes `task->cred` for a while, in the task's own
call).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from thinbox.enforcement.id_maps import IdMaps
from thinbox.enforcement.protected_objects import ProtectedObjectReader
from thinbox.isolation.policies.guard import (
    CHANGES_IDENTITY,
    FOREIGN_IDENTITY,
    FORGED_MAP,
    NEW_AT_BIRTH,
    is_born_with,
    namespace_of,
)
from thinbox.machine import cpu as registers

if TYPE_CHECKING:
    from thinbox.enforcement.grants import Grants
    from thinbox.enforcement.open_call import OpenCall
    from thinbox.enforcement.target import Target
    from thinbox.enforcement.tasks import TaskList, TaskState
    from thinbox.isolation.policies.guard import ProtectedObject
    from thinbox.isolation.verdict import Verdict

_FAILED = -4095
"""Results from here to -1 are errors (MAX_ERRNO, include/linux/err.h)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something protected changed. `is_writer`: the running call did it; `repair` are the bytes that put it back."""

    verdict: "Verdict"
    vaddr: int
    is_writer: bool
    whose: str
    repair: tuple[tuple[int, bytes], ...] = ()


class Integrity:
    """The protected objects of one machine, before the policies of its tenants."""

    def __init__(self, target: "Target", tasks: "TaskList", grants: "Grants") -> None:
        self._target, self._tasks, self._grants = target, tasks, grants
        self._reader: ProtectedObjectReader | None = None
        self._maps: IdMaps | None = None
        self._paths: dict[int, ProtectedObject] = {}
        self._frames: dict[int, set[int]] = {}
        """Frames of tasks' credentials and of the words that point at them: which tasks (task_struct)."""

    def program(self) -> bytes:
        """Where the kernel is about to start a program: the path of the program; empty where it cannot be read."""
        if self._reader is None:
            self._reader = ProtectedObjectReader(self._target.view, self._target.memory)
        return self._reader.read_program(self._target.cpu.regs[registers.RDI], self._target.kernel_root)[1]

    def reset(self) -> None:
        """Begin again after the machine was restored."""
        self._paths.clear()
        self._frames.clear()
        if self._maps is not None:
            self._maps.reset()

    def _policy(self, state: "TaskState") -> Any:
        """The policy of a task's tenant, if it guards anything, else None."""
        policy = state.tenant.judge.policy
        if not getattr(policy, "guards_end", False):
            return None
        if self._reader is None:
            self._reader = ProtectedObjectReader(self._target.view, self._target.memory)
        if self._maps is None:
            self._maps = self._reader.id_maps = IdMaps(
                self._target, self._tasks, self._reader.read_id_map, self._reader.read_id_map_bytes
            )
        if not self._paths:
            self._paths = {path.vaddr: path for path in self._reader.paths(self._target.kernel_root)}
        return policy

    # -- what is known ------------------------------------------------------------------------------------
    def born(self, child: "TaskState", parent: "TaskState | None" = None) -> Finding | None:
        """A tenant's new task begins with its parent's ids; return what was found if it does not."""
        policy = self._policy(child)
        if policy is None:
            return None
        now = self._identity(child, parent)
        known = None if parent is None else parent.identity
        if known is not None and self._reader is not None:
            is_new = self._reader.is_in_new_namespace(child.task, known, self._target.kernel_root)
            if not is_born_with(known, now, in_new_namespace=is_new):
                return Finding(NEW_AT_BIRTH, now.vaddr, is_writer=True, whose=child.tenant.name)
        self._know(child, now)
        return None

    def forget(self, state: "TaskState") -> None:
        """The task is gone."""
        for frame in state.identity_frames:
            self._frames.get(frame, set()).discard(state.task)

    def _identity(self, state: "TaskState", caller: "TaskState | None" = None) -> "ProtectedObject":
        assert self._reader is not None
        return self._reader.identity(state.task, self._target.kernel_root, (caller or state).task)

    def _know(self, state: "TaskState", identity: "ProtectedObject") -> None:
        if state.identity is not None and state.identity.vaddr == identity.vaddr:
            state.identity = identity
            return
        assert self._reader is not None
        self.forget(state)
        state.identity = identity
        state.identity_frames = self._reader.frames(state.task, identity, self._target.kernel_root)
        for frame in state.identity_frames:
            self._frames.setdefault(frame, set()).add(state.task)

    # -- when -----------------------------------------------------------------------------------------------
    def begins(self, state: "TaskState", call: "OpenCall") -> Finding | None:
        """A call begins, on the kernel's own table: say if its task's ids changed since the last one. Nobody's call
        wrote that, or it would have been found at that call's end."""
        policy = self._policy(state)
        if policy is None:
            return None
        now, finding = self._identity(state), None
        if state.identity is None:
            self._know(state, now)
        elif (found := policy.check_between(state.identity, now)) is not None:
            finding = Finding(
                found[0], found[1], is_writer=False, whose=state.tenant.name, repair=self._put_back(state)
            )
        elif now.vaddr != state.identity.vaddr:
            # The same ids at another place: what it knew of may be anybody's by now (KEYCTL_SESSION_TO_PARENT).
            self._know(state, now)
        assert state.identity is not None
        if finding is None and self._maps is not None:
            for place in self._maps.forged((namespace_of(state.identity),)):
                forged = self._forged_map(state, place, is_writer=False)
                finding = forged if finding is None else replace(finding, repair=finding.repair + forged.repair)
        call.protected = (state.identity, *self._paths.values()) if call.isolated else ()
        return finding

    def ends(self, state: "TaskState", call: "OpenCall") -> Iterator[Finding]:
        """A call is about to return: compare its task's ids, the paths, and what of others it could write."""
        policy = self._policy(state)
        if policy is None or state.identity is None:
            return
        now, name = self._identity(state), call.record.name
        written = self._written(call)
        # Of 32-bit calls that are not isolated nothing is known but a number.
        is_let_off = not call.protected and name.startswith("i386#")
        if call.record.ret is not None and _FAILED <= call.record.ret < 0:
            # It gave its task nothing, whatever it is.
            name = f"{name}, which failed"
        found = None if is_let_off else policy.check_end(name, (state.identity,), (now,))
        if found is None:
            self._know(state, now)
        else:
            # While it slept, anybody may have written.
            wrote = bool(written & set(state.identity_frames)) and not call.slept
            yield Finding(found[0], found[1], is_writer=wrote, whose=state.tenant.name, repair=self._put_back(state))
        yield from self._changed_maps(state, call, written)
        yield from self._changed_paths(policy, state, call, written)
        yield from self._changed_others(policy, state, written)

    def pauses(self, state: "TaskState", call: "OpenCall") -> Iterator[Finding]:
        """An isolated call is about to sleep: what it wrote of others, and paths, is found now; it may never end."""
        policy = self._policy(state)
        if policy is None or not call.protected:
            return
        written = self._written(call)
        yield from self._changed_paths(policy, state, call, written)
        yield from self._changed_others(policy, state, written)

    def starts(self, state: "TaskState", call: "OpenCall") -> Iterator[Finding]:
        """`call_usermodehelper_exec(info, wait)`: paths first, then the program."""
        policy = self._policy(state)
        if policy is None or self._reader is None or not call.protected:
            return
        yield from self._changed_paths(policy, state, call, self._written(call))
        place, path = self._reader.read_program(self._target.cpu.regs[registers.RDI], self._target.kernel_root)
        if (old := self._paths.get(place)) is not None:
            # One of the paths themselves: as it is, or as it was put back.
            path = old.content
        found = policy.check_program(path, call.protected, place)
        if found is not None:
            yield Finding(found[0], found[1], is_writer=True, whose=state.tenant.name)

    def _written(self, call: "OpenCall") -> frozenset[int]:
        return frozenset(self._grants.written_frames(call).tolist()) if call.isolated else frozenset()

    # -- comparing ------------------------------------------------------------------------------------------
    def _put_back(self, state: "TaskState", *, real_only: bool = False) -> tuple[tuple[int, bytes], ...]:
        """The bytes that make a task's ids what they were."""
        assert state.identity is not None
        assert self._reader is not None
        return self._reader.put_back(state.task, state.identity, self._target.kernel_root, real_only=real_only)

    def _changed_paths(
        self, policy: Any, state: "TaskState", call: "OpenCall", written: frozenset[int]
    ) -> Iterator[Finding]:
        assert self._reader is not None
        root = self._target.kernel_root
        for old in tuple(self._paths.values()):
            if self._reader.is_path_as(old, root):
                continue
            now = self._reader.path(old.vaddr, root)
            before = (state.identity, old) if state.identity is not None else (old,)
            found = policy.check_end(call.record.name, before, (*before[:-1], now))
            if found is None:
                self._paths[old.vaddr] = now
                continue
            wrote = self._reader.frame(old.vaddr, root) in written and not call.slept
            yield Finding(
                found[0], found[1], is_writer=wrote, whose="kernel", repair=((old.vaddr, old.content + b"\0"),)
            )

    def _forged_map(self, state: "TaskState", place: tuple[int, int], *, is_writer: bool) -> Finding:
        assert self._maps is not None
        assert self._reader is not None
        vaddr = self._reader.id_map_place(*place)
        repair = ((vaddr, self._maps.raw(*place)),)
        return Finding(FORGED_MAP, vaddr, is_writer=is_writer, whose=state.tenant.name, repair=repair)

    def _changed_maps(self, state: "TaskState", call: "OpenCall", written: frozenset[int]) -> Iterator[Finding]:
        """Maps of user namespaces: those the call wrote as one writes them, those of the task's own namespace, and
        those in pages that it could write. Of the last nobody is to blame: every call counts references there."""
        assert self._maps is not None
        assert self._reader is not None
        assert state.identity is not None
        for place in self._maps.ends(state):
            yield self._forged_map(state, place, is_writer=True)
        own, root = namespace_of(state.identity), self._target.kernel_root
        near = {
            namespace
            for namespace in self._maps.all()
            if namespace != own and self._reader.frame(namespace, root) in written
        }
        for place in self._maps.forged((own, *sorted(near))):
            wrote = place[0] == own and self._reader.frame(own, root) in written and not call.slept
            yield self._forged_map(state, place, is_writer=wrote)

    def _changed_others(self, policy: Any, state: "TaskState", written: Iterable[int]) -> Iterator[Finding]:
        """Other tasks' ids in pages the running call could write: no call may change them. They are put back; who wrote
        is not known, for credentials of many tasks share a page, and every call counts references there."""
        assert self._reader is not None
        root = self._target.kernel_root
        touched = {task for frame in written for task in self._frames.get(frame, ())} - {state.task}
        for task in sorted(touched):
            other = self._tasks.tasks.get(task)
            if other is None or other.identity is None:
                continue
            if other.call is not None and other.call.record.name in CHANGES_IDENTITY:
                continue
            # It may work with others' ids for a while: its own are compared.
            now = self._reader.real_identity(other.task, root)
            if now.is_as(other.identity):
                self._know(other, now)
                continue
            found = policy.check_between(other.identity, now)
            if found is not None:
                repair = self._put_back(other, real_only=True)
                yield Finding(FOREIGN_IDENTITY, found[1], is_writer=False, whose=other.tenant.name, repair=repair)
