"""A program on a guest that can be looked into: hooks on kernel functions, registers, memory, symbols, types, tasks.

    with guest.session(["id"]) as s:
        s.on("__x64_sys_getuid", lambda: print(s.current.comm, hex(s.regs.rdi)))
    print(s.result)

Why it exists: a kernel engineer wants to see what a call does while it does it, without a debugger.

Rules of this file:
- Addresses are the kernel's own, unsigned, where KASLR put it. Memory is seen as the kernel's own table maps it,
  whether a call is isolated or not: looking is never judged.
- A function given to `on` runs when the instruction at that symbol is about to; what it raises ends the run.
"""

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from thinbox.api.results import Result
from thinbox.errors import InputError
from thinbox.machine import cpu as registers

if TYPE_CHECKING:
    from thinbox.image.btf import TypeTable
    from thinbox.session.session import Session

_REGISTERS = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
"""In encoding order (SDM vol. 2A, table 3-1), which is that of `Cpu.regs`."""
_COMM_BYTES = 16
"""TASK_COMM_LEN (include/linux/sched.h)."""
assert (registers.RAX, registers.RSP, registers.RDI) == (0, 4, 7)


class NoSuchSymbolError(InputError, KeyError):
    """The kernel has no symbol of that name."""

    __str__ = InputError.__str__


class Registers:
    """The general registers as they are now, by name; `rip` and `flags` too. All but `rip` may be set."""

    __slots__ = ("_session",)
    _session: "Session"

    def __init__(self, session: "Session") -> None:
        object.__setattr__(self, "_session", session)

    def __getattr__(self, name: str) -> int:
        cpu = self._session.machine.cpu
        if name in _REGISTERS:
            return int(cpu.regs[_REGISTERS.index(name)]) & 0xFFFF_FFFF_FFFF_FFFF
        if name == "rip":
            return int(cpu.rip)
        if name == "flags":
            return int(cpu.flags)
        raise AttributeError(f"there is no register {name!r}")

    def __setattr__(self, name: str, value: int) -> None:
        if name not in _REGISTERS:
            raise AttributeError(f"there is no register {name!r} that can be set")
        self._session.machine.cpu.regs[_REGISTERS.index(name)] = value & 0xFFFF_FFFF_FFFF_FFFF

    def __repr__(self) -> str:
        return " ".join(f"{name}={getattr(self, name):#x}" for name in ("rip", *_REGISTERS))


class GuestMemory:
    """The guest's memory by kernel address; InputError for what is not mapped."""

    def __init__(self, session: "Session") -> None:
        self._session = session

    def read(self, vaddr: int, size_bytes: int) -> bytes:
        """Return `size_bytes` at `vaddr`."""
        try:
            return self._session.machine.memory.read_virtual(self._root, vaddr, size_bytes)
        except LookupError as error:
            raise InputError(f"the guest maps nothing at {vaddr:#x} for {size_bytes} bytes") from error

    def write(self, vaddr: int, data: bytes) -> None:
        """Put `data` at `vaddr`."""
        try:
            self._session.machine.memory.write_virtual(self._root, vaddr, data)
        except LookupError as error:
            raise InputError(f"the guest maps nothing at {vaddr:#x} for {len(data)} bytes") from error

    def uint(self, vaddr: int, size_bytes: int = 8) -> int:
        """Return the little-endian number at `vaddr`."""
        return int.from_bytes(self.read(vaddr, size_bytes), "little")

    @property
    def _root(self) -> int:
        return self._session.enforcer.kernel_root


class Symbols(Mapping[str, int]):
    """The kernel's symbols: the address of each, where it runs."""

    def __init__(self, session: "Session") -> None:
        self._symbols = session.view.symbols

    def __getitem__(self, name: str) -> int:
        found = self._symbols.find(name)
        if found is None:
            raise NoSuchSymbolError(f"this kernel has no symbol {name!r}")
        return int(found)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(self._symbols.names))

    def __len__(self) -> int:
        return len(set(self._symbols.names))

    def at(self, vaddr: int) -> str:
        """Return `symbol+0xoffset` of an address, the symbol alone at its start."""
        return self._symbols.describe(vaddr)


class Struct:
    """One of the kernel's structures in the guest: members are read by name, as its BTF lays them out.

    `task["pid"]`, `task["thread.sp"]`; `task.struct("cred", "cred")` follows a pointer. A member that is no number is
    returned as bytes.
    """

    def __init__(self, inside: "Inside", type_name: str, vaddr: int) -> None:
        self._inside, self.type_name, self.vaddr = inside, type_name, vaddr

    def __getitem__(self, member: str) -> int | bytes:
        types = self._inside.types
        try:
            offset, size = types.offset_of(self.type_name, member), types.member_size(self.type_name, member)
        except KeyError as error:
            raise InputError(f"struct {self.type_name} of this kernel has no plain member {member!r}") from error
        data = self._inside.memory.read(self.vaddr + offset, size)
        return int.from_bytes(data, "little") if size in (1, 2, 4, 8) else data

    def has(self, member: str) -> bool:
        """Tell whether this kernel's structure has the member: probe, never compare versions."""
        return self._inside.types.has_member(self.type_name, member)

    def number(self, member: str) -> int:
        """Return a member that is a number; InputError for one that is not."""
        value = self[member]
        if isinstance(value, bytes):
            raise InputError(f"{self.type_name}.{member} is no number but {len(value)} bytes")
        return value

    def struct(self, member: str, type_name: str) -> "Struct":
        """Follow a pointer to a `type_name`."""
        return Struct(self._inside, type_name, self.number(member))

    def __repr__(self) -> str:
        return f"<struct {self.type_name} at {self.vaddr:#x}>"


class Task(Struct):
    """A task of the guest: its task_struct, with the names everybody asks for."""

    def __init__(self, inside: "Inside", vaddr: int) -> None:
        super().__init__(inside, "task_struct", vaddr)

    @property
    def comm(self) -> str:
        """Its name."""
        offset = self._inside.types.offset_of("task_struct", "comm")
        return self._inside.memory.read(self.vaddr + offset, _COMM_BYTES).split(b"\0")[0].decode(errors="replace")

    @property
    def pid(self) -> int:
        """Its thread id, as the guest's first pid namespace counts."""
        return self.number("pid")

    def __repr__(self) -> str:
        return f"<task {self.pid} {self.comm!r} at {self.vaddr:#x}>"


class Inside:
    """A program that is about to run, and the guest around it; made by `Guest.session`.

    As a context manager it runs the program to its end when the block is left, if `run` was not called in it.
    """

    def __init__(self, session: "Session", finish: Callable[[], Result]) -> None:
        self._session, self._finish = session, finish
        self._is_started = False
        self._result: Result | None = None
        self._last: dict[object, tuple[int, int]] = {}
        self._told: set[object] = set()
        self.regs = Registers(session)
        self.memory = GuestMemory(session)
        self.symbols = Symbols(session)

    @property
    def types(self) -> "TypeTable":
        """The kernel's types: `offset_of`, `size_of`, `member_size`, `has_member`, `has_type`."""
        return self._session.view.facts.types

    @property
    def current(self) -> Task:
        """The task that runs."""
        return Task(self, self._session.view.current)

    @property
    def is_tenants(self) -> bool:
        """Whether the task that runs is the program's, or a child of it; not the guest's own."""
        return self._session.view.current in self._session.enforcer.tasks

    def jump(self, vaddr: int) -> None:
        """In a function given to `on`: let the CPU go on at `vaddr` instead, as a corrupted pointer would."""
        self._session.machine.cpu.jump(vaddr)

    @property
    def now_ns(self) -> int:
        """Virtual time since the guest's boot."""
        return self._session.machine.now_ns

    def struct(self, type_name: str, where: int | str) -> Struct:
        """Return the structure of that type at an address, or at a symbol; InputError for a type there is not."""
        if not self.types.has_type(type_name):
            raise InputError(f"this kernel has no type {type_name!r}")
        return Struct(self, type_name, self._vaddr(where))

    def on(self, where: int | str, callback: Callable[[], object]) -> Callable[[], None]:
        """Call `callback` whenever the instruction at a symbol or address is about to run, whoever runs it.

        Return what takes that back. InputError for a symbol there is not.
        """
        if not callable(callback):
            raise InputError(f"{callback!r} is no function to call")
        vaddr, key = self._vaddr(where), object()

        def call() -> None:
            if key in self._told:
                self._told.discard(key)  # before `run_to` stopped here
                return
            here = (vaddr, self.now_ns)
            if self._last.get(key) != here:  # else its first access faulted, and it runs again
                self._last[key] = here
                callback()

        remove = self._session.machine.cpu.add_code_hook(vaddr, call)
        self._session.machine.cpu.uc.ctl_flush_tb()
        return remove

    def run_to(self, where: int | str) -> bool:
        """Run until the instruction at a symbol or address is about to run: True; False if the program ended before.

        Called again there, it runs to the next time.
        """
        vaddr, arrived = self._vaddr(where), False
        is_here = self._session.machine.cpu.rip == vaddr

        def stop() -> None:
            nonlocal arrived, is_here
            if is_here:
                is_here = False
                return
            if not arrived:
                arrived = True
                here = (vaddr, self.now_ns)
                self._told = {key for key, last in self._last.items() if last == here}
                self._session.machine.cpu.stop()

        if self._result is not None:
            return False
        remove = self._session.machine.cpu.add_code_hook(vaddr, stop)
        self._session.machine.cpu.uc.ctl_flush_tb()
        try:
            self._start()
            self._session.go_on(lambda: arrived)
        finally:
            remove()
        return arrived

    def run(self) -> Result:
        """Run to the end; return the result, also of later calls."""
        if self._result is None:
            self._start()
            self._session.go_on()
            self._result = self._finish()
        return self._result

    @property
    def result(self) -> Result:
        """The result; InputError while the program has not ended."""
        if self._result is None:
            raise InputError("the program has not been run to its end; call run(), or leave the with block")
        return self._result

    def _start(self) -> None:
        if not self._is_started:
            self._is_started = True
            self._session.start()

    def _vaddr(self, where: int | str) -> int:
        return self.symbols[where] if isinstance(where, str) else where

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.run()

    def __repr__(self) -> str:
        return f"<Inside: {'ended' if self._result else 'running' if self._is_started else 'about to run'}>"


__all__ = ["GuestMemory", "Inside", "NoSuchSymbolError", "Registers", "Struct", "Symbols", "Task"]
