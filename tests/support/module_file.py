"""Kernel modules for tests that load none: object files that say of themselves what a module does."""

import struct

from thinbox.image.module_file import ModuleInfo

RELEASE = "6.1.0-test"


def build_module_file(info: ModuleInfo) -> bytes:
    """Return an object file with `.modinfo` alone, as scripts/mod/modpost.c writes it."""
    words = [
        f"name={info.name}",
        f"vermagic={info.release} SMP preempt mod_unload",
        f"depends={','.join(info.depends)}",
    ]
    words += [f"alias={alias}" for alias in info.aliases]
    if info.before or info.after:
        words.append(f"softdep=pre: {' '.join(info.before)} post: {' '.join(info.after)}")
    content = b"".join(word.encode() + b"\0" for word in words)
    names = b"\0.modinfo\0.shstrtab\0"
    sections = [(0, 0, b""), (1, 1, content), (10, 3, names)]
    body, headers, at = b"", b"", 64
    for name, kind, data in sections:
        headers += struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, at + len(body), len(data), 0, 0, 1, 0)
        body += data
    start = at + len(body)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01" + bytes(9), 1, 62, 1, 0, 0, start, 0, 64, 0, 0, 64, len(sections), 2
    )
    return header + body + headers + (b"~Module signature appended~\n" if info.signed else b"")


def module(name: str, *depends: str, **more: object) -> ModuleInfo:
    """Return what a module of `RELEASE` says of itself."""
    return ModuleInfo(**{"name": name, "release": RELEASE, "depends": depends} | more)  # type: ignore[arg-type]
