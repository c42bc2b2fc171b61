"""The agent's work for a session: give each tenant its root, then start them, alone or apart from each other.

Why it exists: which files are copied where depends on a tenant's options; what starts a process does not.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from thinbox.boot.params import MAXIMUM_MEMORY_MIB
from thinbox.errors import RootfsError
from thinbox.guest.agent_channel import AgentChannel, GuestScript
from thinbox.guest.engine_mounts import mount_engine_view, mount_sys_and_dev
from thinbox.guest.populate import ROOT, populate_root, require_room, share_devices, share_mounts, share_root
from thinbox.guest.rootfs import open_rootfs
from thinbox.guest.tenant import run_tenant
from thinbox.guest.tenants import TenantPlan, first_id, run_tenants_script

if TYPE_CHECKING:
    from thinbox.container.image import ContainerImage
    from thinbox.guest.terminal import Terminal
    from thinbox.session.running_tenant import RunningTenant

Say = Callable[[str], None]

_TASKS_PER_MIB, _FEWEST_TASKS = 4, 32
"""Half of the tasks a kernel allows itself, which is an eighth of memory in stacks of 16 KiB, is shared by tenants."""


def start_alone(
    agent: AgentChannel, tenant: "RunningTenant", terminal: "Terminal | None", memory_mib: int, say: Say
) -> GuestScript:
    """Run one tenant, in the guest's own namespaces, to its end."""
    options = tenant.options
    if options.image is not None:
        yield from _copy_image(agent, options.image, ROOT, 0, memory_mib, say)
        yield from mount_engine_view(ROOT)
    elif options.rootfs is not None:
        say(f"copying {options.rootfs} into the guest")
        yield from populate_root(agent, open_rootfs(options.rootfs))
        yield from share_mounts()
    yield from run_tenant(agent, tenant.guest_options(ROOT if tenant.has_own_root else "/", terminal), tenant.io)


def start_apart(
    agent: AgentChannel,
    tenants: "list[RunningTenant]",
    arrived: Callable[[str], None],
    memory_mib: int,
    say: Say,
) -> GuestScript:
    """Run tenants side by side, each in namespaces of its own, to their ends; `arrived(name)` is called in the
    context of each one's process 1."""
    plans = []
    for number, tenant in enumerate(tenants):
        options = tenant.options
        root = f"/mnt/{tenant.name}"
        if options.image is not None:
            yield from _copy_image(agent, options.image, root, first_id(number), memory_mib, say)
            yield from mount_sys_and_dev(root)
        elif options.rootfs is not None:
            say(f"copying {options.rootfs} into the guest for {tenant.name}")
            yield from populate_root(agent, open_rootfs(options.rootfs), root, first_id(number))
            yield from share_devices(root)
        else:
            yield from share_root(root)
        has_image = options.image is not None
        wanted = tenant.guest_options(root)
        if wanted.limits.tasks is None:
            # The kernel makes so many tasks for all (kernel/fork.c, set_max_threads): none takes the others' share.
            share = max(_FEWEST_TASKS, memory_mib * _TASKS_PER_MIB // len(tenants))
            wanted = replace(wanted, limits=replace(wanted.limits, tasks=share))
        plans.append(TenantPlan(tenant.name, wanted, tenant.io, _told(arrived, tenant), has_image))
    yield from run_tenants_script(agent, plans)


def _told(arrived: Callable[[str], None], tenant: "RunningTenant") -> Callable[[], None]:
    return lambda: arrived(tenant.name)


def _copy_image(
    agent: AgentChannel, image: "ContainerImage", root: str, owner: int, memory_mib: int, say: Say
) -> GuestScript:
    say(f"copying {image.name} into the guest ({image.need_bytes >> 20} MiB)")
    try:
        yield from require_room(agent, image.need_bytes, memory_mib, MAXIMUM_MEMORY_MIB)
        yield from populate_root(agent, image.entries(), root, owner)
    except RootfsError as error:
        raise RootfsError(f"{image.name}: {error}") from error


__all__ = ["start_alone", "start_apart"]
