"""What container engines mount in a container's root: proc, sys, dev, with some of it hidden or read-only.

Why it exists: programs of an image expect it. The lists are the defaults of moby (oci/defaults.go) and what runc makes
by itself (libcontainer/rootfs_linux.go); a path this kernel lacks is left out, as runc does.
"""

from thinbox.guest.agent_channel import GuestScript, call, must
from thinbox.guest.cgroups import show_cgroup
from thinbox.guest.populate import ROOT

_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8
_REMOUNT, _BIND, _REC = 0x20, 0x1000, 0x4000
_STRICTATIME = 1 << 24
_O_WRONLY = 1
_CHAR = 0o020000

DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
    "core": "/proc/kcore",
}
HIDDEN_FILES = (
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/timer_list",
    "proc/timer_stats",
    "proc/sched_debug",
)
HIDDEN_FOLDERS = ("proc/acpi", "proc/asound", "proc/scsi", "sys/firmware")
READ_ONLY = ("proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger")
_FIRST_OPEN_PORT = "/proc/sys/net/ipv4/ip_unprivileged_port_start"


def mount_engine_view(root: str = ROOT) -> GuestScript:
    """Mount proc, sys and dev in `root`.

    Preconditions:
    - `root` is filled, and its proc, sys and dev are directories, not symlinks.
    """
    yield from must("mount", "/proc", f"{root}/proc", 0, _BIND | _REC, 0)
    yield from _bind_sys(root)
    yield from show_cgroup("", root, writable=False)
    yield from hide_proc(root)
    yield from _make_dev(root)
    yield from open_low_ports()


def mount_sys_and_dev(root: str) -> GuestScript:
    """As `mount_engine_view`, all but proc and cgroups, which a tenant with namespaces of its own mounts itself."""
    yield from _bind_sys(root)
    yield from call("mount", "tmpfs", f"{root}/sys/firmware", "tmpfs", _RDONLY, "size=4k")
    yield from _make_dev(root)


def _bind_sys(root: str) -> GuestScript:
    yield from must("mount", "/sys", f"{root}/sys", 0, _BIND, 0)
    yield from must("mount", 0, f"{root}/sys", 0, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV | _NOEXEC, 0)


def hide_proc(root: str) -> GuestScript:
    """Hide what containers are not shown, and make read-only what they must not write: of `root`'s proc, mounted
    already, and sys."""
    for name in HIDDEN_FILES:
        yield from call("mount", "/dev/null", f"{root}/{name}", 0, _BIND, 0)
    for name in HIDDEN_FOLDERS:
        yield from call("mount", "tmpfs", f"{root}/{name}", "tmpfs", _RDONLY, "size=4k")
    for name in READ_ONLY:
        result = yield from call("mount", f"{root}/{name}", f"{root}/{name}", 0, _BIND | _REC, 0)
        if result == 0:
            flags = _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV | _NOEXEC
            yield from must("mount", 0, f"{root}/{name}", 0, flags, 0)


def _make_dev(root: str) -> GuestScript:
    dev = f"{root}/dev"
    yield from must("mount", "tmpfs", dev, "tmpfs", _NOSUID | _STRICTATIME, "mode=755,size=64m")
    for name, (major, minor) in DEVICES.items():
        yield from must("mknod", f"{dev}/{name}", _CHAR | 0o666, major << 8 | minor)
        yield from must("chmod", f"{dev}/{name}", 0o666)
    for name, target in _LINKS.items():
        yield from must("symlink", target, f"{dev}/{name}")
    for name in ("pts", "shm", "mqueue"):
        yield from must("mkdir", f"{dev}/{name}", 0o755)
    # The guest's own: a terminal of the tenant is opened there before it has this root.
    yield from must("mount", "/dev/pts", f"{dev}/pts", 0, _BIND, 0)
    yield from must("mount", "tmpfs", f"{dev}/shm", "tmpfs", _NOSUID | _NODEV | _NOEXEC, "mode=1777,size=64m")
    yield from call("mount", "mqueue", f"{dev}/mqueue", "mqueue", _NOSUID | _NODEV | _NOEXEC, 0)


def open_low_ports(root: str = "") -> GuestScript:
    """Let users other than root listen on ports below 1024, as moby does since 20.10; `root` has the proc to use."""
    handle = yield from call("open", root + _FIRST_OPEN_PORT, _O_WRONLY, 0)
    if handle >= 0:
        yield from call("write", handle, b"0", 1)
        yield from call("close", handle)
