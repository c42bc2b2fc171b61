"""Several tenants at once: each with namespaces, a cgroup and a first process of its own.

Why it exists: containers of different tenants share one kernel; that is the case thinbox is about. What a container
engine does with clone flags and files, the agent does here with system calls.

Rules of this file:
- A tenant's process 1 is thinbox's: it makes the tenant's mounts, starts the program, reaps, and ends with it; then the
  kernel kills whatever else is in that pid namespace.
- Tenants start one after the other, for they share the child's part of the scratch until their `execve`.
- Process 1 keeps no descriptor of the agent's: another tenant's pipe would never see its end.
- The agent holds no end of a pipe that a tenant has: relays do.

Source: user_namespaces(7), pid_namespaces(7), mount_namespaces(7).
"""

from collections.abc import Callable
from dataclasses import dataclass

from thinbox.errors import InputError
from thinbox.guest.agent_channel import CHILD_AREA, AgentChannel, GuestScript, must
from thinbox.guest.cgroups import (
    clone_in_cgroup,
    enable_controllers,
    in_cgroup,
    make_cgroup,
    show_cgroup,
    write_file,
)
from thinbox.guest.disks import give_disk
from thinbox.guest.engine_mounts import hide_proc, open_low_ports
from thinbox.guest.pump import Pump, TenantEnds, TenantIo, run_pumps
from thinbox.guest.relay import relay_stdio
from thinbox.guest.setup import SIGCHLD, enter_root, raise_loopback
from thinbox.guest.tenant import (
    Start,
    TenantOptions,
    become_tenant,
    end_tenants,
    find_program,
    identify,
    leave,
    limit_open_files,
    open_pipe,
    open_stdio,
    own_stdio,
)

NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET (include/uapi/linux/sched.h)."""
FIRST_ID, IDS = 100_000, 65_536
"""Tenant number n has user and group ids from FIRST_ID + n * IDS; its own 0 is the first of them."""
_AREAS_AT, _AREA_BYTES = 704 << 10, 4096
"""The scratch of processes 1, between the agent's transfer buffer and the child's part."""
MOST_TENANTS = (CHILD_AREA - _AREAS_AT) // _AREA_BYTES
_PLACE = 2048
_NOSUID_NODEV = 2 | 4
_STOPPED = 0x7F


@dataclass(frozen=True, slots=True)
class TenantPlan:
    """One tenant: `arrived` is called in the context of its process 1, as soon as that runs."""

    name: str
    options: TenantOptions
    io: TenantIo
    arrived: Callable[[], None]
    has_image: bool = False
    """Its root is a container image's, with what engines mount there."""


def first_id(number: int) -> int:
    """Return the first user id of tenant `number`, as the guest's first user namespace counts."""
    return FIRST_ID + number * IDS


def run_tenants_script(agent: AgentChannel, plans: list[TenantPlan]) -> GuestScript:
    """Run all tenants to their ends; each status goes to its `io.wait_status`; then park.

    Raises:
        InputError: too many tenants, or a program that cannot be run.
    """
    if len(plans) > MOST_TENANTS:
        raise InputError(f"there are {len(plans)} tenants; at most {MOST_TENANTS} can run at once")
    yield from enable_controllers()
    pumps = []
    for number, plan in enumerate(plans):
        pumps.append((yield from _start(agent, plan, number)))
    yield from run_pumps(agent, pumps)
    yield from end_tenants(agent, lambda: any(plan.io.has_tasks() for plan in plans))


def _start(agent: AgentChannel, plan: TenantPlan, number: int) -> GuestScript:
    """Start one tenant; return its pump (as a generator's value)."""
    options, identity = yield from identify(agent, plan.options)
    program = yield from find_program(agent, options)
    stdio = yield from open_stdio(agent, None)
    if identity is not None:
        yield from own_stdio(identity, stdio.child, first_id(number))
    stdio = yield from relay_stdio(agent, stdio)
    start = Start(options, program, stdio, identity, is_apart=True)
    (gate_r, gate_w) = yield from open_pipe(agent)
    (started_r, started_w) = yield from open_pipe(agent)
    yield from make_cgroup(plan.name, options.limits, first_id(number))
    if options.disk is not None:
        yield from in_cgroup(plan.name, give_disk(agent, options.disk, options.root, first_id(number)))
    area = _AREAS_AT + number * _AREA_BYTES
    agent.adopt_next_child(_be_process_1(agent, plan, start, (gate_r, agent.scratch + area + _PLACE)), area)
    child = yield from clone_in_cgroup(plan.name, SIGCHLD | NAMESPACES)
    if child < 0:
        raise InputError(f"tenant {plan.name} gets no namespaces of its own on this kernel (errno {-child})")
    for name in ("uid_map", "gid_map"):
        yield from write_file(f"/proc/{child}/{name}", f"0 {first_id(number)} {IDS}")
    if identity is not None:
        # As it needs more than the root of a user namespace.
        yield from limit_open_files(child)
    yield from must("write", gate_w, b"!", 1)
    handle = yield from must("pidfd_open", child, 0)
    for descriptor in (*stdio.child, gate_r, gate_w, started_w):
        yield from must("close", descriptor)
    # Its last copy is closed by the program's execve: behind this, the child's part of the scratch is free.
    yield from must("read", started_r, agent.area() + _PLACE, 1)
    yield from must("close", started_r)
    return Pump(agent, plan.io, TenantEnds(child, handle, stdio.outputs, stdio.stdin))


def _be_process_1(agent: AgentChannel, plan: TenantPlan, start: Start, gate: tuple[int, int]) -> GuestScript:
    plan.arrived()
    descriptor, place = gate
    # Until the agent has written the maps of ids, nobody is anybody here.
    yield from must("read", descriptor, place, 1)
    yield from must("setgroups", 0, 0)
    yield from must("setgid", 0)
    yield from must("setuid", 0)
    yield from must("sethostname", plan.name.encode(), len(plan.name.encode()))
    yield from _mount_own(plan.name, plan.options.root, has_image=plan.has_image)
    yield from raise_loopback()
    agent.adopt_next_child(become_tenant(agent, start, plan.io))
    child = yield from must("clone", SIGCHLD, 0, 0, 0, 0)
    yield from must("close_range", 0, 0xFFFFFFFF, 0)
    while True:
        ended = yield from must("wait4", -1, place, 0, 0)
        status = int.from_bytes(agent.read(place, 4), "little")
        # A child that made its parent its tracer may only have stopped (0x7F).
        if ended == child and status & 0xFF != _STOPPED:
            yield from leave(agent, 128 + (status & 0x7F) if status & 0x7F else status >> 8 & 0xFF)


def _mount_own(name: str, root: str, *, has_image: bool) -> GuestScript:
    yield from must("mount", "proc", f"{root}/proc", "proc", _NOSUID_NODEV | 8, "")
    yield from show_cgroup(name, root, writable=not has_image)
    if has_image:
        # Before /proc/sys is read-only; an image's own /tmp stays.
        yield from open_low_ports(root)
        yield from hide_proc(root)
    for folder in ("/dev/shm",) if has_image else ("/tmp", "/dev/shm"):
        yield from must("mount", "tmpfs", f"{root}{folder}", "tmpfs", _NOSUID_NODEV, "mode=1777")
    yield from enter_root(root)
