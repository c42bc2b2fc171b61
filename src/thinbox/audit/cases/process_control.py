"""What a process sets for itself: prctl, arch_prctl, its descriptor table, robust lists, seccomp, rseq."""

import errno
import struct

from thinbox.audit import abi
from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import AT_LEAST_0, POSITIVE, ZERO, Expect, exactly, fails
from thinbox.harness.process import Steps

_SLEEP = abi.timespec(0, 5 * abi.MILLISECOND)
_NOBODY = 65534
_INT = bytes(4)

# -- prctl: (name, arguments, result) -----------------------------------------------------------------
_PRCTL = (
    ("PR_SET_PDEATHSIG", (1, 15), 0),
    ("PR_GET_DUMPABLE", (3,), 1),
    ("PR_SET_DUMPABLE", (4, 0), 0),
    ("PR_GET_KEEPCAPS", (7,), 0),
    ("PR_SET_KEEPCAPS", (8, 1), 0),
    ("PR_GET_TIMING", (13,), 0),
    ("PR_SET_TIMING", (14, 0), 0),
    ("PR_SET_NAME", (15, "a case"), 0),
    ("PR_GET_SECCOMP", (21,), 0),
    ("PR_CAPBSET_READ", (23, 0), 1),
    ("PR_CAPBSET_DROP", (24, 0), 0),
    ("PR_SET_TSC", (26, 1), 0),
    ("PR_GET_SECUREBITS", (27,), 0),
    ("PR_SET_SECUREBITS", (28, 1), 0),
    ("PR_SET_TIMERSLACK", (29, 1_000_000), 0),
    ("PR_GET_TIMERSLACK", (30,), 50_000),
    ("PR_TASK_PERF_EVENTS_DISABLE", (31,), 0),
    ("PR_TASK_PERF_EVENTS_ENABLE", (32,), 0),
    ("PR_MCE_KILL_GET", (34, 0, 0, 0, 0), 2),
    ("PR_MCE_KILL", (33, 1, 0, 0, 0), 0),
    ("PR_SET_CHILD_SUBREAPER", (36, 1), 0),
    ("PR_SET_NO_NEW_PRIVS", (38, 1, 0, 0, 0), 0),
    ("PR_GET_NO_NEW_PRIVS", (39, 0, 0, 0, 0), 0),
    ("PR_SET_THP_DISABLE", (41, 1, 0, 0, 0), 0),
    ("PR_GET_THP_DISABLE", (42, 0, 0, 0, 0), 0),
    ("PR_CAP_AMBIENT_CLEAR_ALL", (47, 4, 0, 0, 0), 0),
    ("PR_CAP_AMBIENT_IS_SET", (47, 1, 0, 0, 0), 0),
    ("PR_SET_IO_FLUSHER", (57, 1, 0, 0, 0), 0),
    ("PR_GET_IO_FLUSHER", (58, 0, 0, 0, 0), 0),
    ("PR_SET_PTRACER", (0x59616D61, 1), 0),
)
for _name, _args, _result in _PRCTL:
    plain("prctl", _name, _args, exactly(_result))

_PRCTL_FILLS = (
    ("PR_GET_PDEATHSIG", (2, b"\xff" * 4), _INT),
    ("PR_GET_TSC", (25, _INT), struct.pack("<i", 1)),
    ("PR_GET_CHILD_SUBREAPER", (37, b"\xff" * 4, 0, 0, 0), _INT),
    ("PR_GET_NAME", (16, bytes(16)), b"init".ljust(16, b"\0")),
)
for _name, _fill_args, _content in _PRCTL_FILLS:
    plain("prctl", _name, _fill_args, ZERO, holds=_content)

_PRCTL_REFUSED = (
    ("unknown option", (9999,), errno.EINVAL),
    ("PR_SET_PDEATHSIG, no such signal", (1, 65), errno.EINVAL),
    ("PR_SET_DUMPABLE, no such value", (4, 7), errno.EINVAL),
    ("PR_SET_NAME, bad address", (15, 1), errno.EFAULT),
    ("PR_CAPBSET_READ, no such capability", (23, 99), errno.EINVAL),
    ("PR_SET_NO_NEW_PRIVS, extra argument", (38, 1, 1, 0, 0), errno.EINVAL),
    ("PR_CAP_AMBIENT_RAISE, not inheritable", (47, 2, 0, 0, 0), errno.EPERM),
    ("PR_SET_MM, unknown part", (35, 99, 0, 0, 0), errno.EINVAL),
    ("PR_SVE_GET_VL, another machine's", (51,), errno.EINVAL),
    ("PR_SCHED_CORE, one thread a core", (62, 0, 0, 0, 0), errno.EINVAL),
)
for _name, _args, _number in _PRCTL_REFUSED:
    plain("prctl", _name, _args, fails(_number))


@success("prctl", "PR_SET_PDEATHSIG is sent")
def prctl_death_signal(process: Process) -> Steps:
    marker = process.buffer(8)

    def grandchild(me: Process) -> Steps:
        yield from me.measure(1, 10, expect=ZERO)
        yield from me.must("rt_sigprocmask", 0, abi.sigset(10), 0, 8)
        got = yield from me.must("rt_sigtimedwait", abi.sigset(10), 0, 0, 8)
        process.write(marker, bytes([got]))

    def child(me: Process) -> Steps:
        yield from me.fork(grandchild, 2)
        yield from me.must("nanosleep", _SLEEP, 0)

    pid = yield from process.fork(child)
    yield from process.wait(pid)
    yield from process.must("nanosleep", _SLEEP, 0)
    process.check(process.read(marker, 1) == b"\x0a", "the signal came when the parent ended")


@error("prctl", "PR_SET_VMA, names for mappings are not configured")
def prctl_vma_name(process: Process) -> Steps:
    place = yield from process.must("mmap", 0, abi.PAGE, 3, 0x22, -1, 0)
    yield from process.measure(0x53564D41, 0, place, abi.PAGE, "name", expect=fails(errno.EINVAL))


@success("prctl", "PR_SPEC_STORE_BYPASS, asked")
def prctl_speculation(process: Process) -> Steps:
    result = yield from process.measure(52, 0, 0, 0, 0)
    process.compare(result)


@success("prctl", "PR_SET_MM_MAP_SIZE")
def prctl_mm_map(process: Process) -> Steps:
    place = process.buffer(4)
    yield from process.measure(35, 15, place, 0, 0, expect=ZERO)
    process.check(process.read_int(place) == 104, "the size of struct prctl_mm_map")


# -- arch_prctl ---------------------------------------------------------------------------------------
plain("arch_prctl", "ARCH_SET_FS", (0x1002, 0x10000), ZERO)
plain("arch_prctl", "ARCH_SET_GS", (0x1001, 0x10000), ZERO)
plain("arch_prctl", "ARCH_GET_FS", (0x1003, b"\xff" * 8), ZERO, holds=bytes(8))
plain("arch_prctl", "ARCH_GET_GS", (0x1004, b"\xff" * 8), ZERO, holds=bytes(8))
plain("arch_prctl", "ARCH_GET_CPUID", (0x1011, 0), exactly(1))
plain("arch_prctl", "ARCH_SET_CPUID, a CPU that cannot", (0x1012, 0), fails(errno.ENODEV))
plain("arch_prctl", "ARCH_GET_XCOMP_SUPP", (0x1021, bytes(8)), ZERO)
plain("arch_prctl", "ARCH_GET_XCOMP_PERM", (0x1022, bytes(8)), ZERO)
plain("arch_prctl", "a kernel address", (0x1002, 0xFFFF888000000000), fails(errno.EPERM))
plain("arch_prctl", "unknown code", (0x9999, 0), fails(errno.EINVAL))
plain("arch_prctl", "bad address", (0x1003, 1), fails(errno.EFAULT))


@success("arch_prctl", "ARCH_SET_FS is kept")
def arch_prctl_kept(process: Process) -> Steps:
    yield from process.measure(0x1002, 0x7000_0000_1234, expect=ZERO)
    yield from process.must("nanosleep", _SLEEP, 0)
    place = process.buffer(8)
    yield from process.must("arch_prctl", 0x1003, place)
    process.check(process.read_int(place, 8) == 0x7000_0000_1234, "the base after a sleep")


def _fails_unsigned(number: int) -> Expect:
    """modify_ldt's result is cut to 32 bits and not sign-extended (arch/x86/kernel/ldt.c)."""
    return Expect(lambda result: result == (1 << 32) - number, errno.errorcode[number], is_error=True)


# -- modify_ldt: struct user_desc is entry, base, limit, flags ----------------------------------------
_DATA_SEGMENT = struct.pack("<4I", 3, 0x1000, 0xFFFFF, 0x51)
plain("modify_ldt", "read: there is none", (0, bytes(64), 64), ZERO)
plain("modify_ldt", "read the default", (2, b"\xff" * 64, 64), POSITIVE)
plain("modify_ldt", "write, the old way", (1, _DATA_SEGMENT, 16), ZERO)
plain("modify_ldt", "write", (0x11, _DATA_SEGMENT, 16), ZERO)
for _name, _ldt_args, _number in (
    ("unknown function", (5, 0, 0), errno.ENOSYS),
    ("write, wrong size", (0x11, _DATA_SEGMENT, 12), errno.EINVAL),
    ("write, bad address", (0x11, 1, 16), errno.EFAULT),
    ("write, no such entry", (0x11, struct.pack("<4I", 8192, 0, 0, 0x51), 16), errno.EINVAL),
):
    plain("modify_ldt", _name, _ldt_args, _fails_unsigned(_number))


@success("modify_ldt", "read what was written")
def modify_ldt_read(process: Process) -> Steps:
    yield from process.must("modify_ldt", 0x11, _DATA_SEGMENT, 16)
    place = process.buffer(64)
    yield from process.measure(0, place, 64, expect=exactly(64))
    # Base 0x1000, limit 0xFFFFF in pages, a writable data segment of 32 bits.
    process.check(process.read(place, 32) == bytes(24) + struct.pack("<Q", 0x00DFF3001000FFFF), "the descriptor")


# -- robust lists -------------------------------------------------------------------------------------
plain("set_robust_list", "an empty list", (bytes(24), 24), ZERO)
plain("set_robust_list", "wrong size", (bytes(24), 16), fails(errno.EINVAL))
plain("get_robust_list", "no such thread", (30000, bytes(8), bytes(8)), fails(errno.ESRCH))
plain("get_robust_list", "bad address", (0, 1, 1), fails(errno.EFAULT))


@success("get_robust_list", "own")
def get_robust_list(process: Process) -> Steps:
    head, where, size = process.buffer(24), process.buffer(8), process.buffer(8)
    yield from process.must("set_robust_list", head, 24)
    yield from process.measure(0, where, size, expect=ZERO)
    process.check((process.read_int(where, 8), process.read_int(size, 8)) == (head, 24), "what was set")


@success("set_robust_list", "a held lock is marked when its owner dies")
def robust_owner_dies(process: Process) -> Steps:
    lock = process.buffer(64)

    def child(me: Process) -> Steps:
        tid = yield from me.must("gettid")
        me.write(lock + 32, struct.pack("<I", tid | 0x80000000))  # FUTEX_WAITERS
        head = me.buffer(24)
        me.write(head, struct.pack("<QqQ", lock, 32, 0))
        me.write(lock, struct.pack("<Q", head))
        yield from me.measure(head, 24, expect=ZERO)

    pid = yield from process.fork(child)
    yield from process.wait(pid)
    process.check(process.read_int(lock + 32) & 0xFFFFFFFF == 0xC0000000, "FUTEX_OWNER_DIED and FUTEX_WAITERS")


# -- restartable sequences and barriers ---------------------------------------------------------------
_RSEQ_BYTES, _SIGNATURE = 32, 0x53053053
plain("rseq", "not aligned", (8, _RSEQ_BYTES, 0, _SIGNATURE), fails(errno.EINVAL))
plain("rseq", "unknown flag", (0, _RSEQ_BYTES, 2, _SIGNATURE), fails(errno.EINVAL, errno.EFAULT))
plain("rseq", "unregister what is not registered", (0, _RSEQ_BYTES, 1, _SIGNATURE), fails(errno.EINVAL))


@success("rseq", "register; the kernel writes the CPU")
def rseq_register(process: Process) -> Steps:
    place = process.buffer(struct.pack("<IIQIIII", 0, 0xFFFFFFFF, 0, 0, 0, 0, 0))
    yield from process.measure(place, _RSEQ_BYTES, 0, _SIGNATURE, expect=ZERO)
    process.check(process.read(place, 8) == bytes(8), "CPU 0, twice")


@success("rseq", "unregister")
def rseq_unregister(process: Process) -> Steps:
    place = process.buffer(_RSEQ_BYTES)
    yield from process.must("rseq", place, _RSEQ_BYTES, 0, _SIGNATURE)
    yield from process.measure(place, _RSEQ_BYTES, 1, _SIGNATURE, expect=ZERO)


@error("rseq", "twice")
def rseq_twice(process: Process) -> Steps:
    place = process.buffer(_RSEQ_BYTES)
    yield from process.must("rseq", place, _RSEQ_BYTES, 0, _SIGNATURE)
    yield from process.measure(place, _RSEQ_BYTES, 0, _SIGNATURE, expect=fails(errno.EBUSY))


plain("membarrier", "MEMBARRIER_CMD_QUERY", (0, 0, 0), POSITIVE)
for _name, _command in (
    ("GLOBAL", 1),
    ("GLOBAL_EXPEDITED", 2),
    ("REGISTER_GLOBAL_EXPEDITED", 4),
    ("REGISTER_PRIVATE_EXPEDITED", 16),
    ("REGISTER_PRIVATE_EXPEDITED_SYNC_CORE", 64),
    ("REGISTER_PRIVATE_EXPEDITED_RSEQ", 256),
):
    plain("membarrier", f"MEMBARRIER_CMD_{_name}", (_command, 0, 0), ZERO)
plain("membarrier", "unknown command", (3, 0, 0), fails(errno.EINVAL))
plain("membarrier", "MEMBARRIER_CMD_PRIVATE_EXPEDITED, unregistered", (8, 0, 0), fails(errno.EPERM))


@success("membarrier", "MEMBARRIER_CMD_PRIVATE_EXPEDITED")
def membarrier_private(process: Process) -> Steps:
    yield from process.must("membarrier", 16, 0, 0)
    yield from process.measure(8, 0, 0, expect=ZERO)


# -- seccomp ------------------------------------------------------------------------------------------
_LOAD_NR = struct.pack("<HBBI", 0x20, 0, 0, 0)
_ALLOW, _ERRNO_7, _KILL = 0x7FFF0000, 0x00050007, 0x80000000
_FILTER_NEW_LISTENER = 8


def _program(process: Process, nr: int, action: int) -> int:
    """A `struct sock_fprog` that does `action` at call `nr` and allows the rest."""
    code = _LOAD_NR + struct.pack("<HBBIHBBIHBBI", 0x15, 0, 1, nr, 0x06, 0, 0, action, 0x06, 0, 0, _ALLOW)
    return process.buffer(struct.pack("<H6xQ", len(code) // 8, process.buffer(code)))


@success("seccomp", "a filter")
def seccomp_filter(process: Process) -> Steps:
    yield from process.measure(1, 0, _program(process, 39, _ERRNO_7), expect=ZERO)
    result = yield from process.call("getpid")
    process.check(result == -7, "getpid fails with what the filter says")


@success("getpid", "under a seccomp filter")
def getpid_filtered(process: Process) -> Steps:
    """A call allowed whatever its arguments: since 5.11 a bitmap answers, the filter does not run."""
    yield from process.must("seccomp", 1, 0, _program(process, 110, _ERRNO_7))
    yield from process.measure(expect=POSITIVE)


@success("open", "under a seccomp filter that looks at its arguments")
def open_filtered(process: Process) -> Steps:
    """What a container's engine sets for some calls: the filter is code the kernel compiled, and runs in the call."""
    flags_low = struct.pack("<HBBI", 0x20, 0, 0, 16 + 8)
    refuse = struct.pack("<HBBIHBBIHBBI", 0x15, 0, 1, 0o2, 0x06, 0, 0, _ERRNO_7, 0x06, 0, 0, _ALLOW)
    code = _LOAD_NR + struct.pack("<HBBI", 0x15, 0, 3, 2) + flags_low + refuse
    place = process.buffer(struct.pack("<H6xQ", len(code) // 8, process.buffer(code)))
    yield from process.must("seccomp", 1, 0, place)
    refused = yield from process.call("open", "file", 2, 0)
    process.check(refused == -7, "the filter refuses O_RDWR")
    yield from process.measure("file", 0, 0, expect=AT_LEAST_0)


@error("getppid", "refused by a seccomp filter")
def getppid_filtered(process: Process) -> Steps:
    yield from process.must("seccomp", 1, 0, _program(process, 110, _ERRNO_7))
    yield from process.measure(expect=exactly(-7))


@success("seccomp", "a second filter, that kills")
def seccomp_kills(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        yield from me.must("seccomp", 1, 0, _program(me, 39, _ERRNO_7))
        yield from me.measure(1, 0, _program(me, 110, _KILL), expect=ZERO)
        yield from me.call("getppid")

    pid = yield from process.fork(child)
    yield from process.wait(pid, 31)


@success("seccomp", "strict")
def seccomp_strict(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        yield from me.measure(0, 0, 0, expect=ZERO)
        yield from me.call("getpid")

    pid = yield from process.fork(child)
    yield from process.wait(pid, 9)


@success("seccomp", "a filter with a listener")
def seccomp_listener(process: Process) -> Steps:
    yield from process.measure(1, _FILTER_NEW_LISTENER, _program(process, 39, 0x7FC00000), expect=POSITIVE)


@success("prctl", "PR_SET_SECCOMP, a filter")
def prctl_seccomp(process: Process) -> Steps:
    yield from process.measure(22, 2, _program(process, 39, _ERRNO_7), 0, 0, expect=ZERO)
    result = yield from process.call("getpid")
    process.check(result == -7, "getpid fails with what the filter says")


plain("seccomp", "is an action known", (2, 0, struct.pack("<I", _KILL)), ZERO)
plain("seccomp", "an unknown action", (2, 0, struct.pack("<I", 0x12340000)), fails(errno.EOPNOTSUPP))
plain("seccomp", "sizes of notifications", (3, 0, bytes(6)), ZERO, holds=struct.pack("<3H", 80, 24, 64))
plain("seccomp", "unknown operation", (9, 0, 0), fails(errno.EINVAL))
plain("seccomp", "bad address", (1, 0, 1), fails(errno.EFAULT))


@error("seccomp", "a filter that does not end")
def seccomp_bad_program(process: Process) -> Steps:
    program = process.buffer(struct.pack("<H6xQ", 1, process.buffer(_LOAD_NR)))
    yield from process.measure(1, 0, program, expect=fails(errno.EINVAL))


@error("seccomp", "by nobody, with privileges to gain")
def seccomp_nobody(process: Process) -> Steps:
    yield from process.must("setresuid", _NOBODY, _NOBODY, _NOBODY)
    yield from process.measure(1, 0, _program(process, 39, _ERRNO_7), expect=fails(errno.EACCES))
