"""What SCI asks of the CPU: onto a table and off it, grants, and what of a table's entries a view allows.

Why it exists: the CPU speaks of registers, hooks and stops; this is the part that a kernel with SCI would have added.

Rules of this file: each method is one compiled hook (`hooks`, `view_hooks`), called with the CPU's handle and the array
of `slots`.
"""

import ctypes
from typing import TYPE_CHECKING

import numpy as np

from thinbox.address import to_signed
from thinbox.machine.native import hook_address

if TYPE_CHECKING:
    from thinbox.machine.cpu import Cpu


class SciUnit:
    """The SCI part of one CPU."""

    def __init__(self, cpu: "Cpu") -> None:
        self._where = (cpu.handle, cpu.core.ctypes.data)
        self._call_enter = cpu.exported(hook_address("enter_table"), None, 0)
        self._call_leave = cpu.exported(hook_address("leave_table"), None, 0)
        self._call_aside = cpu.exported(hook_address("leave_for_deferred_work"), None, 0)
        self._call_prefault = cpu.exported(hook_address("prefault"), None, 2)
        self._call_grant = cpu.exported(hook_address("grant_page"), ctypes.c_int64, 3)
        self._call_drop = cpu.exported(hook_address("drop_unseen"), ctypes.c_int64, 3)
        self._call_touched = cpu.exported(hook_address("touched_tables"), ctypes.c_int64, 3)
        self._found = np.zeros((0, 2), dtype=np.int64)
        self._call_plain = cpu.exported(hook_address("drop_plain"), ctypes.c_int64, 3)

    def enter_table(self) -> None:
        """Switch to the SCI table `slots.SCI_ROOT`."""
        self._call_enter(*self._where)

    def leave_table(self) -> None:
        """Switch back to the kernel's table."""
        self._call_leave(*self._where)

    def leave_for_deferred_work(self) -> None:
        """Leave the SCI table in the middle of a call, for work that is not its own (`enforcement.deferred_work`)."""
        self._call_aside(*self._where)

    def grant_page(self, vaddr: int, error: int, rip: int) -> int:
        """Grant one page on the current SCI table; return what `isolation.fault.grant` returns."""
        return self._call_grant(*self._where, to_signed(vaddr), error, to_signed(rip))

    def drop_unseen(self, rows: np.ndarray, kernel_root: int) -> int:
        """Take back the data grants of log rows (n, `fault.LOG_COLUMNS`) that the view no longer plainly allows.

        Preconditions: `slots.VIEW` is that of the rows' call, `kernel_root` its kernel table. Translations are not
        flushed. Returns how many.
        """
        kept = np.ascontiguousarray(rows)
        at = int(kept.ctypes.data)
        return self._call_drop(*self._where, at, len(kept), kernel_root)

    def touched_tables(self, frames: np.ndarray, roots: np.ndarray, *, pti: bool, most: int) -> np.ndarray:
        """Return (n, 2), frame and level (`isolation.mappings`) of the tables below `roots` that are among `frames`.

        `frames` ascend; n is `most` + 1 if there are more than `most`; the last row says nothing.
        """
        if len(self._found) <= most:
            self._found = np.zeros((most + 1, 2), dtype=np.int64)
        out = self._found
        sought = np.array([len(frames), frames.ctypes.data, len(roots), roots.ctypes.data, int(pti)], dtype=np.int64)
        found = self._call_touched(*self._where, int(sought.ctypes.data), int(out.ctypes.data), most)
        return out[:found].copy()

    def drop_plain(self, entries: np.ndarray, tenant: int) -> int:
        """Zero the page-table entries that map nothing, or plainly what the running call's view allows, or what the
        tenant with this number is known to be allowed; return how many are left (`view_hooks.drop_plain`)."""
        at = int(entries.ctypes.data)
        return self._call_plain(*self._where, at, len(entries), tenant)

    def prefault(self, pages: int, count: int) -> None:
        """Map `count` pages of the list at host address `pages` (see `hooks.prefault`) on the current SCI table."""
        self._call_prefault(*self._where, pages, count)
