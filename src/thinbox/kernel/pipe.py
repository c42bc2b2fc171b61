"""Pipes: the functions that read and write them, and where what waits in one lies.

Shapes, newest first:
- `anon_pipe_read` and `anon_pipe_write` for pipes without a name (6.16, "pipe: Split anonymous and named pipes"
  in fs/pipe.c); before, `pipe_read` and `pipe_write` for all.
- `pipe_inode_info.tail` and `ring_size` (5.5, "pipe: Use head and tail pointers for the ring, not cursor and length").

Source: fs/pipe.c, include/linux/pipe_fs_i.h.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "attacks that begin in a read or write of a pipe cannot be tried"
READS, WRITES = ("anon_pipe_read", "pipe_read"), ("anon_pipe_write", "pipe_write")


@dataclass(frozen=True, slots=True)
class PipeShape:
    """The names of the functions, and offsets in `struct pipe_inode_info`."""

    read: str
    write: str
    tail_at: int
    ring_size_at: int
    buffers_at: int


def probe_pipe(probe: Probe) -> PipeShape:
    """Find it; what is missing is noted in `probe`."""
    probe.symbol(*READS)
    probe.symbol(*WRITES)
    return PipeShape(
        read=next(filter(probe.has_symbol, READS), READS[0]),
        write=next(filter(probe.has_symbol, WRITES), WRITES[0]),
        tail_at=probe.offset("pipe_inode_info.tail"),
        ring_size_at=probe.offset("pipe_inode_info.ring_size"),
        buffers_at=probe.offset("pipe_inode_info.bufs"),
    )


def find_pipe(facts: "KernelFacts") -> PipeShape:
    """Return it; `MissingFactError` if this kernel keeps pipes in another way."""
    probe = Probe(facts, "pipes", DISABLES)
    found = probe_pipe(probe)
    probe.check()
    return found
