"""The arguments that decide what a call does, and the names of their values.

Why it exists: `socket(AF_UNIX)` and `socket(AF_PACKET)` are different doors; plans name them as people do, and a plan
made from a run limits exactly these arguments.

Sources: include/uapi/linux: sched.h, prctl.h, fcntl.h, socket.h and net.h, mman.h, futex.h; asm-generic/ioctls.h,
asm/prctl.h (Linux 6.1).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from thinbox.syscalls.table import ArgKind, call_info

WORD = (1 << 64) - 1
HALF = (1 << 32) - 1

_FAMILIES = {
    "AF_UNSPEC": 0, "AF_UNIX": 1, "AF_INET": 2, "AF_AX25": 3, "AF_IPX": 4, "AF_INET6": 10, "AF_KEY": 15,
    "AF_NETLINK": 16,
    "AF_PACKET": 17, "AF_RDS": 21, "AF_CAN": 29, "AF_TIPC": 30, "AF_BLUETOOTH": 31, "AF_ALG": 38, "AF_VSOCK": 40,
    "AF_QIPCRTR": 42, "AF_SMC": 43, "AF_XDP": 44,
}  # fmt: skip
_CLONE = {
    "CLONE_NEWTIME": 0x80, "CLONE_VM": 0x100, "CLONE_FS": 0x200, "CLONE_FILES": 0x400, "CLONE_SIGHAND": 0x800,
    "CLONE_PIDFD": 0x1000, "CLONE_PTRACE": 0x2000, "CLONE_VFORK": 0x4000, "CLONE_PARENT": 0x8000, "CLONE_THREAD":
    0x10000,
    "CLONE_NEWNS": 0x20000, "CLONE_SYSVSEM": 0x40000, "CLONE_SETTLS": 0x80000, "CLONE_PARENT_SETTID": 0x100000,
    "CLONE_CHILD_CLEARTID": 0x200000, "CLONE_DETACHED": 0x400000, "CLONE_UNTRACED": 0x800000,
    "CLONE_CHILD_SETTID": 0x1000000, "CLONE_NEWCGROUP": 0x2000000, "CLONE_NEWUTS": 0x4000000, "CLONE_NEWIPC": 0x8000000,
    "CLONE_NEWUSER": 0x10000000, "CLONE_NEWPID": 0x20000000, "CLONE_NEWNET": 0x40000000, "CLONE_IO": 0x80000000,
}  # fmt: skip
_FCNTL = {
    "F_DUPFD": 0, "F_GETFD": 1, "F_SETFD": 2, "F_GETFL": 3, "F_SETFL": 4, "F_GETLK": 5, "F_SETLK": 6, "F_SETLKW": 7,
    "F_SETOWN": 8, "F_GETOWN": 9, "F_SETSIG": 10, "F_GETSIG": 11, "F_SETOWN_EX": 15, "F_GETOWN_EX": 16,
    "F_OFD_GETLK": 36,
    "F_OFD_SETLK": 37, "F_OFD_SETLKW": 38, "F_SETLEASE": 1024, "F_GETLEASE": 1025, "F_NOTIFY": 1026,
    "F_DUPFD_CLOEXEC": 1030, "F_SETPIPE_SZ": 1031, "F_GETPIPE_SZ": 1032, "F_ADD_SEALS": 1033, "F_GET_SEALS": 1034,
}  # fmt: skip
_IOCTL = {
    "TCGETS": 0x5401, "TCSETS": 0x5402, "TCSETSW": 0x5403, "TCSETSF": 0x5404, "TIOCSCTTY": 0x540E, "TIOCGPGRP": 0x540F,
    "TIOCSPGRP": 0x5410, "TIOCSTI": 0x5412, "TIOCGWINSZ": 0x5413, "TIOCSWINSZ": 0x5414, "FIONREAD": 0x541B,
    "TIOCLINUX": 0x541C, "FIONBIO": 0x5421, "TIOCNOTTY": 0x5422, "FIONCLEX": 0x5450, "FIOCLEX": 0x5451, "FIOASYNC":
    0x5452,
    "SIOCGIFCONF": 0x8912, "SIOCGIFFLAGS": 0x8913, "SIOCGIFADDR": 0x8915, "SIOCGIFINDEX": 0x8933,
}  # fmt: skip
_PRCTL = {
    "PR_SET_PDEATHSIG": 1, "PR_GET_PDEATHSIG": 2, "PR_GET_DUMPABLE": 3, "PR_SET_DUMPABLE": 4, "PR_GET_KEEPCAPS": 7,
    "PR_SET_KEEPCAPS": 8, "PR_SET_NAME": 15, "PR_GET_NAME": 16, "PR_GET_SECCOMP": 21, "PR_SET_SECCOMP": 22,
    "PR_CAPBSET_READ": 23, "PR_CAPBSET_DROP": 24, "PR_SET_TIMERSLACK": 29, "PR_SET_MM": 35,
    "PR_SET_CHILD_SUBREAPER": 36,
    "PR_GET_CHILD_SUBREAPER": 37, "PR_SET_NO_NEW_PRIVS": 38, "PR_GET_NO_NEW_PRIVS": 39, "PR_SET_THP_DISABLE": 41,
    "PR_CAP_AMBIENT": 47, "PR_SET_VMA": 0x53564D41, "PR_SET_PTRACER": 0x59616D61,
}  # fmt: skip
_PROTECTIONS = {"PROT_NONE": 0, "PROT_READ": 1, "PROT_WRITE": 2, "PROT_EXEC": 4, "PROT_GROWSDOWN": 0x1000000}
_MAPPINGS = {
    "MAP_SHARED": 1, "MAP_PRIVATE": 2, "MAP_SHARED_VALIDATE": 3, "MAP_FIXED": 0x10, "MAP_ANONYMOUS": 0x20,
    "MAP_GROWSDOWN": 0x100, "MAP_DENYWRITE": 0x800, "MAP_LOCKED": 0x2000, "MAP_NORESERVE": 0x4000, "MAP_POPULATE":
    0x8000,
    "MAP_NONBLOCK": 0x10000, "MAP_STACK": 0x20000, "MAP_HUGETLB": 0x40000, "MAP_SYNC": 0x80000,
    "MAP_FIXED_NOREPLACE": 0x100000,
}  # fmt: skip
_ARCH_PRCTL = {"ARCH_SET_GS": 0x1001, "ARCH_SET_FS": 0x1002, "ARCH_GET_FS": 0x1003, "ARCH_GET_GS": 0x1004}
_SOCKET_TYPES = {
    "SOCK_STREAM": 1, "SOCK_DGRAM": 2, "SOCK_RAW": 3, "SOCK_SEQPACKET": 5, "SOCK_NONBLOCK": 0o4000, "SOCK_CLOEXEC":
    0o2000000,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Deciding:
    """An argument worth a rule: its position, the names of its values, and whether it is a set of bits."""

    index: int
    names: Mapping[str, int]
    bits: bool = False


DECIDING: Mapping[str, Deciding] = MappingProxyType(
    {
        "socket": Deciding(0, _FAMILIES),
        "socketpair": Deciding(0, _FAMILIES),
        "clone": Deciding(0, _CLONE, bits=True),
        "unshare": Deciding(0, _CLONE, bits=True),
        "setns": Deciding(1, _CLONE, bits=True),
        "fcntl": Deciding(1, _FCNTL),
        "ioctl": Deciding(1, _IOCTL),
        "prctl": Deciding(0, _PRCTL),
        "arch_prctl": Deciding(0, _ARCH_PRCTL),
        "mmap": Deciding(3, _MAPPINGS, bits=True),
        "personality": Deciding(0, {}),
        "keyctl": Deciding(0, {}),
        "bpf": Deciding(0, {}),
        "ptrace": Deciding(0, {}),
    }
)
"""The one argument of a call that says what the call is."""
EXECUTABLE: Mapping[str, int] = MappingProxyType({"mmap": 2, "mprotect": 2, "pkey_mprotect": 2})
"""Calls whose protection argument can ask for memory both writable and executable."""
_OTHER_NAMES = {
    ("mmap", 2): _PROTECTIONS, ("mprotect", 2): _PROTECTIONS, ("pkey_mprotect", 2): _PROTECTIONS,
    ("socket", 1): _SOCKET_TYPES, ("socketpair", 1): _SOCKET_TYPES,
}  # fmt: skip
_HALF_KINDS = frozenset(
    {ArgKind.FD, ArgKind.DIRFD, ArgKind.INT, ArgKind.UINT, ArgKind.COMMAND, ArgKind.PID, ArgKind.UID, ArgKind.GID}
    | {ArgKind.SIGNAL, ArgKind.CLOCK, ArgKind.MODE}
)
_WHOLE = frozenset({("ptrace", 0)})
"""Arguments of a kind above that the kernel takes as a `long`."""
_LOWER = frozenset({("clone", 0)})
"""A `long` of which the kernel takes `lower_32_bits` (kernel/fork.c, SYSCALL_DEFINE5(clone), since 5.3)."""


def value_names(call: str, index: int) -> Mapping[str, int]:
    """Return the names of the values of argument `index`; empty if they have none here."""
    deciding = DECIDING.get(call)
    if deciding is not None and deciding.index == index:
        return deciding.names
    return _OTHER_NAMES.get((call, index), {})


def width_mask(nr: int, index: int) -> int:
    """Return the bits of argument `index` that the kernel looks at: an `int` loses its upper half (SYSCALL_DEFINE)."""
    info = call_info(nr)
    if info is None or index >= len(info.args):
        return WORD
    place = (info.name, index)
    return HALF if place in _LOWER or (info.args[index].kind in _HALF_KINDS and place not in _WHOLE) else WORD


def show_value(call: str, index: int, value: int) -> str:
    """Return a value by name, a set of bits as names joined by `|`, or the number."""
    names = value_names(call, index)
    for name, known in names.items():
        if known == value:
            return name
    deciding = DECIDING.get(call)
    is_bits = (deciding is not None and deciding.bits and deciding.index == index) or EXECUTABLE.get(call) == index
    found = [(name, known) for name, known in names.items() if is_bits and known & value and known.bit_count() == 1]
    rest = value & ~sum(known for _name, known in found)
    if not found:
        return hex(value) if value > 9 else str(value)
    return "|".join([name for name, _known in found] + ([hex(rest)] if rest else []))
