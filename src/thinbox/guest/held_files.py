"""Whether the running task has a file open, or mapped, and whether it may write it.

Why it exists: page cache is charged to whoever touched it first, which says little about who may see it. Who holds a
file was allowed to open it, or was given it.

Source: Linux 6.1 include/linux/fdtable.h, include/linux/fs.h (struct address_space), include/linux/mm_types.h.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from thinbox.address import U64
from thinbox.kernel.cred import find_cred_shape
from thinbox.kernel.open_files import find_file_shape

if TYPE_CHECKING:
    from thinbox.guest.kernel_view import KernelView

_MOST_FILES = 4096
_FMODE_WRITE, _CAP_DAC_OVERRIDE = 2, 1
"""include/linux/fs.h; include/uapi/linux/capability.h."""
_WRITES_FILE = 0x08 | 0x20
"""VM_SHARED and VM_MAYWRITE (include/linux/mm.h)."""
_MOST_MAPPINGS = 1024
"""How many are looked at: a task that holds more is judged as if it did not hold the rest."""


class HeldFiles:
    """Looks through the running task's descriptors and mappings; `read` returns a word of kernel memory, or 0."""

    def __init__(self, kernel: "KernelView", read: Callable[[int, int], int]) -> None:
        self._kernel, self._read = kernel, read
        self._shape, self._cred = find_file_shape(kernel.facts), find_cred_shape(kernel.facts)

    def holds(self, mapping: int, root: int, spaces: frozenset[int] = frozenset()) -> bool:
        """Tell whether the running task has a file of the address_space `mapping` mapped or open, or one of the
        mm_structs `spaces` has it mapped."""
        task = self._kernel.current
        wanted = (spaces | {self._read(task + self._shape.task_mm_at, root)}) - {0}
        if wanted and any(mm in wanted for mm, _is_writable in self._mappings(mapping, root)):
            return True
        return any(self._read(file + self._shape.file_mapping_at, root) == mapping for file in self._files(task, root))

    def may_write(self, mapping: int, inode: int, mode: int, root: int) -> bool:
        """Tell whether the running task may write the file: it has it open or mapped for that, or its ids, and the
        `mode`, let it (fs/namei.c, generic_permission; without supplementary groups and access lists).

        A shared mapping may be made writable only of a file that was open for writing (mm/mmap.c, do_mmap).
        """
        task = self._kernel.current
        mm = self._read(task + self._shape.task_mm_at, root)
        if mm and (mm, True) in self._mappings(mapping, root):
            return True
        for file in self._files(task, root):
            if (
                self._read(file + self._shape.file_mapping_at, root) == mapping
                and self._u32(file + self._shape.file_mode_at, root) & _FMODE_WRITE
            ):
                return True
        cred = self._read(task + self._cred.task_cred_at, root)
        user, group = (self._u32(cred + at, root) for at in self._cred.file_ids_at)
        owner, owning_group = (self._u32(inode + at, root) for at in self._shape.inode_owners_at)
        capable = self._u32(cred + self._cred.effective_at, root) >> _CAP_DAC_OVERRIDE & 1
        if capable and self._read(cred + self._cred.namespace_at, root) == self._cred.first_namespace_at:
            return True
        if user == owner:
            return bool(mode & 0o200)
        return bool(mode & (0o020 if group == owning_group else 0o002))

    def _u32(self, vaddr: int, root: int) -> int:
        return self._read(vaddr & ~7, root) >> 8 * (vaddr & 7) & 0xFFFFFFFF

    def _mappings(self, mapping: int, root: int) -> Iterator[tuple[int, bool]]:
        """Yield the mm_struct of each mapping of the file (its interval tree, in any order), and whether what is stored
        there goes, or may be made to go, to the file."""
        todo = [self._read(mapping + self._shape.mapping_tree_at, root)]
        for _ in range(_MOST_MAPPINGS):
            if not todo:
                return
            node = todo.pop()
            if node:
                flags = self._read((node + self._shape.vma_flags_at) & U64, root)
                yield self._read((node + self._shape.vma_mm_at) & U64, root), flags & _WRITES_FILE == _WRITES_FILE
                todo += (self._read(node + self._shape.left_at, root), self._read(node + self._shape.right_at, root))

    def _files(self, task: int, root: int) -> Iterator[int]:
        files = self._read(task + self._shape.task_files_at, root)
        table = self._read(files + self._shape.table_at, root) if files else 0
        if not table:
            return
        count = self._read(table + self._shape.table_count_at, root) & 0xFFFFFFFF
        array = self._read(table + self._shape.table_array_at, root)
        for number in range(min(count, _MOST_FILES)):
            file = self._read(array + 8 * number, root)
            if file:
                yield file
