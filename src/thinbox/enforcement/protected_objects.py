"""Reads what policy `guard` compares: a task's ids, capabilities, user namespace and groups, and the paths of helpers.

Rules of this file: read by the kernel's own types and symbols, through the kernel's own table; a kernel that lacks one
of the paths has one object less.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from thinbox.address import PAGE_BYTES, U64, to_signed
from thinbox.errors import MachineError
from thinbox.isolation.policies.guard import POINTER_BYTES, ProtectedObject
from thinbox.kernel.cred import find_cred_shape
from thinbox.kernel.identity import find_identity
from thinbox.kernel.umh import find_usermode_helpers

if TYPE_CHECKING:
    from thinbox.enforcement.id_maps import IdMaps
    from thinbox.guest.kernel_view import KernelView
    from thinbox.machine.memory import Memory

_PATH_BYTES = 256
"""Longer than any path the kernel starts; a longer one is none of them."""
_EXTENTS_INSIDE, _MOST_EXTENTS, _EXTENT_BYTES = 5, 340, 12
"""include/linux/user_namespace.h: UID_GID_MAP_MAX_BASE_EXTENTS, …_MAX_EXTENTS, `struct uid_gid_extent`."""
_MOST_GROUPS = 65536
"""NGROUPS_MAX (include/uapi/linux/limits.h)."""
_MOST_USERS = 1 << 24
"""References to one set of credentials; more, or none, and it is no such set any longer."""


class ProtectedObjectReader:
    """Reads the protected objects of one machine."""

    def __init__(self, view: "KernelView", memory: "Memory") -> None:
        self._view, self._memory = view, memory
        cred, helpers = find_cred_shape(view.facts), find_usermode_helpers(view.facts)
        self._cred_at, self._namespace_at = cred.task_cred_at, cred.namespace_at
        self._first = cred.run_at
        self._first_namespace = cred.first_namespace_at
        self._map = find_identity(view.facts)
        self._maps_at = (self._map.uid_map_at, self._map.gid_map_at)
        self.id_maps: IdMaps | None = None
        """Who knows of user namespaces; without it none but the first is believed to be one."""
        # What is compared, by its place behind the run's first byte: (bytes from there, bytes).
        pointers = (cred.namespace_at - cred.run_at, cred.groups_at - cred.run_at)
        self._parts = ((0, cred.run_bytes), *((at, POINTER_BYTES) for at in pointers))
        self._span = max(at + size for at, size in self._parts)
        self._program_at, self._sizes = helpers.path_at, helpers.paths
        self._real_cred_at, self._usage_at = cred.task_real_cred_at, cred.usage_at

    def identity(self, task: int, root: int, caller: int) -> ProtectedObject:
        """Return a task's ids and capabilities as they are; `root` is the kernel's table, `caller` the task whose call
        runs."""
        place = (self._view.read_u64(task + self._cred_at, root) + self._first) & U64
        return self._identity_at(place, root, caller)

    def _identity_at(self, place: int, root: int, caller: int) -> ProtectedObject:
        content = self._content(place, root)
        groups = self._groups(content, root)
        found = ProtectedObject(place, content, is_identity=True, groups=groups, first_namespace=self._first_namespace)
        namespace = self._memory.word_at(root, place + self._parts[1][0])
        if namespace == self._first_namespace:
            return found
        return found if self.id_maps is None else replace(found, standing=self.id_maps.standing(namespace, caller))

    def _list_place(self, content: bytes) -> int:
        """Return where the list of groups begins that an identity points to: with how many there are; 0 if nowhere."""
        info = int.from_bytes(content[-POINTER_BYTES:], "little")
        return (info + self._map.group_count_at) & U64 if info else 0

    def _groups(self, content: bytes, root: int) -> bytes:
        place = self._list_place(content)
        if not place:
            return b""
        try:
            count = int.from_bytes(self._memory.read_virtual(root, to_signed(place), 4), "little")
            size = self._map.group_list_at - self._map.group_count_at + 4 * min(count, _MOST_GROUPS)
            return self._memory.read_virtual(root, to_signed(place), size)
        except (LookupError, MachineError):
            return b""

    def id_map_place(self, namespace: int, kind: int) -> int:
        """Return where a map of a user namespace lies."""
        return (namespace + self._maps_at[kind]) & U64

    def read_id_map_bytes(self, namespace: int, kind: int) -> bytes:
        """Return the bytes of a map of a user namespace; none where there is none."""
        try:
            place = to_signed(self.id_map_place(namespace, kind))
            return self._memory.read_virtual(self._view.kernel_root, place, self._map.map_bytes)
        except (LookupError, MachineError):
            return b""

    def read_id_map(self, namespace: int, kind: int) -> tuple[range, ...]:
        """Return the ids that a user namespace maps to, as guest memory has it and the first namespace numbers them."""
        shape, word, root = self._map, self._memory.word_at, self._view.kernel_root
        place = namespace + self._maps_at[kind]

        def number(vaddr: int) -> int:
            return word(root, vaddr & ~7) >> 8 * (vaddr & 7) & 0xFFFF_FFFF

        count = number(place + shape.extent_count_at)
        extents = place + shape.extents_at
        if count > _EXTENTS_INSIDE:
            extents = word(root, place + shape.more_extents_at)
        found = []
        for at in range(extents, extents + _EXTENT_BYTES * min(count, _MOST_EXTENTS), _EXTENT_BYTES):
            first = number(at + 4)
            found.append(range(first, first + number(at + 8)))
        return tuple(found)

    def real_identity(self, task: int, root: int) -> ProtectedObject:
        """As `identity`, of `real_cred`: the task's own also while it works with others' for a while
        (`override_creds`, kernel/cred.c), as threads of io_uring do."""
        place = (self._view.read_u64(task + self._real_cred_at, root) + self._first) & U64
        return self._identity_at(place, root, 0)

    def _pieces(self, place: int) -> tuple[tuple[int, int], ...]:
        """Where what is compared lies: (address, bytes) of each piece."""
        return tuple((place + at & U64, size) for at, size in self._parts)

    def _writes(self, known: ProtectedObject) -> tuple[tuple[int, bytes], ...]:
        """What to write so that there is what there was."""
        wrote, at = [], 0
        for place, size in self._pieces(known.vaddr):
            wrote.append((place, known.content[at : at + size]))
            at += size
        if known.groups:
            wrote.append((self._list_place(known.content), known.groups))
        return tuple(wrote)

    def _content(self, place: int, root: int) -> bytes:
        try:
            # One read: what lies between the pieces is part of the same object.
            whole = self._memory.read_virtual(root, to_signed(place), self._span)
        except (LookupError, MachineError):
            # A forged pointer: nobody's ids, and so changed ones.
            return b""
        return b"".join(whole[at : at + size] for at, size in self._parts)

    def put_back(
        self, task: int, known: ProtectedObject, root: int, *, real_only: bool
    ) -> tuple[tuple[int, bytes], ...]:
        """Return the writes after which a task has the ids `known` again; none where that would touch what is not its.

        In place, if the task still points there. Else its pointers are put back (`real_only`: `real_cred` alone), if
        the object they were to is still what it was and in use; it is counted once more for each, so that no later
        end of a reference frees it under somebody.
        """
        view, old = self._view, (known.vaddr - self._first) & U64
        pointers = [task + self._real_cred_at] if real_only else [task + self._real_cred_at, task + self._cred_at]
        wrong = [place for place in pointers if view.read_u64(place, root) != old]
        if not wrong:
            return self._writes(known)
        is_real = view.read_u64(task + self._real_cred_at, root) == old
        try:
            usage = view.read_u32((old + self._usage_at) & U64, root)
        except (LookupError, MachineError):
            return ()
        if not 0 < usage < _MOST_USERS:
            return ()
        if self._content(known.vaddr, root) != known.content or self._groups(known.content, root) != known.groups:
            if not is_real:
                return ()
            wrote = list(self._writes(known))
        else:
            wrote = []
        count = ((old + self._usage_at) & U64, (usage + len(wrong)).to_bytes(4, "little"))
        return (*wrote, count, *((place, old.to_bytes(8, "little")) for place in wrong))

    def frames(self, task: int, known: ProtectedObject, root: int) -> tuple[int, ...]:
        """Return the frames that hold a task's ids and the pointer to them (guest-physical, ascending)."""
        pieces = (vaddr + at for vaddr, size in self._pieces(known.vaddr) for at in (0, size - 1))
        places = (*pieces, task + self._cred_at, self._list_place(known.content))
        return tuple(sorted({self.frame(place, root) for place in places}))

    def frame(self, vaddr: int, root: int) -> int:
        """Return the frame of a kernel address; -1 where there is none."""
        paddr = self._memory.tables.translate(root, to_signed(vaddr & U64))
        return paddr & ~0xFFF if paddr >= 0 else -1

    def is_in_new_namespace(self, task: int, parents: ProtectedObject, root: int) -> bool:
        """Tell whether a task's user namespace is not the one of the credentials `parents` (CLONE_NEWUSER)."""
        own = self._view.read_u64(task + self._cred_at, root)
        word = self._memory.word_at
        return word(root, own + self._namespace_at) != word(root, parents.vaddr - self._first + self._namespace_at)

    def is_path_as(self, known: ProtectedObject, root: int) -> bool:
        """Tell whether one of the helpers' paths is what it was."""
        # By the kernel's own table each time: a path may be another page's by now.
        size = self._sizes[known.vaddr]
        place = self._memory.tables.translate(root, to_signed(known.vaddr))
        if place < 0 or place % PAGE_BYTES + size > PAGE_BYTES:
            return self.path(known.vaddr, root).content == known.content
        wanted = known.content + b"\0"
        return self._memory.read(place, min(len(wanted), size)) == wanted

    def paths(self, root: int) -> list[ProtectedObject]:
        """Return the paths of the kernel's helpers as they are."""
        return [self.path(vaddr, root) for vaddr in self._sizes]

    def path(self, vaddr: int, root: int) -> ProtectedObject:
        """Return the path that lies at `vaddr`, one of the kernel's helpers'."""
        try:
            raw = self._memory.read_virtual(root, to_signed(vaddr), self._sizes[vaddr])
        except (LookupError, MachineError):
            raw = b""
        return ProtectedObject(vaddr, raw.partition(b"\0")[0], is_identity=False)

    def read_program(self, info: int, root: int) -> tuple[int, bytes]:
        """Return the address and the bytes of the path in a `struct subprocess_info` (include/linux/umh.h)."""
        try:
            raw = self._memory.read_virtual(root, to_signed((info + self._program_at) & U64), 8)
            place = int.from_bytes(raw, "little")
        except (LookupError, MachineError):
            return 0, b""
        try:
            return place, self._memory.read_virtual(root, to_signed(place), _PATH_BYTES).partition(b"\0")[0]
        except (LookupError, MachineError):
            return place, b""
