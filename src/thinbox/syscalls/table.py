"""The x86-64 system calls: number, name and what each argument is.

Why it exists: records, policies and reports name calls and decode their arguments, and every one of them
must agree. The facts live in `data/syscalls_x86_64.tsv` (its header says where they come from); this
module only reads them, on first use, and builds one `CallInfo` when it is asked for.
"""

import difflib
import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from thinbox.errors import InputError

_DATA_FILE = Path(__file__).parent.parent / "data" / "syscalls_x86_64.tsv"

MAX_ARGUMENTS = 6
"""System calls pass at most six register arguments: rdi, rsi, rdx, r10, r8, r9 (entry_64.S)."""


class ArgKind(enum.StrEnum):
    """What one register argument of a call means to the kernel."""

    FD = "fd"
    DIRFD = "dirfd"
    PATH = "path"
    STRING = "string"
    ARGV = "argv"
    PTR_IN = "ptr_in"
    PTR_OUT = "ptr_out"
    PTR_INOUT = "ptr_inout"
    PTR = "ptr"
    IOVEC = "iovec"
    SOCKADDR = "sockaddr"
    SOCKADDR_OUT = "sockaddr_out"
    VADDR = "vaddr"
    SIZE = "size"
    OFFSET = "offset"
    FLAGS = "flags"
    COMMAND = "command"
    MODE = "mode"
    CLOCK = "clock"
    PID = "pid"
    UID = "uid"
    GID = "gid"
    SIGNAL = "signal"
    INT = "int"
    UINT = "uint"
    ARG = "arg"

    @property
    def is_pointer(self) -> bool:
        """Whether the kernel reads or writes user memory at this address (`arg` only may: it is not)."""
        return self in _POINTERS


_POINTERS = frozenset(
    {
        ArgKind.PATH,
        ArgKind.STRING,
        ArgKind.ARGV,
        ArgKind.PTR_IN,
        ArgKind.PTR_OUT,
        ArgKind.PTR_INOUT,
        ArgKind.PTR,
        ArgKind.IOVEC,
        ArgKind.SOCKADDR,
        ArgKind.SOCKADDR_OUT,
    }
)


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument: its name in the kernel's SYSCALL_DEFINE, and its kind."""

    name: str
    kind: ArgKind


@dataclass(frozen=True, slots=True)
class CallInfo:
    """One system call. `args` has 0 to 6 entries, in register order; empty too for calls never built."""

    nr: int
    name: str
    args: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class _Table:
    names: Mapping[int, str]
    numbers: Mapping[str, int]
    argument_texts: Mapping[int, str]


def call_info(nr: int) -> CallInfo | None:
    """Return what is known of call `nr` (the value in rax), or None for a number never given out."""
    return _build_info(nr) if nr in _table().names else None


def call_number(name: str) -> int:
    """Return the number of the call `name` (as in syscall_64.tbl: `newfstatat`, `pread64`).

    Raises InputError for an unknown name; the message offers the closest known ones.
    """
    numbers = _table().numbers
    if name in numbers:
        return numbers[name]
    close = difflib.get_close_matches(name, numbers, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else "see syscalls(2) for the names"
    raise InputError(f"no x86-64 system call is named {name!r}; {hint}")


def call_name(nr: int) -> str:
    """Return the name of call `nr`, or `#NNN` (decimal) for a number never given out."""
    return _table().names.get(nr) or f"#{nr}"


def all_calls() -> tuple[CallInfo, ...]:
    """Return every known call, by number."""
    return tuple(_build_info(nr) for nr in _table().names)


@functools.cache
def _table() -> _Table:
    text = _DATA_FILE.read_text(encoding="ascii")
    names: dict[int, str] = {}
    argument_texts: dict[int, str] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            nr_text, name, argument_text = line.split("\t")
            nr = int(nr_text)
            names[nr] = name
            argument_texts[nr] = argument_text
    numbers = {name: nr for nr, name in names.items()}
    return _Table(MappingProxyType(names), MappingProxyType(numbers), MappingProxyType(argument_texts))


@functools.cache
def _build_info(nr: int) -> CallInfo:
    table = _table()
    pairs = (field.split(":") for field in table.argument_texts[nr].split())
    return CallInfo(nr, table.names[nr], tuple(Argument(name, ArgKind(kind)) for name, kind in pairs))
