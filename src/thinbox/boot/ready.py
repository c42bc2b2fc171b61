"""Kernel in, waiting guest out: from the cache if it is there, by booting if not.

Why it exists: this is where image, initramfs, machine, boot and snapshot meet; commands and the Python API
start here.
"""

import contextlib
import hashlib
import importlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from thinbox import __version__
from thinbox.boot.params import BootParams
from thinbox.errors import CacheError

if TYPE_CHECKING:
    from thinbox.image.companions import KernelSpec
    from thinbox.image.facts import KernelFacts
    from thinbox.image.source import KernelFile
    from thinbox.machine.snapshot import Snapshot

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ReadyGuest:
    """A guest that waits for a tenant: its snapshot, and the facts of its kernel, where KASLR put it; `kernel` is the
    file that the kernel was found in, for what lies beside it."""

    facts: "KernelFacts"
    snapshot: "Snapshot"
    params: BootParams
    from_cache: bool
    console: str
    initramfs_sha256: str = ""
    kernel: "KernelFile | None" = None


def prepare(
    kernel: "str | KernelSpec | None" = None,
    params: BootParams | None = None,
    progress: Progress | None = None,
    *,
    rebuild: bool = False,
) -> ReadyGuest:
    """Return a ready guest for `kernel` (None: Debian's newest cloud kernel; a path, a .deb or a release).

    Raises `KernelImageError`, `SourceError`, `BootError`.
    """
    from thinbox.image.cache import cache_dir, lock
    from thinbox.image.facts import load_facts
    from thinbox.image.source import resolve_kernel

    params = params or BootParams()
    say = progress or (lambda _line: None)
    threading.Thread(target=_import_machine, daemon=True).start()
    file = resolve_kernel(kernel, say)
    image, facts = load_facts(file, say)
    from thinbox.guest.initramfs import build_initramfs, fetch_busybox

    initramfs = build_initramfs(fetch_busybox(say))
    say("loading the machine (the first time, its hooks are compiled: about 10 s)")
    key = _key(facts.sha256, initramfs, params)
    path = cache_dir() / "snapshots" / f"{key}.snapshot"
    found = None if rebuild else _load(path, say)
    if found is not None:
        return replace(_ready(facts, found, params, initramfs, from_cache=True), kernel=file)
    with lock(f"snapshot-{key}"):
        found = None if rebuild else _load(path, lambda _line: None)
        if found is not None:
            return replace(_ready(facts, found, params, initramfs, from_cache=True), kernel=file)
        snapshot = _boot(image, facts, initramfs, params, say)
        try:
            _store(path, snapshot)
        except CacheError as error:
            say(f"warning: {error}")
    return replace(_ready(facts, snapshot, params, initramfs, from_cache=False), kernel=file)


def _ready(
    facts: "KernelFacts", snapshot: "Snapshot", params: BootParams, initramfs: bytes, *, from_cache: bool
) -> ReadyGuest:
    notes = snapshot.notes
    return ReadyGuest(
        facts.slid(notes["slide"]),
        snapshot,
        params,
        from_cache=from_cache,
        console=notes["console"],
        initramfs_sha256=hashlib.sha256(initramfs).hexdigest(),
    )


def _import_machine() -> None:
    """Import the machine while the kernel's file is read and its hash is worked out, which need no interpreter."""
    # What fails here fails once more, and is reported, where it is needed.
    with contextlib.suppress(Exception):
        importlib.import_module("thinbox.boot.sequence")
        importlib.import_module("thinbox.machine.machine")


def _key(sha256: str, initramfs: bytes, params: BootParams) -> str:
    import unicorn

    parts = (
        __version__,
        _source_hash(),
        unicorn.__version__,
        sha256,
        hashlib.sha256(initramfs).hexdigest(),
        repr(params),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _source_hash() -> str:
    """Return a hash of the source that shapes a snapshot, so that a changed boot is never taken from the cache."""
    package = Path(__file__).parent.parent
    found = hashlib.sha256()
    for room in ("boot", "guest", "machine"):
        for path in sorted((package / room).rglob("*.py")):
            found.update(path.read_bytes())

    return found.hexdigest()


def _load(path: Path, say: Progress) -> "Snapshot | None":
    from thinbox.image.cache import read_cached
    from thinbox.machine.snapshot import SnapshotError, unpack_snapshot

    try:
        data = read_cached(path)
    except OSError:
        return None
    try:
        return unpack_snapshot(data)
    except SnapshotError as error:
        say(f"the cached snapshot cannot be used ({error}); booting again")
        return None


def _store(path: Path, snapshot: "Snapshot") -> None:
    from thinbox.image.cache import make_folder, store_bytes
    from thinbox.machine.snapshot import pack_snapshot

    make_folder(path.parent)
    store_bytes(path, pack_snapshot(snapshot))


def _boot(image: object, facts: "KernelFacts", initramfs: bytes, params: BootParams, say: Progress) -> "Snapshot":
    from thinbox.boot.sequence import boot
    from thinbox.guest.sites import find_sites
    from thinbox.machine.machine import Machine
    from thinbox.machine.snapshot import take_snapshot

    say(f"booting Linux {facts.release}")
    machine = Machine(params.memory_mib, params.cpu)
    agent = boot(machine, image, facts, initramfs, params, say)  # type: ignore[arg-type]
    view = agent.require_view()
    notes = {
        "sites": find_sites(view, machine.memory).to_json(),
        "agent": agent.save(),
        "pti": view.uses_pti,
        "slide": view.facts.slide,
        "console": machine.console.decode(errors="replace"),
    }
    return take_snapshot(machine, notes)
