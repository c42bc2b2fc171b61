"""What the agent does before the snapshot: file systems, busybox's links, the doorbell, loopback."""

import struct

from thinbox.guest.agent_channel import CHILD_AREA, SCRATCH_BYTES, AgentChannel, GuestScript, Park, call, must

O_RDWR, O_NONBLOCK, O_NOCTTY, O_CLOEXEC = 0o2, 0o4000, 0o400, 0o2000000
SIGCHLD = 17
_PROT_RW, _MAP_SHARED_ANON_POPULATE = 3, 0x1 | 0x20 | 0x8000
_MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
MS_BIND, MS_REC, _MS_MOVE, _MS_PRIVATE = 0x1000, 0x4000, 0x2000, 1 << 18
_MNT_DETACH = 2
_ABOVE_ROOTFS = "/mnt"
_TCSETS = 0x5402
_RAW_TERMIOS = struct.pack("<4IB19s", 0, 0, 0x8BD, 0, 0, bytes(6) + b"\x01" + bytes(12))
"""B9600 CS8 CREAD CLOCAL, VMIN 1 (include/uapi/asm-generic/termbits.h)."""
_AF_INET, _SOCK_DGRAM, _SIOCSIFFLAGS, _IFF_UP_RUNNING = 2, 2, 0x8914, 0x41
DOORBELL_FD = 10

_LINKS = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
)
_MOUNTS = (
    ("proc", "/proc", "proc", _MS_NOSUID_NODEV_NOEXEC, ""),
    ("sysfs", "/sys", "sysfs", _MS_NOSUID_NODEV_NOEXEC, ""),
    ("devtmpfs", "/dev", "devtmpfs", 2, "mode=0755"),
    ("tmpfs", "/run", "tmpfs", 2 | 4, "mode=0755"),
    ("tmpfs", "/tmp", "tmpfs", 2 | 4, "mode=1777"),
    ("tmpfs", "/mnt", "tmpfs", 0, "mode=0755"),
)


def prepare_guest(agent: AgentChannel) -> GuestScript:
    """Run by the agent once, up to where the snapshot is taken."""
    scratch = yield from must("mmap", 0, SCRATCH_BYTES, _PROT_RW, _MAP_SHARED_ANON_POPULATE, -1, 0)
    agent.set_scratch(scratch)
    yield from leave_rootfs()
    for source, target, kind, flags, data in _MOUNTS:
        yield from must("mount", source, target, kind, flags, data)
    yield from call("mount", "cgroup2", "/sys/fs/cgroup", "cgroup2", _MS_NOSUID_NODEV_NOEXEC, "")
    yield from must("mkdir", "/dev/pts", 0o755)
    yield from must("mount", "devpts", "/dev/pts", "devpts", 2 | 8, "gid=5,mode=620,ptmxmode=666")
    yield from must("mkdir", "/dev/shm", 0o755)
    yield from must("mount", "tmpfs", "/dev/shm", "tmpfs", 2 | 4, "mode=1777")
    for name, target in _LINKS:
        yield from must("symlink", target, name)
    yield from must("sethostname", b"thinbox", 7)
    yield from _install_busybox(agent)
    bell = yield from must("open", "/dev/ttyS1", O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0)
    yield from must("dup3", bell, DOORBELL_FD, O_CLOEXEC)
    yield from must("close", bell)
    yield from must("ioctl", DOORBELL_FD, _TCSETS, _RAW_TERMIOS)
    yield from raise_loopback()
    yield Park()


def leave_rootfs() -> GuestScript:
    """Make a mount over the first root file system the root of the caller, and of the kernel's own threads with it.

    The first one can never be left (fs/namespace.c, `pivot_root`: "not attached"): no tenant could have a root that is
    its mount namespace's, so none could make user namespaces or roots of its own (kernel/user_namespace.c,
    `create_user_ns`: "current_chrooted").
    """
    yield from must("mount", "/", _ABOVE_ROOTFS, 0, MS_BIND, 0)
    yield from must("chdir", _ABOVE_ROOTFS)
    yield from must("mount", ".", "/", 0, _MS_MOVE, 0)
    yield from must("chroot", ".")
    yield from must("chdir", "/")


def enter_root(root: str) -> GuestScript:
    """Make the mount at `root` the root of the caller's mount namespace, which is its own, and drop all else there.

    As container engines do (runc, libcontainer/rootfs_linux.go): the old root is stacked on the new one and taken off.
    """
    yield from must("mount", 0, "/", 0, MS_REC | _MS_PRIVATE, 0)
    yield from must("mount", root, root, 0, MS_BIND | MS_REC, 0)
    yield from must("chdir", root)
    yield from must("pivot_root", ".", ".")
    yield from must("umount2", ".", _MNT_DETACH)
    yield from must("chdir", "/")


def _install_busybox(agent: AgentChannel) -> GuestScript:
    agent.adopt_next_child(_become_busybox(agent))
    child = yield from must("clone", SIGCHLD, 0, 0, 0, 0)
    yield from must("wait4", child, agent.area(), 0, 0)
    status = int.from_bytes(agent.read(agent.area(), 4), "little")
    if status:
        raise RuntimeError(f"busybox --install ended with {status:#x}")


def _become_busybox(agent: AgentChannel) -> GuestScript:
    area = agent.area(child=True)
    words = (b"/bin/busybox\0", b"--install\0", b"-s\0")
    places, at = [], area + 256
    for word in words:
        agent.write(at, word)
        places.append(at)
        at += 32
    agent.write(area + 128, struct.pack("<4Q", *places, 0))
    yield from call("execve", places[0], area + 128, 0)
    yield from call("exit_group", 127)


def raise_loopback() -> GuestScript:
    """Bring up the loopback device of the caller's network namespace."""
    handle = yield from must("socket", _AF_INET, _SOCK_DGRAM, 0)
    yield from must("ioctl", handle, _SIOCSIFFLAGS, struct.pack("<16sH22x", b"lo", _IFF_UP_RUNNING))
    yield from must("close", handle)


__all__ = ["CHILD_AREA", "DOORBELL_FD", "enter_root", "prepare_guest", "raise_loopback"]
