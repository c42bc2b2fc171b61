"""Cgroups of the guest, as the agent makes them: one for each tenant, with its limits.

Why it exists: a tenant's memory is told from others' by the cgroup it is charged to (docs/views.md). What a task's
parent allocates for it (its stack, its task_struct, its page tables) is charged to the parent's cgroup; so the agent is
in the tenant's while it starts the tenant's first process.

Rules of this file: the agent is always back in the root cgroup when a generator here ends.

Source: Documentation/admin-guide/cgroup-v2.rst.
"""

from dataclasses import dataclass

from thinbox.guest.agent_channel import GuestScript, call, must

GROUPS = "/sys/fs/cgroup"
CONTROLLERS = "+memory +pids"
_O_WRONLY = 1
_RDONLY, _NOSUID_NODEV_NOEXEC, _REMOUNT, _BIND = 1, 2 | 4 | 8, 0x20, 0x1000


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant may use: bytes of memory (kernel memory included) and tasks; None is no limit."""

    memory_bytes: int | None = None
    tasks: int | None = None


def enable_controllers() -> GuestScript:
    """Switch on the controllers that are needed; once for a guest."""
    yield from write_file(f"{GROUPS}/cgroup.subtree_control", CONTROLLERS)


def make_cgroup(name: str, limits: Limits | None = None, owner: int | None = None) -> GuestScript:
    """Make the cgroup of tenant `name`; with `owner`, a user and group id, none but they look into it."""
    yield from must("mkdir", f"{GROUPS}/{name}", 0o755)
    if owner is not None:
        yield from must("chown", f"{GROUPS}/{name}", owner, owner)
        yield from must("chmod", f"{GROUPS}/{name}", 0o550)
    limits = limits or Limits()
    if limits.memory_bytes is not None:
        yield from write_file(f"{GROUPS}/{name}/memory.max", str(limits.memory_bytes))
    if limits.tasks is not None:
        yield from write_file(f"{GROUPS}/{name}/pids.max", str(limits.tasks))


def show_cgroup(name: str, root: str, *, writable: bool) -> GuestScript:
    """Show, in the caller's mount namespace, the cgroup of tenant `name` ("": all) where programs look for cgroups."""
    flags = 0 if writable else _RDONLY
    result = yield from call("mount", f"{GROUPS}/{name}", f"{root}{GROUPS}", 0, _BIND, 0)
    if result == 0:
        yield from must("mount", 0, f"{root}{GROUPS}", 0, _REMOUNT | _BIND | _NOSUID_NODEV_NOEXEC | flags, 0)


def clone_in_cgroup(name: str, flags: int) -> GuestScript:
    """Start a process in the cgroup of tenant `name`, all of it charged there; return its pid (generator's value)."""
    yield from write_file(f"{GROUPS}/{name}/cgroup.procs", "0")
    pid = yield from call("clone", flags, 0, 0, 0, 0)
    yield from write_file(f"{GROUPS}/cgroup.procs", "0")
    return pid


def in_cgroup(name: str, work: GuestScript) -> GuestScript:
    """Do `work` in the cgroup of tenant `name`, so that what it allocates is charged there."""
    yield from write_file(f"{GROUPS}/{name}/cgroup.procs", "0")
    yield from work
    yield from write_file(f"{GROUPS}/cgroup.procs", "0")


def write_file(path: str, text: str) -> GuestScript:
    """Write `text`, in one call, to a file that is there."""
    handle = yield from must("open", path, _O_WRONLY, 0)
    data = text.encode()
    yield from must("write", handle, data, len(data))
    yield from must("close", handle)
