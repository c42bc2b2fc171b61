"""The call graph of a ready guest's kernel, from its live text and data; cached on disk.

Why it exists: building it takes about a second and reads 45 MiB, the same for every run of a guest.
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from thinbox.address import PAGE_BYTES, to_signed
from thinbox.image.cache import cache_dir, read_cached, store_bytes
from thinbox.isolation.callgraph import CallGraph, build_callgraph

if TYPE_CHECKING:
    from thinbox.guest.kernel_view import KernelView
    from thinbox.machine.memory import Memory

GRAPH_VERSION = 3
"""Raise it whenever `build_callgraph` finds other edges, or the layout below changes."""
DISPATCHERS = ("x64_sys_call", "x32_sys_call", "ia32_sys_call")
"""arch/x86/entry/syscall_64.c: the functions that go to a handler by the call's number (since the mitigation of
branch history injection; before it, the handler was called through the table). Nothing else is in them."""
_OTHER_USES = (
    ("sys_call_table", 8 * 1024),
    ("ia32_sys_call_table", 8 * 1024),
    ("x32_sys_call_table", 8 * 1024),
)
"""Tables of handlers, which are called by number, with the most bytes they may have."""
_OTHER_RANGES = (
    ("__start___ksymtab", "__stop___ksymtab"),
    ("__start___ksymtab_gpl", "__stop___ksymtab_gpl"),
    ("__start_kprobe_blacklist", "__stop_kprobe_blacklist"),
    ("__start_error_injection_whitelist", "__stop_error_injection_whitelist"),
    ("__start_mcount_loc", "__stop_mcount_loc"),
)
"""include/asm-generic/vmlinux.lds.h: tables that name functions for other uses than calling them."""
_COUNTS = struct.Struct("<32sII")


def load_live_graph(view: "KernelView", memory: "Memory", entries: tuple[int, ...]) -> CallGraph:
    """Return the call graph of the kernel `view` shows, from the cache if it was built for the same memory."""
    symbols, root = view.symbols, view.kernel_root
    text = memory.read_virtual(root, symbols.text_start, symbols.text_end - symbols.text_start)
    pieces = [piece for piece in _data(view, memory) if piece]
    digest = hashlib.sha256(text)
    for piece in pieces:
        digest.update(piece)
    dispatchers = tuple(vaddr for name in DISPATCHERS for vaddr in symbols.addresses_of(name))
    handlers = tuple(symbols.find(name) or 0 for name in view.facts.sys_call_table)
    path = cache_dir() / "graphs" / f"{digest.hexdigest()}.v{GRAPH_VERSION}.graph"
    starts = symbols.text_starts
    try:
        return _unpack(read_cached(path), starts, entries, dispatchers, handlers)
    except (OSError, ValueError, struct.error):
        pass
    pieces.append(_elsewhere(view, memory))
    graph = build_callgraph(text, symbols.text_start, starts, pieces, entries, dispatchers, handlers)
    store_bytes(path, _pack(graph))
    return graph


def _data(view: "KernelView", memory: "Memory") -> list[bytes]:
    """Return the pieces of the kernel's static memory behind its text, other uses of functions cut out."""
    symbols, root = view.symbols, view.kernel_root
    start, end = (symbols.text_end + PAGE_BYTES - 1) & -PAGE_BYTES, symbols.address_of("_end")
    out = bytearray(end - start)
    for vaddr in range(start, end, PAGE_BYTES):
        try:
            size = min(PAGE_BYTES, end - vaddr)
            out[vaddr - start : vaddr - start + size] = memory.read_virtual(root, vaddr, size)
        except LookupError:
            continue
    for first, last in _other_uses(view):
        if start <= first < last <= end:
            out[first - start : last - start] = bytes(last - first)
    return [bytes(out)]


def _elsewhere(view: "KernelView", memory: "Memory") -> bytes:
    """Return what lies in RAM besides the kernel's own image.

    Code that ran once at boot, and is gone, left pointers there that stand nowhere else: constructors of slab
    caches, handlers of protocols. A stale pointer adds a function, no pointer in use is missed.
    """
    symbols, root = view.symbols, view.kernel_root
    own = set()
    for vaddr in range(symbols.text_start, symbols.address_of("_end"), PAGE_BYTES):
        paddr = memory.tables.translate(root, to_signed(vaddr))
        if paddr >= 0:
            own.add(paddr // PAGE_BYTES)
    own |= _ftrace_frames(view, memory)
    kept = [page for page in memory.used_pages().tolist() if page not in own]
    words = memory.words.pages[kept]
    # Only what can point into the text is handed on; the rest of a guest's memory is long.
    start, end = to_signed(symbols.text_start), to_signed(symbols.text_end)
    return words[(words >= start) & (words < end)].tobytes()


def _ftrace_frames(view: "KernelView", memory: "Memory") -> set[int]:
    """Return the frames that hold the list of every traceable function (kernel/trace/ftrace.c, struct ftrace_page)."""
    symbols, types, root = view.symbols, view.facts.types, view.kernel_root
    head = symbols.find("ftrace_pages_start")
    if head is None:
        return set()
    next_at, records_at = types.offset_of("ftrace_page", "next"), types.offset_of("ftrace_page", "records")
    count_at, size = types.offset_of("ftrace_page", "index"), types.size_of("dyn_ftrace")
    found = set()
    group = view.read_u64(head, root)
    while group:
        start = view.read_u64(group + records_at, root)
        size_bytes = size * view.read_u32(group + count_at, root)
        found |= {paddr // PAGE_BYTES for paddr, _count in memory.spans(root, start, size_bytes)}
        group = view.read_u64(group + next_at, root)
    return found


def _other_uses(view: "KernelView") -> list[tuple[int, int]]:
    symbols = view.symbols
    found = []
    for name, most_bytes in _OTHER_USES:
        start = symbols.find(name)
        if start is not None:
            behind = symbols.starts[symbols.starts > start]
            found.append((int(start), min(int(behind[0]), start + most_bytes)))
    for first, last in _OTHER_RANGES:
        start, end = symbols.find(first), symbols.find(last)
        if start is not None and end is not None:
            found.append((int(start), int(end)))
    return found


def _pack(graph: CallGraph) -> bytes:
    arrays = b"".join(array.astype(np.int32).tobytes() for array in (graph.froms, graph.tos, graph.taken))
    return _COUNTS.pack(hashlib.sha256(arrays).digest(), len(graph.froms), len(graph.taken)) + arrays


def _unpack(
    raw: bytes,
    starts: Sequence[int],
    entries: tuple[int, ...],
    dispatchers: tuple[int, ...],
    handlers: tuple[int, ...],
) -> CallGraph:
    digest, edges, taken = _COUNTS.unpack_from(raw)
    body = raw[_COUNTS.size :]
    if hashlib.sha256(body).digest() != digest or len(body) != 4 * (2 * edges + taken):
        raise ValueError("damaged")
    values = np.frombuffer(body, np.int32)
    places = np.array(starts, np.uint64)
    return CallGraph(
        places, values[:edges], values[edges : 2 * edges], values[2 * edges :], entries, dispatchers, handlers
    )
