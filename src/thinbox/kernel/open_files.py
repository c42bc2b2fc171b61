"""Files: what a task has open or mapped, and what an inode says of who may read and write it.

One shape is known, of Linux 5.10 to 7.3: a table of `struct file *` behind `files_struct.fdt`, and an interval tree of
mappings at `address_space.i_mmap`, the nodes being `vm_area_struct.shared`.

Source: include/linux/fdtable.h, include/linux/fs.h (struct file, struct inode, struct address_space),
include/linux/mm_types.h (struct vm_area_struct, struct mm_struct).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "views cannot tell which files a tenant has open"


@dataclass(frozen=True, slots=True)
class FileShape:
    """Offsets; `vma_mm_at` and `vma_flags_at` count from the node in the tree."""

    task_mm_at: int
    task_files_at: int
    table_at: int
    table_count_at: int
    table_array_at: int
    file_mapping_at: int
    file_mode_at: int
    mapping_tree_at: int
    mapping_host_at: int
    left_at: int
    right_at: int
    vma_mm_at: int
    vma_flags_at: int
    inode_number_at: int
    inode_generation_at: int
    inode_mode_at: int
    inode_super_at: int
    inode_owners_at: tuple[int, int]
    mm_pgd_at: int


def probe_files(probe: Probe) -> FileShape:
    """Find it; what is missing is noted in `probe`."""
    offset = probe.offset
    return FileShape(
        task_mm_at=offset("task_struct.mm"),
        task_files_at=offset("task_struct.files"),
        table_at=offset("files_struct.fdt"),
        table_count_at=offset("fdtable.max_fds"),
        table_array_at=offset("fdtable.fd"),
        file_mapping_at=offset("file.f_mapping"),
        file_mode_at=offset("file.f_mode"),
        mapping_tree_at=offset("address_space.i_mmap"),
        mapping_host_at=offset("address_space.host"),
        left_at=offset("rb_node.rb_left"),
        right_at=offset("rb_node.rb_right"),
        vma_mm_at=offset("vm_area_struct.vm_mm") - offset("vm_area_struct.shared"),
        vma_flags_at=offset("vm_area_struct.vm_flags", "vm_area_struct.flags") - offset("vm_area_struct.shared"),
        inode_number_at=offset("inode.i_ino"),
        inode_generation_at=offset("inode.i_generation"),
        inode_mode_at=offset("inode.i_mode"),
        inode_super_at=offset("inode.i_sb"),
        inode_owners_at=(offset("inode.i_uid"), offset("inode.i_gid")),
        mm_pgd_at=offset("mm_struct.pgd"),
    )


def find_file_shape(facts: "KernelFacts") -> FileShape:
    """Return it; `MissingFactError` if this kernel keeps open files in another way."""
    probe = Probe(facts, "open files", DISABLES)
    found = probe_files(probe)
    probe.check()
    return found
