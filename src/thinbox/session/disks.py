"""The disks of a session's tenants: what they need is loaded and looked at before any of them starts."""

from dataclasses import replace
from typing import TYPE_CHECKING

from thinbox.guest.agent_channel import AgentChannel, GuestScript, call
from thinbox.guest.disks import DRIVER, FOLDER, Disk, driver_parameters, require_memory

if TYPE_CHECKING:
    from collections.abc import Iterable

    from thinbox.session.modules import SessionModules
    from thinbox.session.running_tenant import RunningTenant


def prepare_disks(
    agent: AgentChannel, tenants: "Iterable[RunningTenant]", modules: "SessionModules", memory_mib: int
) -> GuestScript:
    """Load what the tenants' disks need, number them, and make the folder in the guest's own root, which tenants with
    no root of their own share for reading.

    Raises:
        InputError: they do not fit, or the kernel has no driver for them.
    """
    disks: list[Disk] = []
    for tenant in tenants:
        if tenant.disk is not None:
            tenant.disk = replace(tenant.disk, number=len(disks))
            disks.append(tenant.disk)
    if disks:
        yield from require_memory(agent, disks, memory_mib)
        # Before all else: a driver that is loaded already keeps the sizes it has.
        yield from modules.load((DRIVER, *sorted({disk.kind for disk in disks})), {DRIVER: driver_parameters(disks)})
        yield from call("mkdir", FOLDER, 0o755)


__all__ = ["prepare_disks"]
