"""The tenant's terminal: a pseudo-terminal of the guest kernel's own, made and sized by the agent.

Why it exists: job control, line editing, `stty` and full-screen programs need a tty. The agent keeps the master
side and carries its bytes like those of a pipe; line discipline, echo, Ctrl-C and Ctrl-Z are the guest's business.

Rules of this file:
- The agent holds the slave side open too: the master never hangs up before the tenant's first process ends.
- Sources: include/uapi/asm-generic/ioctls.h and termbits.h; drivers/tty/pty.c.
"""

import struct
from dataclasses import dataclass

from thinbox.guest.agent_channel import AgentChannel, GuestScript, must

_O_RDWR, _O_NOCTTY, _O_NONBLOCK, _O_CLOEXEC = 0o2, 0o400, 0o4000, 0o2000000
_F_DUPFD_CLOEXEC = 1030
_TCGETS, _TCSETS, _TIOCSCTTY, _TIOCSWINSZ = 0x5401, 0x5402, 0x540E, 0x5414
_TIOCGPTN, _TIOCSPTLCK, _TIOCGPTPEER = 0x80045430, 0x40045431, 0x5441
_TERMIOS_BYTES = 36
_IUTF8 = 0o40000
END_OF_INPUT = b"\x04"
"""VEOF, Ctrl-D: what ends input on a terminal."""
_LARGEST_WINDOW = 0xFFFF


@dataclass(frozen=True, slots=True)
class Terminal:
    """A terminal of `rows` by `columns` characters (0 to 65535; 0: unknown).

    stdin and stdout are the terminal; stderr too, so that both arrive as one stream, unless `stderr` is false.
    """

    rows: int = 24
    columns: int = 80
    stderr: bool = True

    def __post_init__(self) -> None:
        if not (0 <= self.rows <= _LARGEST_WINDOW and 0 <= self.columns <= _LARGEST_WINDOW):
            raise ValueError(f"a terminal has 0 to {_LARGEST_WINDOW} rows and columns")


@dataclass(frozen=True, slots=True)
class Pty:
    """Descriptors of the agent: `reader` and `writer` are the master side; `number` names the slave."""

    reader: int
    writer: int
    number: int

    @property
    def path(self) -> str:
        """The slave's device node."""
        return f"/dev/pts/{self.number}"


def open_pty(agent: AgentChannel, window: Terminal) -> GuestScript:
    """Make a pseudo-terminal of the size of `window`; return its `Pty` (as a generator's value)."""
    reader = yield from must("open", "/dev/ptmx", _O_RDWR | _O_NOCTTY | _O_NONBLOCK | _O_CLOEXEC, 0)
    yield from must("ioctl", reader, _TIOCSPTLCK, bytes(4))
    yield from must("ioctl", reader, _TIOCGPTN, bytes(4))
    number = int.from_bytes(agent.read(agent.area(), 4), "little")
    slave = yield from must("ioctl", reader, _TIOCGPTPEER, _O_RDWR | _O_NOCTTY | _O_CLOEXEC)
    # Erasing takes whole characters: the tenant's LANG is C.UTF-8.
    yield from must("ioctl", slave, _TCGETS, bytes(_TERMIOS_BYTES))
    settings = agent.read(agent.area(), _TERMIOS_BYTES)
    input_flags = int.from_bytes(settings[:4], "little") | _IUTF8
    yield from must("ioctl", slave, _TCSETS, input_flags.to_bytes(4, "little") + settings[4:])
    yield from resize(reader, window.rows, window.columns)
    # A descriptor of its own for writing: poll answers for each by itself.
    writer = yield from must("fcntl", reader, _F_DUPFD_CLOEXEC, 3)
    return Pty(reader, writer, number)


def resize(master: int, rows: int, columns: int) -> GuestScript:
    """Set the window's size; the kernel sends SIGWINCH to the foreground job if it changed."""
    yield from must("ioctl", master, _TIOCSWINSZ, struct.pack("<4H", rows, columns, 0, 0))


def take_terminal(path: str) -> GuestScript:
    """In the child, a session leader: make `path` its controlling terminal; return a descriptor (generator's value)."""
    slave = yield from must("open", path, _O_RDWR | _O_NOCTTY | _O_CLOEXEC, 0)
    yield from must("ioctl", slave, _TIOCSCTTY, 0)
    return slave


__all__ = ["END_OF_INPUT", "Pty", "Terminal", "open_pty", "resize", "take_terminal"]
