"""Reads what policy `guard` compares: the running task's ids and capabilities, and the paths of the kernel's helpers.

Rules of this file: read by the kernel's own types and symbols, through the kernel's own table; a kernel that lacks one
of the paths has one object less.
"""

from typing import TYPE_CHECKING

from thinbox.address import U64, to_signed
from thinbox.errors import MachineError
from thinbox.isolation.policies.guard import ProtectedObject

if TYPE_CHECKING:
    from thinbox.guest.kernel_view import KernelView
    from thinbox.machine.memory import Memory

HELPERS = {"modprobe_path": 256, "poweroff_cmd": 256, "core_pattern": 128, "uevent_helper": 256}
"""Paths of programs that run as root, and their sizes: kernel/module/kmod.c (KMOD_PATH_LEN), kernel/reboot.c
(POWEROFF_CMD_PATH_LEN), fs/coredump.c (CORENAME_MAX_SIZE), lib/kobject_uevent.c (UEVENT_HELPER_PATH_LEN)."""
_PATH_BYTES = 256
"""Longer than any path the kernel starts; a longer one is none of them."""
_FIRST, _LAST = "uid", "cap_ambient"


class ProtectedObjectReader:
    """Reads the guarded objects of one machine."""

    def __init__(self, view: "KernelView", memory: "Memory") -> None:
        self._view, self._memory = view, memory
        types, symbols = view.facts.types, view.symbols
        self._cred_at = types.offset_of("task_struct", "cred")
        self._first = types.offset_of("cred", _FIRST)
        self._bytes = types.offset_of("cred", _LAST) + types.member_size("cred", _LAST) - self._first
        self._program_at = types.offset_of("subprocess_info", "path")
        self._paths = [(vaddr, size) for name, size in HELPERS.items() if (vaddr := symbols.find(name)) is not None]

    def read(self, task: int, root: int) -> tuple[ProtectedObject, ...]:
        """Return the objects as they are; `root` is the kernel's table."""
        identity = self._view.read_u64(task + self._cred_at, root) + self._first
        read = self._memory.read_virtual
        try:
            content = read(root, to_signed(identity & U64), self._bytes)
        except (LookupError, MachineError):
            # A forged pointer: nobody's ids, and so changed ones.
            content = b""
        found = [ProtectedObject(identity & U64, content, is_identity=True)]
        found += [
            ProtectedObject(vaddr, read(root, to_signed(vaddr), size).partition(b"\0")[0], is_identity=False)
            for vaddr, size in self._paths
        ]
        return tuple(found)

    def read_program(self, info: int, root: int) -> tuple[int, bytes]:
        """Return the address and the bytes of the path in a `struct subprocess_info` (include/linux/umh.h)."""
        try:
            raw = self._memory.read_virtual(root, to_signed((info + self._program_at) & U64), 8)
            place = int.from_bytes(raw, "little")
        except (LookupError, MachineError):
            return 0, b""
        try:
            return place, self._memory.read_virtual(root, to_signed(place), _PATH_BYTES).partition(b"\0")[0]
        except (LookupError, MachineError):
            return place, b""
