"""Programs that the kernel starts as root: the paths it keeps of them, and the path of one that it is about to start.

One shape is known, of Linux 5.10 to 7.3: arrays of characters with symbols of their own, and `subprocess_info.path`. A
kernel that lacks one of the arrays has one path less.

Source: kernel/module/kmod.c (`modprobe_path`, KMOD_PATH_LEN), kernel/reboot.c (`poweroff_cmd`, POWEROFF_CMD_PATH_LEN),
fs/coredump.c (`core_pattern`, CORENAME_MAX_SIZE), lib/kobject_uevent.c (`uevent_helper`, UEVENT_HELPER_PATH_LEN),
include/linux/umh.h (`struct subprocess_info`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "policy guard cannot see what the kernel starts as root"
_PATHS = {"modprobe_path": 256, "poweroff_cmd": 256, "core_pattern": 128, "uevent_helper": 256}
"""Sizes in bytes."""


@dataclass(frozen=True, slots=True)
class UsermodeHelpers:
    """The bytes of each array, by its address, and where a `struct subprocess_info` points to its path."""

    paths: dict[int, int]
    path_at: int


def probe_usermode_helpers(probe: Probe) -> UsermodeHelpers:
    """Find them; what is missing is noted in `probe`."""
    return UsermodeHelpers(
        paths={probe.symbol(name): size for name, size in _PATHS.items() if probe.has_symbol(name)},
        path_at=probe.offset("subprocess_info.path"),
    )


def find_usermode_helpers(facts: "KernelFacts") -> UsermodeHelpers:
    """Return them; `MissingFactError` if this kernel names such programs in another way."""
    probe = Probe(facts, "programs that the kernel starts", DISABLES)
    found = probe_usermode_helpers(probe)
    probe.check()
    return found
