"""A guest that is open: machine, kernel, agent and, with its tenants, the enforcer, made from a snapshot.

Why it exists: a run, an audit and an attack begin alike; how is written here once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from thinbox.enforcement.enforcer import Enforcer
from thinbox.guest.agent_channel import AgentChannel
from thinbox.guest.kernel_view import KernelView
from thinbox.guest.sites import Sites
from thinbox.machine.machine import Machine
from thinbox.machine.snapshot import restore_snapshot

if TYPE_CHECKING:
    from thinbox.boot.ready import ReadyGuest
    from thinbox.enforcement.tenants import Isolation
    from thinbox.records.run import RunRecord


class SavedGuest(Protocol):
    """A guest frozen later than at its snapshot: a handle of its RAM (`Memory.freeze`), and the rest of its state."""

    @property
    def ram(self) -> int: ...
    @property
    def cpu(self) -> bytes: ...
    @property
    def devices(self) -> dict[str, Any]: ...
    @property
    def agent(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class RestoredGuest:
    """A guest that stands where it was saved, its agent waiting for work; nobody watches it yet."""

    machine: Machine
    view: KernelView
    agent: AgentChannel
    sites: Sites

    def watch(self, tenants: "Sequence[tuple[Isolation, RunRecord]]") -> "OpenedGuest":
        """Enforce for these tenants; the tables are made for undo if one of them wants it.

        Raises:
            InputError: two tenants have one name, or a view does not exist.
        """
        undo = any(isolation.on_violation == "undo" for isolation, _record in tenants)
        enforcer = Enforcer(self.machine, self.view, self.sites, undo=undo)
        for isolation, record in tenants:
            enforcer.add_tenant(isolation, record)
        return OpenedGuest(self.machine, self.view, self.agent, self.sites, enforcer)


@dataclass(frozen=True, slots=True)
class OpenedGuest:
    """A guest that stands where it was saved, with the enforcer that watches its tenants."""

    machine: Machine
    view: KernelView
    agent: AgentChannel
    sites: Sites
    enforcer: Enforcer


def restore_guest(guest: "ReadyGuest", saved: SavedGuest | None = None) -> RestoredGuest:
    """Restore `guest` into a machine of its own: as its snapshot has it, or as it was `saved` later.

    Raises:
        MachineError: the machine cannot be made, or the running kernel is not that of the facts.
    """
    machine = Machine(guest.params.memory_mib, guest.params.cpu)
    if saved is None:
        restore_snapshot(machine, guest.snapshot)
    else:
        machine.memory.attach(saved.ram)
        machine.cpu.restore(saved.cpu)
        machine.restore_devices(saved.devices)
    view = KernelView(machine, guest.facts)
    agent = AgentChannel(machine)
    agent.restore(guest.snapshot.notes["agent"] if saved is None else saved.agent, view)
    sites = Sites.from_json(guest.snapshot.notes["sites"])
    machine.data_breakpoints.follow(sites.dr7_written)
    return RestoredGuest(machine, view, agent, sites)


def open_guest(
    guest: "ReadyGuest", isolation: "Isolation", record: "RunRecord", saved: SavedGuest | None = None
) -> OpenedGuest:
    """Restore `guest` and enforce for one tenant; raises as `restore_guest` and `RestoredGuest.watch`."""
    return restore_guest(guest, saved).watch([(isolation, record)])


__all__ = ["OpenedGuest", "RestoredGuest", "SavedGuest", "open_guest", "restore_guest"]
