"""Kernel code that came after the boot: modules, and code the kernel generates and lists itself.

Why it exists: rule 6 speaks of kernel and module text. The image's symbols end where the image does; a module's
are in its own `struct module`, and BPF programs, trampolines and the like stand in lists the kernel keeps for
its own stack traces (kernel/kallsyms.c looks in the same places).

Sources: include/linux/module.h (`struct module`, `struct mod_kallsyms`), kernel/module/kallsyms.c,
kernel/bpf/core.c (`bpf_kallsyms`), kernel/trace/ftrace.c (`ftrace_ops_trampoline_list`), kernel/seccomp.c.

Rules of this file:
- Nothing is remembered: a module can go, and its pages hold another's code.
- A list that does not end within its limit is a list that cannot be trusted: what was found in it is dropped.
- Where what lies, `thinbox.kernel` says; what a kernel does not have is skipped.
"""

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.address import U64
from thinbox.kernel.generated_code import find_generated_code
from thinbox.kernel.module import ModuleShape, find_module_shape

if TYPE_CHECKING:
    from thinbox.guest.kernel_view import KernelView
    from thinbox.machine.memory import Memory

_MOST_ENTRIES = 4096
_MOST_SYMBOLS = 1 << 16
_NAME_BYTES = 128
_ELF_SYMBOL = struct.Struct("<IBBHQQ")
_TEXT_KINDS = b"tT"


class Origin(enum.StrEnum):
    """Where code came from."""

    MODULE = "module"
    GENERATED = "generated"


@dataclass(frozen=True, slots=True)
class LiveSymbol:
    """A function of a module, or one piece of generated code."""

    name: str
    start: int
    end_exclusive: int
    origin: Origin


class LiveSymbols:
    """Looks addresses up in the running kernel's own lists, under the table `root()`."""

    def __init__(self, view: "KernelView", memory: "Memory") -> None:
        """MissingFactError if this kernel keeps its modules, or lists its code, in another way."""
        self._view, self._memory = view, memory
        self._modules, self._generated = find_module_shape(view.facts), find_generated_code(view.facts)

    def symbol_at(self, vaddr: int, root: int) -> LiveSymbol | None:
        """Return what covers `vaddr`, None where the kernel lists nothing."""
        try:
            return (
                self._module_symbol(vaddr, root)
                or next((ksym for ksym in self._bpf(root) if ksym.start <= vaddr < ksym.end_exclusive), None)
                or next(
                    (found for found in self._trampolines(root) if found.start <= vaddr < found.end_exclusive), None
                )
                or next((found for found in self._filters(root) if found.start <= vaddr < found.end_exclusive), None)
            )
        except LookupError:
            return None

    def starts_of(self, name: str, near: int, root: int) -> tuple[int, ...]:
        """Return where the functions called exactly `name` start in the module whose text holds `near`."""
        try:
            found = self._module_of(near, root)
            if found is None:
                return ()
            module, start, end = found
            strtab, rows = self._module_functions(module, start, end, root)
            return tuple(value for name_at, value in rows if self._text(strtab + name_at, root) == name)
        except LookupError:
            return ()

    # -- reading ------------------------------------------------------------------------------------
    def _word(self, vaddr: int, root: int) -> int:
        (value,) = struct.unpack("<Q", self._memory.read_virtual(root, vaddr & U64, 8))
        return int(value)

    def _text(self, vaddr: int, root: int) -> str:
        out = b""
        while b"\0" not in out and len(out) < _NAME_BYTES:
            size = min(_NAME_BYTES - len(out), 4096 - (vaddr + len(out)) % 4096)
            out += self._memory.read_virtual(root, vaddr + len(out), size)
        return out.partition(b"\0")[0].decode("ascii", "replace")

    def _list(self, head: int, link_at: int, root: int) -> Iterator[int]:
        """Yield the addresses of the structs on a `list_head`."""
        found: list[int] = []
        at = self._word(head, root)
        while at != head & U64:
            if len(found) >= _MOST_ENTRIES:
                return
            found.append(at - link_at)
            at = self._word(at, root)
        yield from found

    # -- modules ------------------------------------------------------------------------------------
    def _module_symbol(self, vaddr: int, root: int) -> LiveSymbol | None:
        found = self._module_of(vaddr, root)
        return None if found is None else self._symbol_in_module(found[0], vaddr, found[1], found[2], root)

    def _module_of(self, vaddr: int, root: int) -> tuple[int, int, int] | None:
        """Return the module that has `vaddr` in its text, and that part of its text (start, exclusive end)."""
        shape = self._modules
        if shape is None:
            return None
        for module in self._list(shape.head_at, shape.link_at, root):
            for start, size in self._module_text(shape, module, root):
                if start <= vaddr < start + size:
                    return module, start, start + size
        return None

    def _module_text(self, shape: ModuleShape, module: int, root: int) -> Iterator[tuple[int, int]]:
        """Yield (start, bytes) of a module's text: its core and, while it starts, its init part."""
        for base_at, size_at in shape.texts:
            base, size = self._word(module + base_at, root), self._word(module + size_at, root) & 0xFFFFFFFF
            if base and size:
                yield base, size

    def _symbol_in_module(self, module: int, vaddr: int, start: int, end: int, root: int) -> LiveSymbol | None:
        strtab, rows = self._module_functions(module, start, end, root)
        best, best_name, after = 0, 0, end
        for name, value in rows:
            if best < value <= vaddr:
                best, best_name = value, name
            elif vaddr < value < after:
                after = value
        if not best:
            return None
        return LiveSymbol(self._text(strtab + best_name, root), best, after, Origin.MODULE)

    def _module_functions(self, module: int, start: int, end: int, root: int) -> tuple[int, list[tuple[int, int]]]:
        """Return where the names of a module's symbols lie, and (place of the name, address) of each function that
        starts in `start` to `end`."""
        shape = self._modules
        table = self._word(module + shape.table_at, root) if shape else 0
        if shape is None or not table:
            return 0, []
        symtab, strtab = self._word(table + shape.symbols_at, root), self._word(table + shape.names_at, root)
        count = self._word(table + shape.count_at, root) & 0xFFFFFFFF
        if count > _MOST_SYMBOLS:
            return 0, []
        kinds = self._memory.read_virtual(root, self._word(table + shape.kinds_at, root), count)
        raw = self._memory.read_virtual(root, symtab, _ELF_SYMBOL.size * count)
        return strtab, [
            (name, value)
            for kind, (name, _info, _other, _section, value, _size) in zip(
                kinds, _ELF_SYMBOL.iter_unpack(raw), strict=True
            )
            if kind in _TEXT_KINDS and start <= value < end
        ]

    # -- generated code ---------------------------------------------------------------------------------
    def _bpf(self, root: int) -> Iterator[LiveSymbol]:
        """BPF programs, their trampolines and dispatchers (`struct bpf_ksym`)."""
        shape = self._generated.programs
        if shape is None:
            return
        for at in self._list(shape.head_at, shape.link_at, root):
            start, end = (self._word(at + place, root) for place in (shape.start_at, shape.end_at))
            yield LiveSymbol(self._text(at + shape.name_at, root), start, end, Origin.GENERATED)

    def _trampolines(self, root: int) -> Iterator[LiveSymbol]:
        """Ftrace's trampolines (`struct ftrace_ops`, since 5.8 listed for kallsyms)."""
        shape = self._generated.trampolines
        if shape is None:
            return
        for at in self._list(shape.head_at, shape.link_at, root):
            start, size = (self._word(at + place, root) for place in (shape.start_at, shape.size_at))
            yield LiveSymbol("ftrace_trampoline", start, start + size, Origin.GENERATED)

    def _filters(self, root: int) -> Iterator[LiveSymbol]:
        """The running task's seccomp filters: classic BPF, which `bpf_kallsyms` leaves out."""
        shape = self._generated.filters
        if shape is None:
            return
        at = self._word(self._view.current + shape.newest_at, root)
        for _ in range(_MOST_ENTRIES):
            if not at:
                return
            program = self._word(at + shape.program_at, root)
            start = self._word(program + shape.start_at, root)
            size = self._word(program + shape.size_at, root) & 0xFFFFFFFF
            yield LiveSymbol("seccomp_filter", start, start + size, Origin.GENERATED)
            at = self._word(at + shape.before_at, root)
