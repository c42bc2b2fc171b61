"""An io_uring as a case sees it: its queues mapped, entries written, ends read.

Why it exists: the queues are shared memory with offsets that io_uring_setup tells; the cases should say what is
asked for, not where the words lie.

Rules of this file:
- Entries go to the queue in order; `enter` is what a case measures, so it is not made here.
- Layouts: include/uapi/linux/io_uring.h of Linux 6.1.
"""

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.audit.files import MAP_SHARED, PROT_RW
from thinbox.harness.process import Steps

if TYPE_CHECKING:
    from thinbox.audit.case_process import Process

PARAMS_BYTES, ENTRY_BYTES, END_BYTES = 120, 64, 16
NOP, READV, WRITEV, FSYNC, READ_FIXED, WRITE_FIXED, POLL_ADD = 0, 1, 2, 3, 4, 5, 6
TIMEOUT, ACCEPT, ASYNC_CANCEL, OPENAT, CLOSE, STATX, READ, WRITE = 11, 13, 14, 18, 19, 21, 22, 23
SEND, RECV, OPENAT2, SPLICE, TEE, SHUTDOWN, RENAMEAT, UNLINKAT, MKDIRAT = 26, 27, 28, 30, 33, 34, 35, 36, 37
GETEVENTS = 1
FORCE_ASYNC, LINK = 16, 4
_SQ_RING, _CQ_RING, _ENTRIES = 0, 0x8000000, 0x10000000
_POPULATED = MAP_SHARED | 0x8000


@dataclass(slots=True)
class Ring:
    """A ring of 8 entries, mapped and populated."""

    process: "Process"
    handle: int
    queue: int
    ends: int
    entries: int
    tail_at: int
    array_at: int
    end_head_at: int
    end_tail_at: int
    ends_at: int
    added: int = 0
    taken: int = 0

    def take(self) -> int:
        """Return how many entries were added since the last `take`: what the next io_uring_enter submits."""
        count, self.taken = self.added - self.taken, self.added
        return count

    def add(
        self,
        operation: int,
        handle: int = -1,
        place: int = 0,
        size: int = 0,
        offset: int = 0,
        *,
        flags: int = 0,
        operation_flags: int = 0,
        data: int = 0x55,
    ) -> None:
        """Append an entry to the submission queue."""
        entry = struct.pack("<BBHiQQII", operation, flags, 0, handle, offset, place, size, operation_flags)
        entry += struct.pack("<QHHiQQ", data, 0, 0, 0, 0, 0)
        self.process.write(self.entries + self.added * ENTRY_BYTES, entry)
        self.process.write(self.queue + self.array_at + 4 * self.added, struct.pack("<I", self.added))
        self.added += 1
        self.process.write(self.queue + self.tail_at, struct.pack("<I", self.added))

    def results(self) -> list[tuple[int, int]]:
        """Return (data, result) of what has ended, in order, and compare it between the runs."""
        head = self.process.read_int(self.ends + self.end_head_at)
        tail = self.process.read_int(self.ends + self.end_tail_at)
        found = []
        for number in range(head, tail):
            data, result, _flags = struct.unpack(
                "<QiI", self.process.read(self.ends + self.ends_at + (number & 15) * END_BYTES, END_BYTES)
            )
            found.append((data, result))
        self.process.write(self.ends + self.end_head_at, struct.pack("<I", tail))
        self.process.compare(found)
        return found


def open_ring(process: "Process", flags: int = 0) -> Steps:
    """Set up a ring and map it; its value is a `Ring`."""
    params = process.buffer(struct.pack("<III", 0, 0, flags) + bytes(PARAMS_BYTES - 12))
    handle = yield from process.must("io_uring_setup", 8, params)
    words = struct.unpack("<30I", process.read(params, PARAMS_BYTES))
    # io_uring_params: 10 words, then io_sqring_offsets and io_cqring_offsets of 10 words each.
    submit, complete = words[10:20], words[20:30]
    queue_bytes = submit[6] + words[0] * 4
    ends_bytes = complete[5] + words[1] * END_BYTES
    maps = []
    for size, at in ((queue_bytes, _SQ_RING), (ends_bytes, _CQ_RING), (words[0] * ENTRY_BYTES, _ENTRIES)):
        maps.append((yield from process.must("mmap", 0, size, PROT_RW, _POPULATED, handle, at)))
    return Ring(process, handle, maps[0], maps[1], maps[2], submit[1], submit[6], complete[0], complete[1], complete[5])
