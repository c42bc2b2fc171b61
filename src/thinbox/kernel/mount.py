"""The mounts of a mount namespace.

Shapes, newest first:
- a red-black tree at `mnt_namespace.mounts`, the nodes being `mount.mnt_node` (6.8, commit 2eea9ce4310d "mounts: keep
  list of mounts in an rbtree").
- a list at `mnt_namespace.list`, the links being `mount.mnt_list`.

Source: fs/mount.h.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "views cannot tell which files a tenant may open"
MOST_MOUNTS = 4096
"""How many are looked at: a file system mounted past them counts as not mounted."""


@dataclass(frozen=True, slots=True)
class MountShape:
    """Where a task's mounts hang: `head_at` in the namespace; `super_at` from a link to the word for the super
    block."""

    nsproxy_at: int
    namespace_at: int
    head_at: int
    super_at: int
    is_tree: bool
    left_at: int
    right_at: int

    def super_blocks(self, task: int, read: Callable[[int], int]) -> Iterator[int]:
        """Yield the super block of each mount in the task's namespace; `read` returns a word of the kernel's, or 0."""
        nsproxy = read(task + self.nsproxy_at)
        head = read(nsproxy + self.namespace_at) + self.head_at
        links = self._tree(head, read) if self.is_tree else self._list(head, read)
        for link in links:
            yield read(link + self.super_at)

    @staticmethod
    def _list(head: int, read: Callable[[int], int]) -> Iterator[int]:
        link = read(head)
        for _ in range(MOST_MOUNTS):
            if link in (0, head):
                return
            yield link
            link = read(link)

    def _tree(self, head: int, read: Callable[[int], int]) -> Iterator[int]:
        todo = [read(head)]
        for _ in range(2 * MOST_MOUNTS):
            if not todo:
                return
            node = todo.pop()
            if node:
                yield node
                todo += (read(node + self.left_at), read(node + self.right_at))


def probe_mount(probe: Probe) -> MountShape:
    """Find it; what is missing is noted in `probe`."""
    # An older kernel has a `mounts` there, too: a number.
    is_tree = probe.has_member("mount.mnt_node")
    link = probe.offset("mount.mnt_node", "mount.mnt_list")
    return MountShape(
        nsproxy_at=probe.offset("task_struct.nsproxy"),
        namespace_at=probe.offset("nsproxy.mnt_ns"),
        head_at=probe.offset("mnt_namespace.mounts" if is_tree else "mnt_namespace.list"),
        super_at=probe.offset("mount.mnt.mnt_sb") - link,
        is_tree=is_tree,
        left_at=probe.offset("rb_node.rb_left"),
        right_at=probe.offset("rb_node.rb_right"),
    )


def find_mount_shape(facts: "KernelFacts") -> MountShape:
    """Return it; `MissingFactError` if this kernel keeps its mounts in another way."""
    probe = Probe(facts, "mounts", DISABLES)
    found = probe_mount(probe)
    probe.check()
    return found
