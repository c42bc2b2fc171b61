"""The maps of a user namespace: where `/proc/PID/uid_map` and `gid_map` are written, and whose a namespace is.

One shape is known, of Linux 5.10 to 7.3: `proc_uid_map_write(file, …)` with the namespace in the file's
`struct seq_file`. A kernel without user namespaces has no such function.

Source: kernel/user_namespace.c (create_user_ns, free_user_ns, proc_uid_map_write), include/linux/user_namespace.h; a
namespace's references are counted in it (5.10), in its ns_common (5.11), by another name there (6.18).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "policy guard does not know who made the maps of a user namespace"
USERS, GROUPS = range(2)
_WRITERS = ("proc_uid_map_write", "proc_gid_map_write")
"""By `USERS` and `GROUPS`."""


@dataclass(frozen=True, slots=True)
class IdMapShape:
    """`writers`: the functions that write the maps, by kind; `makes_at` and `frees_at` what makes a namespace and frees
    one (0 where there are none). Offsets from an open file to its namespace, in a cred, and in a namespace."""

    writers: dict[int, int]
    makes_at: int
    frees_at: int
    cred_namespace_at: int
    work_at: int
    count_at: int
    file_private_at: int
    seq_private_at: int
    parent_at: int
    owner_at: int


def probe_id_maps(probe: Probe) -> IdMapShape:
    """Find it; what is missing is noted in `probe`."""
    has_any = probe.has_symbol("create_user_ns")
    return IdMapShape(
        writers={probe.symbol(name): kind for kind, name in enumerate(_WRITERS)} if has_any else {},
        makes_at=probe.symbol("create_user_ns") if has_any else 0,
        frees_at=probe.symbol("free_user_ns") if has_any else 0,
        cred_namespace_at=probe.offset("cred.user_ns"),
        work_at=probe.offset("user_namespace.work"),
        count_at=probe.offset("user_namespace.ns.count", "user_namespace.ns.__ns_ref", "user_namespace.count"),
        file_private_at=probe.offset("file.private_data"),
        seq_private_at=probe.offset("seq_file.private"),
        parent_at=probe.offset("user_namespace.parent"),
        owner_at=probe.offset("user_namespace.owner"),
    )


def find_id_map_shape(facts: "KernelFacts") -> IdMapShape:
    """Return it; `MissingFactError` if this kernel keeps user namespaces in another way."""
    probe = Probe(facts, "user namespaces", DISABLES)
    found = probe_id_maps(probe)
    probe.check()
    return found
