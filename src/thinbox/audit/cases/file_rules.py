"""What rules over files: landlock, quotas, process accounting, swap."""

import errno
import struct

from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import POSITIVE, ZERO, fails
from thinbox.audit.files import BAD_ADDRESS, BAD_FD, O_PATH, make_file, open_file
from thinbox.harness.process import Steps

NOT_EXERCISED = {
    "quotactl_fd": "ENOSYS: of the built-in file systems ext4 alone has quotas (super_block.s_qcop), and it needs a "
    "block device; the machine has none (fs/quota/quota.c, do_quotactl). tmpfs may have them since 6.6, but Debian "
    "leaves CONFIG_TMPFS_QUOTA off",
    "swapon": "EINVAL: the machine has no block device; tmpfs has no read_folio (mm/swapfile.c, swapon), and ramfs no "
    "bmap (mm/page_io.c, generic_swapfile_activate)",
    "swapoff": "EINVAL: nothing can be swapped on (see swapon; mm/swapfile.c)",
}

READ_FILE, READ_DIR, WRITE_FILE = 4, 8, 2
RULE_PATH_BENEATH = 1


def _ruleset(access: int) -> bytes:
    return struct.pack("<Q", access)


# -- landlock --------------------------------------------------------------------------------------------
plain("landlock_create_ruleset", "the version", (0, 0, 1), POSITIVE)
plain("landlock_create_ruleset", "of two rights", (_ruleset(READ_FILE | READ_DIR), 8, 0), POSITIVE)
plain("landlock_create_ruleset", "of none", (_ruleset(0), 8, 0), fails(errno.ENOMSG))
plain("landlock_create_ruleset", "unknown right", (_ruleset(1 << 40), 8, 0), fails(errno.EINVAL))
plain("landlock_create_ruleset", "bad address", (BAD_ADDRESS, 8, 0), fails(errno.EFAULT))
plain("landlock_add_rule", "closed descriptor", (BAD_FD, RULE_PATH_BENEATH, bytes(12), 0), fails(errno.EBADF))
plain("landlock_add_rule", "not a ruleset", (0, RULE_PATH_BENEATH, bytes(12), 0), fails(errno.EBADFD))
plain(
    "landlock_add_rule",
    "unknown flag",
    (0, RULE_PATH_BENEATH, bytes(12), 1),
    fails(errno.EINVAL, errno.EBADFD, errno.EBADF),
)
plain("landlock_restrict_self", "closed descriptor", (BAD_FD, 0), fails(errno.EBADF))
plain("landlock_restrict_self", "not a ruleset", (0, 0), fails(errno.EBADFD))


def _rule(process: Process, path: str) -> Steps:
    """Its value: a ruleset that handles reading, and a rule that allows it below `path`."""
    rules = yield from process.must("landlock_create_ruleset", _ruleset(READ_FILE), 8, 0)
    handle = yield from open_file(process, path, O_PATH)
    return rules, process.buffer(struct.pack("<Qi", READ_FILE, handle))


@success("landlock_add_rule", "reading below a directory")
def landlock_rule(process: Process) -> Steps:
    rules, rule = yield from _rule(process, "dir")
    yield from process.measure(rules, RULE_PATH_BENEATH, rule, 0, expect=ZERO)


@error("landlock_add_rule", "a right that is not handled")
def landlock_unhandled(process: Process) -> Steps:
    rules, rule = yield from _rule(process, "dir")
    process.write(rule, struct.pack("<Q", WRITE_FILE))
    yield from process.measure(rules, RULE_PATH_BENEATH, rule, 0, expect=fails(errno.EINVAL))


@success("landlock_restrict_self", "reading below a directory")
def landlock_restrict(process: Process) -> Steps:
    rules, rule = yield from _rule(process, "dir")
    yield from process.must("landlock_add_rule", rules, RULE_PATH_BENEATH, rule, 0)
    yield from process.measure(rules, 0, expect=ZERO)
    yield from process.must("open", "dir/inner", 0, 0)
    process.check((yield from process.call("open", "file", 0, 0)) == -errno.EACCES, "elsewhere it is denied")


def _under_landlock(call: str, path: str, *, number: int = 0) -> None:
    """`call` of `path` by a process that may read below `dir` only."""

    @(error if number else success)(call, f"under landlock, {'denied' if number else 'allowed'}")
    def body(process: Process) -> Steps:
        rules, rule = yield from _rule(process, "dir")
        yield from process.must("landlock_add_rule", rules, RULE_PATH_BENEATH, rule, 0)
        yield from process.must("landlock_restrict_self", rules, 0)
        yield from process.measure(path, 0, 0, expect=fails(number) if number else POSITIVE)


_under_landlock("open", "dir/inner")
_under_landlock("open", "file", number=errno.EACCES)


@error("landlock_restrict_self", "not allowed to")
def landlock_denied(process: Process) -> Steps:
    rules, _ = yield from _rule(process, "dir")
    yield from process.must("setresuid", 1000, 1000, 1000)
    yield from process.measure(rules, 0, expect=fails(errno.EPERM))


# -- quotas ----------------------------------------------------------------------------------------------
def _quota(command: int, kind: int = 0) -> int:
    """QCMD(command, kind)."""
    return command << 8 | kind


Q_SYNC, Q_QUOTAON, Q_GETQUOTA = 0x800001, 0x800002, 0x800007
plain("quotactl", "sync of all", (_quota(Q_SYNC), 0, 0, 0), ZERO)
plain("quotactl", "no device given", (_quota(Q_GETQUOTA), 0, 0, bytes(128)), fails(errno.ENODEV))
plain("quotactl", "no such device", (_quota(Q_GETQUOTA), "/dev/nothing", 0, bytes(128)), fails(errno.ENOENT))
plain("quotactl", "not a block device", (_quota(Q_GETQUOTA), "/dev/null", 0, bytes(128)), fails(errno.ENOTBLK))
plain("quotactl", "unknown kind", (_quota(Q_SYNC, 9), 0, 0, 0), fails(errno.EINVAL))
plain("quotactl_fd", "closed descriptor", (BAD_FD, _quota(Q_GETQUOTA), 0, bytes(128)), fails(errno.EBADF))


@error("quotactl_fd", "tmpfs has no quotas")
def quotactl_fd(process: Process) -> Steps:
    handle = yield from open_file(process, "dir")
    yield from process.measure(handle, _quota(Q_GETQUOTA), 0, bytes(128), expect=fails(errno.ENOSYS))


# -- accounting ------------------------------------------------------------------------------------------
plain("acct", "on", ("file",), ZERO)
plain("acct", "off, though it was not on", (0,), ZERO)
plain("acct", "no such file", ("nothing",), fails(errno.ENOENT))
plain("acct", "a directory", ("dir",), fails(errno.EISDIR))
plain("acct", "a device", ("/dev/null",), fails(errno.EACCES))


@success("acct", "off, after a child was written down")
def acct_off(process: Process) -> Steps:
    yield from process.must("acct", "dir/inner")

    def child(_me: Process) -> Steps:
        yield from ()

    pid = yield from process.fork(child)
    yield from process.wait(pid)
    yield from process.measure(0, expect=ZERO)
    place = process.buffer(144)
    yield from process.must("stat", "dir/inner", place)
    process.volatile(place, 144)
    process.check(process.read_int(place + 48, 8) == 6 + 2 * 64, "the child, and who ended it: a struct acct_v3 each")


@error("acct", "not allowed to")
def acct_denied(process: Process) -> Steps:
    yield from process.must("setresuid", 1000, 1000, 1000)
    yield from process.measure("file", expect=fails(errno.EPERM))


# -- swap ------------------------------------------------------------------------------------------------
plain("swapon", "no such file", ("nothing", 0), fails(errno.ENOENT))
plain("swapon", "a device that is none for blocks", ("/dev/null", 0), fails(errno.EINVAL))
plain("swapon", "tmpfs", ("file", 0), fails(errno.EINVAL))
plain("swapon", "unknown flag", ("file", 1 << 20), fails(errno.EINVAL))


@error("swapon", "ramfs, a right header, but no blocks")
def swapon_ramfs(process: Process) -> Steps:
    yield from process.must("mount", "none", "dir", "ramfs", 0, 0)
    header = bytes(1024) + struct.pack("<III", 1, 9, 0) + bytes(4096 - 1024 - 12 - 10) + b"SWAPSPACE2"
    yield from make_file(process, "dir/swap", header + bytes(9 * 4096), 0o600)
    yield from process.measure("dir/swap", 0, expect=fails(errno.EINVAL))


plain("swapoff", "no such file", ("nothing",), fails(errno.ENOENT))
plain("swapoff", "not swapped on", ("file",), fails(errno.EINVAL))
