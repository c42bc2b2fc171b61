"""All gadgets of a kernel: scanned in several processes once, from the cache afterwards.

Why it exists: live text of 16 MB takes ROPgadget half a minute; pieces of it are independent of one
another, so processes share them, and the result does not depend on how many there are.

Rules of this file: pieces are cut the same whatever `jobs` says; workers are forked, so that a user's script needs
no `if __name__ == "__main__"`, and touch nothing of the machine they inherit.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from thinbox.errors import CacheError, MachineError
from thinbox.surface.gadget_set import GadgetSet
from thinbox.surface.live_kernel import LiveKernel, read_live_kernel
from thinbox.surface.scan import TAIL_BYTES, Found, GadgetKind, Piece, scan_piece

if TYPE_CHECKING:
    from thinbox.boot.ready import ReadyGuest
    from thinbox.image.symbols import SymbolTable

Progress = Callable[[str], None]

PIECE_BYTES = 64 << 10
"""About 0.1 s of work: a few hundred pieces for a kernel, so that progress moves and jobs end together."""
_MIB = 1 << 20
_INDIRECT_THUNK = re.compile(r"__x86_indirect_(its_|call_|jump_)?thunk_r\w+")
_RETURN_THUNK = re.compile(r"(__x86|zen|srso|srso_alias|retbleed|its|call_depth)_return_thunk")
"""arch/x86/lib/retpoline.S, 5.17 to 6.16."""


def load_gadgets(guest: "ReadyGuest", say: Progress | None = None, jobs: int | None = None) -> GadgetSet:
    """Return the gadgets of the kernel of `guest` as it stands ready.

    `say` is told what goes on; `jobs` processes scan (None: one for each CPU).

    Raises:
        MachineError: a worker died.
    """
    from thinbox.guest.kernel_view import KernelView
    from thinbox.machine.machine import Machine
    from thinbox.machine.snapshot import restore_snapshot

    machine = Machine(guest.params.memory_mib, guest.params.cpu)
    restore_snapshot(machine, guest.snapshot)
    view = KernelView(machine, guest.facts)
    kernel = read_live_kernel(machine.memory, view.kernel_root)
    return gadgets_of(kernel, view.symbols, guest.facts.sha256, say, jobs)


def gadgets_of(
    kernel: LiveKernel,
    symbols: "SymbolTable",
    kernel_sha256: str,
    say: Progress | None = None,
    jobs: int | None = None,
) -> GadgetSet:
    """Return the gadgets of `kernel`, from the cache if they are there and undamaged; see `load_gadgets`."""
    from thinbox.image.cache import lock
    from thinbox.surface.gadget_file import gadgets_path, read_gadgets, write_gadgets

    say = say or (lambda _line: None)
    text_hash = kernel.text_hash
    thunks = find_thunks(symbols)
    spans = tuple((region.start, region.end) for region in kernel.regions)
    path = gadgets_path(kernel_sha256, _key(text_hash, thunks))
    cached = read_gadgets(path, text_hash, spans)
    if cached is not None:
        return cached
    with lock(f"gadgets-{path.stem}"):
        cached = read_gadgets(path, text_hash, spans)  # another process may have just built it
        if cached is not None:
            return cached
        gadgets = GadgetSet(find_gadgets(kernel, thunks, say, jobs), spans, text_hash)
        try:
            write_gadgets(path, gadgets)
        except CacheError as error:
            say(f"warning: {error}")
    return gadgets


def _key(text_hash: str, thunks: dict[int, GadgetKind]) -> str:
    """What the result depends on: the text, what counts as a thunk, and the libraries that decide."""
    from importlib.metadata import version

    parts = (text_hash, repr(sorted(thunks.items())), version("ropgadget"), version("capstone"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def find_thunks(symbols: "SymbolTable") -> dict[int, GadgetKind]:
    """Return the address of each thunk, and what a jump to it comes to."""
    found = {}
    for vaddr, _letter, name in symbols:
        if symbols.is_text(vaddr):
            if _INDIRECT_THUNK.fullmatch(name):
                found[int(vaddr)] = GadgetKind.JUMP
            elif _RETURN_THUNK.fullmatch(name):
                found[int(vaddr)] = GadgetKind.RETURN
    return found


def find_gadgets(
    kernel: LiveKernel, thunks: dict[int, GadgetKind], say: Progress | None = None, jobs: int | None = None
) -> Found:
    """Scan all executable memory of `kernel`; the cache is not asked. See `load_gadgets`."""
    say = say or (lambda _line: None)
    pieces = list(_cut(kernel))
    jobs = max(1, min(jobs or len(os.sched_getaffinity(0)), len(pieces)))
    total = sum(len(piece.code) for piece in pieces)
    done, told, out = 0, -1, []
    for piece, found in zip(pieces, _scan_all(pieces, thunks, jobs), strict=True):
        out.append(found)
        done += len(piece.code)
        if done * 10 // total != told:
            told = done * 10 // total
            say(f"looking for gadgets in {total / _MIB:.0f} MiB of live text: {10 * told} %")
    if not out:
        return Found(np.zeros(0, np.uint64), np.zeros(0, np.uint8), np.zeros(0, np.uint8))
    return Found(
        np.concatenate([found.starts for found in out]),
        np.concatenate([found.lengths for found in out]),
        np.concatenate([found.kinds for found in out]),
    )


def _cut(kernel: LiveKernel) -> Iterator[Piece]:
    """Yield the pieces of all regions, ascending."""
    for region in kernel.regions:
        for at in range(0, len(region.data), PIECE_BYTES):
            end = at + PIECE_BYTES
            yield Piece(region.start + at, region.data[at:end], region.data[end : end + TAIL_BYTES])


def _scan_all(pieces: list[Piece], thunks: dict[int, GadgetKind], jobs: int) -> Iterator[Found]:
    """Yield what was found in each piece, in order."""
    if jobs == 1:
        for piece in pieces:
            yield scan_piece(piece, thunks)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    fork = multiprocessing.get_context("fork")
    # The workers have the pieces from the fork. Sent to them, a piece would not fit into the pipe, and Python before
    # 3.12 waits for ever where a worker dies meanwhile (CPython issue 94777).
    with ProcessPoolExecutor(jobs, mp_context=fork, initializer=_take_work, initargs=(pieces, thunks)) as pool:
        try:
            yield from pool.map(_scan_one, range(len(pieces)))
        except BrokenProcessPool as error:
            raise MachineError("a process that looked for gadgets died; is there enough memory?") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_work: tuple[list[Piece], dict[int, GadgetKind]] = ([], {})
"""In a worker: what there is to do."""


def _take_work(pieces: list[Piece], thunks: dict[int, GadgetKind]) -> None:
    global _work  # noqa: PLW0603 - a worker's, which does nothing else
    _ignore_interrupts()
    _work = (pieces, thunks)


def _scan_one(number: int) -> Found:
    pieces, thunks = _work
    return scan_piece(pieces[number], thunks)


def _ignore_interrupts() -> None:
    """Ctrl-C is the parent's business: it ends the pool."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
