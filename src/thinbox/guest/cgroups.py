"""Cgroups of the guest, as the agent makes them: one for each tenant, with its limits.

Why it exists: a tenant's memory is told from others' by the cgroup it is charged to (docs/views.md). What a task's
parent allocates for it (its stack, its task_struct, its page tables) is charged to the parent's cgroup; so the agent is
in the tenant's while it starts the tenant's first process.

Rules of this file: the agent is always back in the root cgroup when a generator here ends.

Source: Documentation/admin-guide/cgroup-v2.rst.
"""

from dataclasses import dataclass

from thinbox.guest.agent_channel import GuestScript, call, must

GROUPS = "/run/thinbox-cgroups"
CONTROLLERS = "+memory +pids"
_O_WRONLY = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant may use: bytes of memory (kernel memory included) and tasks; None is no limit."""

    memory_bytes: int | None = None
    tasks: int | None = None


def mount_cgroups() -> GuestScript:
    """Mount the cgroup file system, with the controllers that are needed; once for a guest."""
    yield from must("mkdir", GROUPS, 0o700)
    yield from must("mount", "cgroup2", GROUPS, "cgroup2", 2 | 4 | 8, "")
    yield from write_file(f"{GROUPS}/cgroup.subtree_control", CONTROLLERS)


def make_cgroup(name: str, limits: Limits | None = None) -> GuestScript:
    """Make the cgroup of tenant `name`."""
    yield from must("mkdir", f"{GROUPS}/{name}", 0o755)
    limits = limits or Limits()
    if limits.memory_bytes is not None:
        yield from write_file(f"{GROUPS}/{name}/memory.max", str(limits.memory_bytes))
    if limits.tasks is not None:
        yield from write_file(f"{GROUPS}/{name}/pids.max", str(limits.tasks))


def clone_in_cgroup(name: str, flags: int) -> GuestScript:
    """Start a process in the cgroup of tenant `name`, all of it charged there; return its pid (generator's value)."""
    yield from write_file(f"{GROUPS}/{name}/cgroup.procs", "0")
    pid = yield from call("clone", flags, 0, 0, 0, 0)
    yield from write_file(f"{GROUPS}/cgroup.procs", "0")
    return pid


def write_file(path: str, text: str) -> GuestScript:
    """Write `text`, in one call, to a file that is there."""
    handle = yield from must("open", path, _O_WRONLY, 0)
    data = text.encode()
    yield from must("write", handle, data, len(data))
    yield from must("close", handle)
