"""Modules, as the agent loads them: bytes from outside, handed to `init_module`; nothing lies in a file of the guest.

Why it exists: a tenant cannot change what is not there. For what the kernel itself asks for (`request_module` starts
the program of `kernel.modprobe`), that program is the agent's own: the process the kernel starts calls thinbox, which
answers it with the calls that load the module.

Rules of this file:
- A process that the kernel started is answered only if it runs the agent's own code (`AgentChannel.expect`).
- It gets no memory that it shares with the agent, and its calls have numbers for arguments, its own addresses among
  them.

Source: kernel/module/main.c (`init_module`, `load_module`), kernel/module/kmod.c (`call_modprobe`), kernel/umh.c.
"""

import errno
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from thinbox.address import page_align_up
from thinbox.errors import InputError
from thinbox.guest.agent_channel import AgentChannel, GuestScript, call
from thinbox.guest.cgroups import write_file

if TYPE_CHECKING:
    from thinbox.image.modules import LoadOrder, Module

_RW, _PRIVATE_ANON_POPULATE = 3, 0x2 | 0x20 | 0x8000
_MODPROBE = "/proc/sys/kernel/modprobe"
AGENT = "/init"
_REASONS = {
    errno.ENOEXEC: "it was built for another kernel, or is damaged",
    errno.ENOENT: "it needs a symbol that the kernel, or a module before it, does not have",
    errno.EINVAL: "it needs a symbol of another version, or its parameters or relocations are wrong",
    errno.ENOKEY: "it has no signature that the kernel knows, and the kernel takes no other",
    errno.EKEYREJECTED: "its signature is wrong, and the kernel enforces signatures",
    errno.EBADMSG: "its signature is damaged",
    errno.EPERM: "the kernel is locked down, or takes no modules any more",
    errno.ENODEV: "the device it is for is not there",
    errno.ENOMEM: "the guest has no memory for it; use a larger --memory",
    errno.ENOSYS: "this kernel was built without modules",
}
"""What the errors of `init_module` mean (init_module(2), kernel/module/main.c)."""


def load_modules(
    agent: AgentChannel,
    order: "LoadOrder",
    modules: "Iterable[Module]",
    said: Callable[[str], str],
    parameters: Mapping[str, str] | None = None,
) -> GuestScript:
    """Load modules in their order, before any tenant starts; `said(name)` is what the kernel printed of a module,
    `parameters` are those of some, by name.

    Raises:
        InputError: the kernel does not take one that is required, or none of a choice.
    """
    refused: dict[str, int] = {}
    for module in modules:
        result = yield from load_module(agent, module.data, (parameters or {}).get(module.name, ""))
        if result < 0:
            refused[module.name] = -result
            if module.name in order.required:
                raise InputError(
                    f"the kernel does not take module {module.name}: {refusal(-result)}{said(module.name)}"
                )
    for choice in order.choices:
        if all(name in refused for name in choice):
            raise InputError(f"the kernel takes none of {', '.join(choice)}: {refusal(refused[choice[0]])}")


def refusal(number: int) -> str:
    """Return why a module was refused, in words, from the error of `init_module`."""
    reason = _REASONS.get(number, os.strerror(number).lower())
    return f"{reason} ({errno.errorcode.get(number, number)})"


def load_module(agent: AgentChannel, data: bytes, parameters: str = "") -> GuestScript:
    """Load one module; return 0, also if it is loaded already, or a negative errno (as a generator's value)."""
    words = parameters.encode() + b"\0"
    size = page_align_up(len(data) + len(words))
    place = yield from call("mmap", 0, size, _RW, _PRIVATE_ANON_POPULATE, -1, 0)
    if place < 0:
        return place
    if not agent.write_own(place, data + words):
        return -errno.ENOMEM
    result = yield from call("init_module", place, len(data), place + len(data))
    yield from call("munmap", place, size)
    return 0 if result == -errno.EEXIST else result


def answer_requests() -> GuestScript:
    """Let the kernel start the agent's program when it looks for a module."""
    yield from write_file(_MODPROBE, AGENT)


def answer_request(
    agent: AgentChannel, modules: "Callable[[], Iterable[Module]]", report: Callable[[str, int], None]
) -> GuestScript:
    """In a process that the kernel started in modprobe's place: load `modules`, `report` each with 0 or its error, and
    end with the status that modprobe has."""
    status = 1
    for module in modules():
        result = yield from load_module(agent, module.data)
        report(module.name, -min(result, 0))
        status = status if result < 0 else 0
    agent.forget(agent.require_view().current)
    yield from call("exit_group", status)


__all__ = ["AGENT", "answer_request", "answer_requests", "load_module", "load_modules", "refusal"]
