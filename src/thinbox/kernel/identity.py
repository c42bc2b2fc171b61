"""Who a task is: its numbers in each namespace of processes, its ids, its groups, and the map of its user namespace.

One shape is known, of Linux 5.10 to 7.3: `struct pid` with a `struct upid` for each level, `signal_struct.pids` by enum
pid_type, and a `struct uid_gid_map` whose first five extents lie in it (4.15, "userns: bump idmap limits to 340").
In 5.10 the map begins with how many extents there are, in 6.12 with the extents.

Source: kernel/pid.c (`pid_nr_ns`), include/linux/pid.h, include/linux/user_namespace.h, include/linux/cred.h.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "numbers and ids of a task cannot be read, so no plan may emulate them"
IDS = ("uid", "euid", "suid", "gid", "egid", "sgid")


@dataclass(frozen=True, slots=True)
class IdentityShape:
    """Offsets: in a task, in a signal_struct, in a pid and one level of it, in credentials, in groups, and in a user
    namespace's two maps. `ids_at` are the places of `IDS`."""

    pid_at: int
    parent_at: int
    signal_at: int
    cred_at: int
    pids_at: int
    level_at: int
    numbers_at: int
    number_bytes: int
    number_at: int
    namespace_at: int
    ids_at: dict[str, int]
    user_namespace_at: int
    groups_at: int
    group_count_at: int
    group_list_at: int
    uid_map_at: int
    gid_map_at: int
    extent_count_at: int
    extents_at: int
    more_extents_at: int
    map_bytes: int


def probe_identity(probe: Probe) -> IdentityShape:
    """Find it; what is missing is noted in `probe`."""
    offset = probe.offset
    return IdentityShape(
        pid_at=offset("task_struct.thread_pid"),
        parent_at=offset("task_struct.real_parent"),
        signal_at=offset("task_struct.signal"),
        cred_at=offset("task_struct.cred"),
        pids_at=offset("signal_struct.pids"),
        level_at=offset("pid.level"),
        numbers_at=offset("pid.numbers"),
        number_bytes=probe.size("upid"),
        number_at=offset("upid.nr"),
        namespace_at=offset("upid.ns"),
        ids_at={name: offset(f"cred.{name}") for name in IDS},
        user_namespace_at=offset("cred.user_ns"),
        groups_at=offset("cred.group_info"),
        group_count_at=offset("group_info.ngroups"),
        group_list_at=offset("group_info.gid"),
        uid_map_at=offset("user_namespace.uid_map"),
        gid_map_at=offset("user_namespace.gid_map"),
        extent_count_at=offset("uid_gid_map.nr_extents"),
        extents_at=offset("uid_gid_map.extent"),
        more_extents_at=offset("uid_gid_map.forward"),
        map_bytes=probe.size("uid_gid_map"),
    )


def find_identity(facts: "KernelFacts") -> IdentityShape:
    """Return it; `MissingFactError` if this kernel keeps it in another way."""
    probe = Probe(facts, "identity of a task", DISABLES)
    found = probe_identity(probe)
    probe.check()
    return found
