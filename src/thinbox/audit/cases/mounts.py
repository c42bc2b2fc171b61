"""Mounting: the old calls, the new ones, and the root of it all."""

import errno
import struct

from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import POSITIVE, ZERO, either, fails
from thinbox.audit.files import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    BAD_ADDRESS,
    BAD_FD,
    CLONE_NEWNS,
    O_CLOEXEC,
    O_CREAT,
    O_PATH,
    O_WRONLY,
    make_file,
    open_file,
    read_back,
)
from thinbox.harness.process import Steps

MS_RDONLY, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC = 1, 8, 32, 4096, 8192, 16384
MS_PRIVATE, MS_SHARED = 1 << 18, 1 << 20
MNT_FORCE, MNT_DETACH, MNT_EXPIRE, UMOUNT_NOFOLLOW = 1, 2, 4, 8
OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH = 1, 4
SET_FLAG, SET_STRING, CMD_CREATE, CMD_RECONFIGURE = 0, 1, 6, 7
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOEXEC = 1, 8
AT_RECURSIVE = 0x8000
NEW = O_CREAT | O_WRONLY

# -- mount -----------------------------------------------------------------------------------------------
for _kind in ("tmpfs", "ramfs", "proc", "sysfs", "devtmpfs", "devpts", "cgroup2", "mqueue", "hugetlbfs", "debugfs",
              "tracefs", "securityfs", "bpf", "pstore"):  # fmt: skip
    plain("mount", _kind, ("none", "dir", _kind, 0, 0), ZERO)
plain("mount", "tmpfs with options", ("none", "dir", "tmpfs", MS_RDONLY | MS_NOEXEC, "size=1m,mode=700"), ZERO)
plain("mount", "cgroup with a controller", ("none", "dir", "cgroup", 0, "none,name=audit"), ZERO)
for _name, _source, _target, _type, _flags, _data, _number in (
    ("no such file system", "none", "dir", "nothing", 0, 0, errno.ENODEV),
    ("no such directory", "none", "nothing", "tmpfs", 0, 0, errno.ENOENT),
    ("on a file", "none", "file", "tmpfs", 0, 0, errno.ENOTDIR),
    ("not a block device", "/dev/null", "dir", "ext4", 0, 0, errno.ENOTBLK),
    ("no such block device", "/dev/nothing", "dir", "ext4", 0, 0, errno.ENOENT),
    ("option that is none", "none", "dir", "tmpfs", 0, "nothing=1", errno.EINVAL),
    ("remount of no mount point", "none", "dir", 0, MS_REMOUNT, 0, errno.EINVAL),
    ("bad address of the data", "none", "dir", "tmpfs", 0, BAD_ADDRESS, errno.EFAULT),
    ("bad address of the kind", "none", "dir", BAD_ADDRESS, 0, 0, errno.EFAULT),
    ("move of no mount point", "dir", "/mnt", 0, MS_MOVE, 0, errno.EINVAL),
):
    plain("mount", _name, (_source, _target, _type, _flags, _data), fails(_number))


@success("mount", "over a directory, hiding what is in it")
def mount_hides(process: Process) -> Steps:
    yield from process.measure("none", "dir", "tmpfs", 0, 0, expect=ZERO)
    result = yield from process.call("open", "dir/inner", 0, 0)
    process.check(result == -errno.ENOENT, "the old content is hidden")
    yield from make_file(process, "dir/new", b"mounted")
    process.check((yield from read_back(process, "dir/new")) == b"mounted", "it can be used")


@success("mount", "bind, a directory")
def mount_bind(process: Process) -> Steps:
    yield from process.measure("dir", "/mnt", 0, MS_BIND, 0, expect=ZERO)
    process.check((yield from read_back(process, "/mnt/inner")) == b"inner\n", "it is there, too")


@success("mount", "bind, a file")
def mount_bind_file(process: Process) -> Steps:
    yield from process.measure("dir/inner", "file", 0, MS_BIND, 0, expect=ZERO)
    process.check((yield from read_back(process, "file")) == b"inner\n", "it is there, too")


@success("mount", "bind, with all below")
def mount_bind_recursive(process: Process) -> Steps:
    yield from process.measure("/", "dir", 0, MS_BIND | MS_REC, 0, expect=ZERO)
    yield from process.must("access", "dir/proc/self/stat", 4)


@success("mount", "remount, read only")
def mount_remount(process: Process) -> Steps:
    yield from process.must("mount", "none", "dir", "tmpfs", 0, 0)
    yield from process.measure(0, "dir", 0, MS_REMOUNT | MS_RDONLY, 0, expect=ZERO)
    process.check((yield from process.call("open", "dir/new", NEW, 0o600)) == -errno.EROFS, "read only")


@success("mount", "remount of a bind, read only")
def mount_remount_bind(process: Process) -> Steps:
    yield from process.must("mount", "dir", "/mnt", 0, MS_BIND, 0)
    yield from process.measure(0, "/mnt", 0, MS_REMOUNT | MS_BIND | MS_RDONLY, 0, expect=ZERO)
    process.check((yield from process.call("open", "/mnt/new", NEW, 0o600)) == -errno.EROFS, "read only")
    yield from make_file(process, "dir/new")


@error("mount", "remount, with a file open for writing")
def mount_remount_busy(process: Process) -> Steps:
    yield from process.must("mount", "none", "dir", "tmpfs", 0, 0)
    yield from open_file(process, "dir/new", NEW)
    yield from process.measure(0, "dir", 0, MS_REMOUNT | MS_RDONLY, 0, expect=fails(errno.EBUSY))


@success("mount", "moved")
def mount_move(process: Process) -> Steps:
    yield from process.must("mount", "none", "dir", "tmpfs", 0, 0)
    yield from make_file(process, "dir/new", b"moved")
    yield from process.measure("dir", "/mnt", 0, MS_MOVE, 0, expect=ZERO)
    process.check((yield from read_back(process, "/mnt/new")) == b"moved", "it is there")


plain("mount", "made shared", (0, "/", 0, MS_SHARED | MS_REC, 0), ZERO)
plain("mount", "made private", (0, "/", 0, MS_PRIVATE | MS_REC, 0), ZERO)


@success("mount", "in a shared place, in two name spaces")
def mount_shared(process: Process) -> Steps:
    yield from process.must("mount", 0, "/", 0, MS_SHARED | MS_REC, 0)
    yield from process.must("unshare", CLONE_NEWNS)
    yield from process.measure("none", "dir", "tmpfs", 0, 0, expect=ZERO)


@error("mount", "not allowed to")
def mount_denied(process: Process) -> Steps:
    yield from process.must("setresuid", 1000, 1000, 1000)
    yield from process.measure("none", "dir", "tmpfs", 0, 0, expect=fails(errno.EPERM))


# -- umount2 ---------------------------------------------------------------------------------------------
def _unmounts(name: str, flags: int, *, number: int = 0, holds: bool = False) -> None:
    @(error if number else success)("umount2", name)
    def body(process: Process) -> Steps:
        yield from process.must("mount", "none", "dir", "tmpfs", 0, 0)
        yield from make_file(process, "dir/new", b"x" * 100)
        if holds:
            yield from open_file(process, "dir/new")
        yield from process.measure("dir", flags, expect=fails(number) if number else ZERO)
        if not number:
            process.check((yield from read_back(process, "dir/inner")) == b"inner\n", "what was hidden is back")


_unmounts("plain", 0)
_unmounts("detached, with a file open", MNT_DETACH, holds=True)
_unmounts("by force", MNT_FORCE)
_unmounts("busy", 0, number=errno.EBUSY, holds=True)
_unmounts("expired, the first time", MNT_EXPIRE, number=errno.EAGAIN)
_unmounts("contradicting flags", MNT_EXPIRE | MNT_DETACH, number=errno.EINVAL)
plain("umount2", "proc", ("/proc", MNT_DETACH), ZERO)
plain("umount2", "no mount point", ("dir", 0), fails(errno.EINVAL))
plain("umount2", "no such directory", ("nothing", UMOUNT_NOFOLLOW), fails(errno.ENOENT))
plain("umount2", "bad address", (BAD_ADDRESS, 0), fails(errno.EFAULT))


# -- pivot_root ------------------------------------------------------------------------------------------
@success("pivot_root", "a new root")
def pivot_root(process: Process) -> Steps:
    yield from process.must("unshare", CLONE_NEWNS)
    yield from process.must("mount", "none", "dir", "tmpfs", 0, 0)
    yield from process.must("chroot", "dir")
    yield from process.must("chdir", "/")
    yield from process.must("mkdir", "new", 0o755)
    yield from process.must("mount", "none", "new", "tmpfs", 0, 0)
    yield from process.must("mkdir", "new/old", 0o755)
    yield from process.must("mkdir", "new/here", 0o755)
    yield from process.measure("new", "new/old", expect=ZERO)
    yield from process.must("access", "/here", 0)
    yield from process.must("access", "/old/new", 0)


plain("pivot_root", "the first root is not to be left", ("/run", "/run"), either(fails(errno.EINVAL), ZERO))
plain("pivot_root", "no such directory", ("nothing", "dir"), fails(errno.ENOENT))


# -- the new calls ---------------------------------------------------------------------------------------
plain("fsopen", "tmpfs", ("tmpfs", 1), POSITIVE)
plain("fsopen", "proc", ("proc", 0), POSITIVE)
plain("fsopen", "no such file system", ("nothing", 0), fails(errno.ENODEV))
plain("fsopen", "unknown flag", ("tmpfs", 2), fails(errno.EINVAL))
plain("fspick", "tmpfs", (AT_FDCWD, "/tmp", 0), POSITIVE)
plain("fspick", "no mount point", (AT_FDCWD, "dir", 0), fails(errno.EINVAL))
plain("fspick", "no such file", (AT_FDCWD, "nothing", 0), fails(errno.ENOENT))
plain("fsconfig", "closed descriptor", (BAD_FD, CMD_CREATE, 0, 0, 0), fails(errno.EBADF))
plain("fsconfig", "unknown command", (0, 99, 0, 0, 0), fails(errno.EOPNOTSUPP))
plain("fsmount", "closed descriptor", (BAD_FD, 0, 0), fails(errno.EBADF))
plain("fsmount", "not of fsopen", (0, 0, 0), fails(errno.EINVAL))
plain("fsmount", "unknown flag", (0, 2, 0), fails(errno.EINVAL))


def _context(process: Process, *, created: bool) -> Steps:
    """Its value: a tmpfs being configured."""
    handle = yield from process.must("fsopen", "tmpfs", O_CLOEXEC >> 19)
    yield from process.must("fsconfig", handle, SET_STRING, "mode", "0711", 0)
    if created:
        yield from process.must("fsconfig", handle, CMD_CREATE, 0, 0, 0)
    return handle


def _detached(process: Process) -> Steps:
    """Its value: a tmpfs mounted nowhere."""
    return (yield from process.must("fsmount", (yield from _context(process, created=True)), 1, 0))


@success("fsconfig", "a text")
def fsconfig_text(process: Process) -> Steps:
    handle = yield from _context(process, created=False)
    yield from process.measure(handle, SET_STRING, "size", "1m", 0, expect=ZERO)


@success("fsconfig", "a flag")
def fsconfig_flag(process: Process) -> Steps:
    handle = yield from _context(process, created=False)
    yield from process.measure(handle, SET_FLAG, "ro", 0, 0, expect=ZERO)


@success("fsconfig", "create")
def fsconfig_create(process: Process) -> Steps:
    handle = yield from _context(process, created=False)
    yield from process.measure(handle, CMD_CREATE, 0, 0, 0, expect=ZERO)


@success("fsconfig", "reconfigure")
def fsconfig_again(process: Process) -> Steps:
    yield from process.must("mount", "none", "dir", "tmpfs", 0, 0)
    handle = yield from process.must("fspick", AT_FDCWD, "dir", 0)
    yield from process.must("fsconfig", handle, SET_FLAG, "ro", 0, 0)
    yield from process.measure(handle, CMD_RECONFIGURE, 0, 0, 0, expect=ZERO)
    process.check((yield from process.call("open", "dir/new", NEW, 0o600)) == -errno.EROFS, "read only")


@error("fsconfig", "option that is none")
def fsconfig_unknown(process: Process) -> Steps:
    handle = yield from _context(process, created=False)
    yield from process.measure(handle, SET_STRING, "nothing", "1", 0, expect=fails(errno.EINVAL))


@success("fsmount", "tmpfs, no execution")
def fsmount(process: Process) -> Steps:
    handle = yield from _context(process, created=True)
    tree = yield from process.measure(handle, 1, MOUNT_ATTR_NOEXEC, expect=POSITIVE)
    yield from process.must("mkdirat", tree, "new", 0o755)


@success("move_mount", "from nowhere to a directory")
def move_mount(process: Process) -> Steps:
    tree = yield from _detached(process)
    yield from process.measure(tree, "", AT_FDCWD, "dir", MOVE_MOUNT_F_EMPTY_PATH, expect=ZERO)
    place = process.buffer(144)
    yield from process.must("stat", "dir", place)
    process.volatile(place, 144)
    process.check(process.read_int(place + 24) & 0o777 == 0o711, "it is there")


@success("move_mount", "from one directory to another")
def move_mount_between(process: Process) -> Steps:
    yield from process.must("mount", "none", "dir", "tmpfs", 0, 0)
    yield from make_file(process, "dir/new", b"moved")
    yield from process.measure(AT_FDCWD, "dir", AT_FDCWD, "/mnt", 0, expect=ZERO)
    process.check((yield from read_back(process, "/mnt/new")) == b"moved", "it is there")


plain("move_mount", "no mount point", (AT_FDCWD, "dir", AT_FDCWD, "/mnt", 0), fails(errno.EINVAL))
plain("move_mount", "unknown flag", (AT_FDCWD, "dir", AT_FDCWD, "/mnt", 0x1000), fails(errno.EINVAL))
plain("open_tree", "a place", (AT_FDCWD, "dir", O_CLOEXEC), POSITIVE)
plain("open_tree", "a copy", (AT_FDCWD, "/tmp", OPEN_TREE_CLONE), POSITIVE)
plain("open_tree", "a copy with all below", (AT_FDCWD, "/", OPEN_TREE_CLONE | AT_RECURSIVE), POSITIVE)
plain("open_tree", "no such file", (AT_FDCWD, "nothing", 0), fails(errno.ENOENT))
plain("open_tree", "recursive, but no copy", (AT_FDCWD, "/", AT_RECURSIVE), fails(errno.EINVAL))


@success("open_tree", "a copy, mounted")
def open_tree_mounted(process: Process) -> Steps:
    tree = yield from process.measure(AT_FDCWD, "dir", OPEN_TREE_CLONE, expect=POSITIVE)
    yield from process.must("move_mount", tree, "", AT_FDCWD, "/mnt", MOVE_MOUNT_F_EMPTY_PATH)
    process.check((yield from read_back(process, "/mnt/inner")) == b"inner\n", "it is there, too")


def _attributes(on: int = 0, off: int = 0, propagation: int = 0) -> bytes:
    """A struct mount_attr."""
    return struct.pack("<4Q", on, off, propagation, 0)


@success("mount_setattr", "read only")
def setattr_read_only(process: Process) -> Steps:
    yield from process.must("mount", "none", "dir", "tmpfs", 0, 0)
    yield from process.measure(AT_FDCWD, "dir", 0, _attributes(MOUNT_ATTR_RDONLY), 32, expect=ZERO)
    process.check((yield from process.call("open", "dir/new", NEW, 0o600)) == -errno.EROFS, "read only")


@success("mount_setattr", "of a tree nowhere")
def setattr_detached(process: Process) -> Steps:
    tree = yield from _detached(process)
    yield from process.measure(tree, "", AT_EMPTY_PATH, _attributes(MOUNT_ATTR_NOEXEC), 32, expect=ZERO)


plain("mount_setattr", "everything private", (AT_FDCWD, "/", AT_RECURSIVE, _attributes(0, 0, MS_PRIVATE), 32), ZERO)
plain("mount_setattr", "no mount point", (AT_FDCWD, "dir", 0, _attributes(1), 32), fails(errno.EINVAL))
plain("mount_setattr", "structure too short", (AT_FDCWD, "dir", 0, _attributes(1), 8), fails(errno.EINVAL))
plain("mount_setattr", "unknown attribute", (AT_FDCWD, "/", 0, _attributes(1 << 40), 32), fails(errno.EINVAL))


@error("mount_setattr", "read only, with a file open for writing")
def setattr_busy(process: Process) -> Steps:
    yield from process.must("mount", "none", "dir", "tmpfs", 0, 0)
    yield from open_file(process, "dir/new", NEW)
    yield from process.measure(AT_FDCWD, "dir", 0, _attributes(1), 32, expect=fails(errno.EBUSY))


# -- handles ---------------------------------------------------------------------------------------------
def _handle(process: Process, path: str) -> Steps:
    """Its value: address of a struct file_handle of `path`."""
    handle, mount = process.buffer(struct.pack("<Ii", 12, 0) + bytes(12)), process.buffer(4)
    yield from process.must("name_to_handle_at", AT_FDCWD, path, handle, mount, 0)
    process.volatile(handle, 20)
    return handle


def _names(name: str, path: str, size: int, kind: int) -> None:
    @success("name_to_handle_at", name)
    def body(process: Process) -> Steps:
        handle, mount = process.buffer(struct.pack("<Ii", 128, 0) + bytes(128)), process.buffer(4)
        process.volatile(handle + 8, 32)  # an inode's generation is random
        yield from process.measure(AT_FDCWD, path, handle, mount, 0, expect=ZERO)
        found = (process.read_int(handle), process.read_int(handle + 4))
        process.check(found == (size, kind), f"a handle of {size} bytes, type {kind} (found {found})")
        process.check(process.read_int(mount) > 0, "the mount's number")


_names("tmpfs", "file", 12, 1)
_names("tmpfs, directory", "dir", 12, 1)
plain("name_to_handle_at", "no such file", (AT_FDCWD, "nothing", bytes(64), bytes(4), 0), fails(errno.ENOENT))
plain("name_to_handle_at", "room too small", (AT_FDCWD, "file", bytes(64), bytes(4), 0), fails(errno.EOVERFLOW))
plain("name_to_handle_at", "unknown flag", (AT_FDCWD, "file", bytes(64), bytes(4), 0x8000), fails(errno.EINVAL))
ROOM = struct.pack("<I", 64) + bytes(80)
plain("name_to_handle_at", "none", (AT_FDCWD, "/proc/version", ROOM, bytes(4), 0), fails(errno.EOPNOTSUPP))


@success("open_by_handle_at", "a file")
def open_by_handle(process: Process) -> Steps:
    handle = yield from _handle(process, "dir/inner")
    place = yield from open_file(process, "dir")
    found = yield from process.measure(place, handle, 0, expect=POSITIVE)
    content = process.buffer(6)
    yield from process.must("read", found, content, 6)
    process.check(process.read(content, 6) == b"inner\n", "it is the file")


@success("open_by_handle_at", "O_PATH, relative to where it stands")
def open_by_handle_path(process: Process) -> Steps:
    handle = yield from _handle(process, "dir")
    yield from process.measure(AT_FDCWD, handle, O_PATH, expect=POSITIVE)


@error("open_by_handle_at", "a file that is gone")
def open_by_handle_stale(process: Process) -> Steps:
    handle = yield from _handle(process, "file")
    yield from process.must("unlink", "file")
    yield from process.measure(AT_FDCWD, handle, 0, expect=fails(errno.ESTALE))


@error("open_by_handle_at", "not allowed to")
def open_by_handle_denied(process: Process) -> Steps:
    handle = yield from _handle(process, "file")
    yield from process.must("setresuid", 1000, 1000, 1000)
    yield from process.measure(AT_FDCWD, handle, 0, expect=fails(errno.EPERM))


plain("open_by_handle_at", "handle of no bytes", (AT_FDCWD, bytes(64), 0), fails(errno.EINVAL))
