"""Calls that came after Linux 6.1: they are tried on the kernels that have them.

Source: Linux 7.3 include/uapi/linux/mman.h (cachestat), mount.h (struct mnt_id_req), lsm.h, xattr.h (struct
xattr_args), fs.h (struct file_attr), futex.h (FUTEX2).
"""

import errno
import struct

from thinbox.audit import abi
from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import POSITIVE, ZERO, either, exactly, fails
from thinbox.audit.files import open_file
from thinbox.harness.process import Steps

NOT_EXERCISED = {
    "map_shadow_stack": "EOPNOTSUPP: the CPU has no shadow stacks (X86_FEATURE_USER_SHSTK; arch/x86/kernel/shstk.c)",
    "uretprobe": "it is for the kernel's own trampoline: any other caller is sent SIGILL (arch/x86/kernel/uprobes.c)",
}
_HERE = -100
_U32, _ANY = 2, 0xFFFFFFFF
_REQUEST_BYTES, _ALL_MOUNTS = 24, (1 << 64) - 1
_STATX_BYTES, _STATX_ID, _STATX_ID_AT = 256, 0x4000, 0x90
_CURRENT, _APPARMOR = 100, 104
"""LSM_ATTR_CURRENT, LSM_ID_APPARMOR (include/uapi/linux/lsm.h)."""
_NAME, _VALUE = "trusted.newer", b"its value"


# -- files ----------------------------------------------------------------------------------------------
@success("cachestat", "a file")
def cachestat(process: Process) -> Steps:
    handle = yield from open_file(process)
    place = process.buffer(40)
    yield from process.measure(handle, struct.pack("<QQ", 0, 0), place, 0, expect=ZERO)
    process.check(process.read_int(place, 8) >= 1, "a page of it is cached")


plain("cachestat", "no such handle", (77, bytes(16), bytes(40), 0), fails(errno.EBADF))
plain("cachestat", "unknown flags", (0, bytes(16), bytes(40), 1), fails(errno.EINVAL, errno.EOPNOTSUPP))
plain("fchmodat2", "a file", (_HERE, "file", 0o600, 0), ZERO)
plain("fchmodat2", "a link itself", (_HERE, "link", 0o600, 0x100), fails(errno.EOPNOTSUPP))
plain("fchmodat2", "unknown flags", (_HERE, "file", 0o600, 1), fails(errno.EINVAL))
plain("fchmodat2", "no such file", (_HERE, "nothing", 0o600, 0), fails(errno.ENOENT))
plain("file_getattr", "a file", (_HERE, "file", bytes(24), 24, 0), ZERO)
plain("file_getattr", "no such file", (_HERE, "nothing", bytes(24), 24, 0), fails(errno.ENOENT))
plain("file_getattr", "too short", (_HERE, "file", bytes(24), 8, 0), fails(errno.EINVAL))
plain("file_setattr", "a file, to what it has", (_HERE, "file", bytes(24), 24, 0), ZERO)
plain("file_setattr", "unknown flags", (_HERE, "file", bytes(24), 24, 1), fails(errno.EINVAL))


def _value(process: Process) -> bytes:
    return struct.pack("<QII", process.buffer(_VALUE), len(_VALUE), 0)


@success("setxattrat", "a new one")
def setxattrat(process: Process) -> Steps:
    yield from process.measure(_HERE, "file", 0, _NAME, _value(process), 16, expect=ZERO)
    place = process.buffer(64)
    yield from process.must("getxattr", "file", _NAME, place, 64)
    process.check(process.read(place, len(_VALUE)) == _VALUE, "its value")


@success("getxattrat", "the value")
def getxattrat(process: Process) -> Steps:
    yield from process.must("setxattr", "file", _NAME, _VALUE, len(_VALUE), 0)
    place = process.buffer(64)
    wanted = struct.pack("<QII", place, 64, 0)
    yield from process.measure(_HERE, "file", 0, _NAME, wanted, 16, expect=exactly(len(_VALUE)))
    process.check(process.read(place, len(_VALUE)) == _VALUE, "its value")


@success("listxattrat", "one")
def listxattrat(process: Process) -> Steps:
    yield from process.must("setxattr", "file", _NAME, _VALUE, len(_VALUE), 0)
    place = process.buffer(256)
    yield from process.measure(_HERE, "file", 0, place, 256, expect=POSITIVE)
    process.check(_NAME.encode() in process.read(place, 256), "its name")


@success("removexattrat", "one")
def removexattrat(process: Process) -> Steps:
    yield from process.must("setxattr", "file", _NAME, _VALUE, len(_VALUE), 0)
    yield from process.measure(_HERE, "file", 0, _NAME, expect=ZERO)


plain("removexattrat", "none", (_HERE, "file", 0, _NAME), fails(errno.ENODATA))
plain("setxattrat", "too short", (_HERE, "file", 0, _NAME, bytes(16), 8), fails(errno.EINVAL))
plain("getxattrat", "none", (_HERE, "file", 0, _NAME, bytes(16), 16), fails(errno.ENODATA))
plain("listxattrat", "unknown flags", (_HERE, "file", 1, bytes(8), 8), fails(errno.EINVAL))


# -- mounts ---------------------------------------------------------------------------------------------
@success("statmount", "the root's")
def statmount(process: Process) -> Steps:
    found, place = process.buffer(_STATX_BYTES), process.buffer(512)
    yield from process.must("statx", _HERE, "/", 0, _STATX_ID, found)
    wanted = struct.pack("<IIQQ", _REQUEST_BYTES, 0, process.read_int(found + _STATX_ID_AT, 8), 2)
    yield from process.measure(wanted, place, 512, 0, expect=ZERO)
    process.check(process.read_int(place, 4) >= 512 - 256, "the size of what it says")


@success("listmount", "all")
def listmount(process: Process) -> Steps:
    wanted, place = struct.pack("<IIQQ", _REQUEST_BYTES, 0, _ALL_MOUNTS, 0), process.buffer(512)
    yield from process.measure(wanted, place, 64, 0, expect=POSITIVE)
    process.check(process.read_int(place, 8) != 0, "an id")


plain("statmount", "no such mount", (struct.pack("<IIQQ", _REQUEST_BYTES, 0, 1, 2), bytes(512), 512, 0),
      fails(errno.ENOENT, errno.EINVAL))  # fmt: skip
plain("listmount", "too short", (bytes(24), bytes(64), 8, 0), fails(errno.EINVAL))
plain("open_tree_attr", "a copy, read-only", (_HERE, "/tmp", 1, struct.pack("<QQQQ", 1, 0, 0, 0), 32), POSITIVE)
plain("open_tree_attr", "too short", (_HERE, "/tmp", 1, bytes(32), 8), fails(errno.EINVAL))

plain("listns", "all", (struct.pack("<IIQIIQ", 32, 0, 0, 0, 0, 0), bytes(512), 64, 0), POSITIVE)
plain("listns", "unknown flags", (bytes(32), bytes(8), 1, 1), fails(errno.EINVAL))


@success("fchroot", "to a folder that is open")
def fchroot(process: Process) -> Steps:
    handle = yield from open_file(process, "dir")
    yield from process.measure(handle, 0, expect=ZERO)
    yield from process.must("access", "/inner", 0)


plain("fchroot", "no such handle", (77, 0), fails(errno.EBADF))
plain("fchroot", "unknown flags", (0, 1), fails(errno.EINVAL))

# -- security modules -------------------------------------------------------------------------------------
plain("lsm_list_modules", "all", (bytes(256), struct.pack("<I", 256), 0), POSITIVE)
plain("lsm_list_modules", "unknown flags", (bytes(64), struct.pack("<I", 64), 1), fails(errno.EINVAL))
plain("lsm_get_self_attr", "the current one", (100, bytes(256), struct.pack("<I", 256), 0),
      either(POSITIVE, fails(errno.EOPNOTSUPP)))  # fmt: skip
plain("lsm_get_self_attr", "no such attribute", (1, bytes(256), struct.pack("<I", 256), 0), fails(errno.EOPNOTSUPP))


@success("lsm_set_self_attr", "the profile it has")
def lsm_set_self_attr(process: Process) -> Steps:
    modules, size = process.buffer(256), process.buffer(struct.pack("<I", 256))
    yield from process.must("lsm_list_modules", modules, size, 0)
    process.needs(
        _APPARMOR in struct.unpack("<32Q", process.read(modules, 256)),
        "EOPNOTSUPP: no security module that is on sets attributes of its own processes (AppArmor is off)",
    )
    wanted = b"changeprofile unconfined"
    context = struct.pack("<QQQQ", _APPARMOR, 0, 32 + len(wanted), len(wanted)) + wanted
    yield from process.measure(_CURRENT, context, len(context), 0, expect=ZERO)


plain("lsm_set_self_attr", "too short", (100, bytes(32), 8, 0), fails(errno.EINVAL))


# -- memory -------------------------------------------------------------------------------------------------
@success("mseal", "a page, which then cannot go")
def mseal(process: Process) -> Steps:
    place = yield from process.must("mmap", 0, abi.PAGE, 3, 0x22, -1, 0)
    yield from process.measure(place, abi.PAGE, 0, expect=ZERO)
    result = yield from process.call("munmap", place, abi.PAGE)
    process.check(result == -errno.EPERM, "it is sealed")


plain("mseal", "nothing is mapped there", (abi.PAGE * 16, abi.PAGE, 0), fails(errno.ENOMEM))
plain("mseal", "unknown flags", (0x400000, abi.PAGE, 1), fails(errno.EINVAL))
plain("map_shadow_stack", "a CPU without", (0, abi.PAGE, 0), fails(errno.EOPNOTSUPP, errno.EINVAL))

# -- futexes ------------------------------------------------------------------------------------------------
plain("futex_wake", "nobody waits", (bytes(4), _ANY, 1, _U32), ZERO)
plain("futex_wake", "unknown flags", (bytes(4), _ANY, 1, 0x100), fails(errno.EINVAL))
plain("futex_wait", "the value has changed", (bytes(4), 1, _ANY, _U32, 0, 0), fails(errno.EAGAIN))
plain("futex_wait", "a time that is past", (bytes(4), 0, _ANY, _U32, abi.timespec(0, 1), 1), fails(errno.ETIMEDOUT))


@success("futex_wait", "woken by a child")
def futex_wait(process: Process) -> Steps:
    word = process.buffer(4)

    def child(me: Process) -> Steps:
        yield from me.must("nanosleep", abi.timespec(0, 5 * abi.MILLISECOND), 0)
        yield from me.must("futex_wake", word, _ANY, 1, _U32)

    yield from process.fork(child)
    yield from process.measure(word, 0, _ANY, _U32, 0, 0, expect=ZERO)


@success("futex_requeue", "nobody waits")
def futex_requeue(process: Process) -> Steps:
    words = process.buffer(16)
    waiters = b"".join(struct.pack("<QQII", 0, words + at, _U32, 0) for at in (0, 8))
    yield from process.measure(waiters, 0, 1, 1, expect=ZERO)


@error("futex_requeue", "the value has changed")
def futex_requeue_changed(process: Process) -> Steps:
    words = process.buffer(16)
    waiters = b"".join(struct.pack("<QQII", 7, words + at, _U32, 0) for at in (0, 8))
    yield from process.measure(waiters, 0, 1, 1, expect=fails(errno.EAGAIN))
