"""How memory is used: advice, locks, NUMA policies, faults handled in user space.

The machine has one memory node.
"""

import errno
import os
import struct

from thinbox.audit import abi
from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.case_runner import file_content
from thinbox.audit.expect import POSITIVE, ZERO, exactly, fails
from thinbox.audit.files import filled_pipe
from thinbox.harness.process import Steps

_PAGE = abi.PAGE
_RW = 3
_SHARED, _OWN, _SHARED_ANONYMOUS, _POPULATE = 1, 0x22, 0x21, 0x8000
_FREE = 0x5000_0000_0000
_NOBODY = 65534
_SLEEP = abi.timespec(0, 5 * abi.MILLISECOND)

NOT_EXERCISED: dict[str, str] = {
    "pkey_alloc": "ENOSPC: the CPU has no protection keys (OSPKE), and without them mm_pkey_alloc returns -1 at once "
    "(arch/x86/include/asm/pkeys.h, and so in the live text)",
    "pkey_free": "EINVAL: no key can be allocated (see pkey_alloc), so none can be freed (mm_pkey_free, "
    "arch/x86/include/asm/pkeys.h)",
}


def _map(process: Process, pages: int = 3, flags: int = _OWN | _POPULATE) -> Steps:
    return (yield from process.must("mmap", 0, pages * _PAGE, _RW, flags, -1, 0))


def _residents(process: Process, vaddr: int, pages: int) -> Steps:
    place = process.buffer(pages)
    yield from process.must("mincore", vaddr, pages * _PAGE, place)
    return bytes(value & 1 for value in process.read(place, pages))


def _waits_for_ever(me: Process) -> Steps:
    yield from me.must("pause")


# -- madvise ------------------------------------------------------------------------------------------
_ADVICE = {
    "NORMAL": 0,
    "RANDOM": 1,
    "SEQUENTIAL": 2,
    "WILLNEED": 3,
    "DONTNEED": 4,
    "FREE": 8,
    "DONTFORK": 10,
    "DOFORK": 11,
    "MERGEABLE": 12,
    "UNMERGEABLE": 13,
    "HUGEPAGE": 14,
    "NOHUGEPAGE": 15,
    "DONTDUMP": 16,
    "DODUMP": 17,
    "WIPEONFORK": 18,
    "KEEPONFORK": 19,
    "COLD": 20,
    "PAGEOUT": 21,
    "POPULATE_READ": 22,
    "POPULATE_WRITE": 23,
    "DONTNEED_LOCKED": 24,
}
for _name, _advice in _ADVICE.items():

    @success("madvise", f"MADV_{_name}")
    def madvise(process: Process, advice: int = _advice) -> Steps:
        place = yield from _map(process)
        process.write(place + _PAGE, b"content")
        yield from process.measure(place, 3 * _PAGE, advice, expect=ZERO)
        residents = yield from _residents(process, place, 3)
        gone = advice in (4, 24)
        process.check(residents == (bytes(3) if gone else b"\1\1\1"), "what is resident now")


for _name, _advice in (("DONTNEED", 4), ("WILLNEED", 3), ("REMOVE", 9), ("COLD", 20), ("PAGEOUT", 21)):

    @success("madvise", f"MADV_{_name}, shared memory")
    def madvise_shared(process: Process, advice: int = _advice) -> Steps:
        place = yield from _map(process, 3, _SHARED_ANONYMOUS | _POPULATE)
        yield from process.measure(place, 3 * _PAGE, advice, expect=ZERO)


@success("madvise", "MADV_WILLNEED, a file")
def madvise_file(process: Process) -> Steps:
    handle = yield from process.must("open", "file", os.O_RDONLY, 0)
    place = yield from process.must("mmap", 0, 2 * _PAGE, 1, 2, handle, 0)
    yield from process.measure(place, 2 * _PAGE, 3, expect=ZERO)


@success("madvise", "MADV_HUGEPAGE, then one is made")
def madvise_huge(process: Process) -> Steps:
    place = yield from process.must("mmap", 0, 8 << 20, _RW, _OWN, -1, 0)
    aligned = (place + (2 << 20) - 1) & ~((2 << 20) - 1)
    yield from process.measure(aligned, 4 << 20, 14, expect=ZERO)
    yield from process.must("madvise", aligned, 4 << 20, 23)
    residents = yield from _residents(process, aligned, 512)
    process.check(residents == b"\1" * 512, "a whole large page is resident")


@success("madvise", "MADV_COLLAPSE")
def madvise_collapse(process: Process) -> Steps:
    place = yield from process.must("mmap", 0, 8 << 20, _RW, _OWN, -1, 0)
    aligned = (place + (2 << 20) - 1) & ~((2 << 20) - 1)
    yield from process.must("madvise", aligned, 2 << 20, 15)
    yield from process.must("madvise", aligned, 2 << 20, 23)
    yield from process.must("madvise", aligned, 2 << 20, 14)
    yield from process.measure(aligned, 2 << 20, 25, expect=ZERO)


plain("madvise", "nothing is there", (_FREE, _PAGE, 0), fails(errno.ENOMEM))
plain("madvise", "unknown advice", (0x400000, _PAGE, 99), fails(errno.EINVAL))
plain("madvise", "not a page's address", (1, _PAGE, 0), fails(errno.EINVAL))


@success("process_madvise", "MADV_COLD, a child's memory")
def process_madvise(process: Process) -> Steps:
    place = yield from _map(process)
    pid = yield from process.fork(_waits_for_ever)
    handle = yield from process.must("pidfd_open", pid, 0)
    yield from process.measure(handle, abi.iovec((place, 3 * _PAGE)), 1, 20, 0, expect=exactly(3 * _PAGE))


@success("process_madvise", "MADV_PAGEOUT, its own memory in two pieces")
def process_madvise_own(process: Process) -> Steps:
    place, own = (yield from _map(process)), (yield from process.must("getpid"))
    handle = yield from process.must("pidfd_open", own, 0)
    pieces = abi.iovec((place, _PAGE), (place + 2 * _PAGE, _PAGE))
    yield from process.measure(handle, pieces, 2, 21, 0, expect=exactly(2 * _PAGE))


@error("process_madvise", "advice that is not for others")
def process_madvise_dontneed(process: Process) -> Steps:
    handle = yield from process.must("pidfd_open", 1, 0)
    yield from process.measure(handle, abi.iovec((0x400000, _PAGE)), 1, 4, 0, expect=fails(errno.EINVAL))


plain("process_madvise", "not a descriptor", (77, bytes(16), 1, 20, 0), fails(errno.EBADF))
plain("process_madvise", "unknown flags", (0, bytes(16), 1, 20, 1), fails(errno.EINVAL))


@success("process_mrelease", "of a child that is being killed")
def process_mrelease(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        yield from _map(me, 50)
        yield from me.must("pause")

    pid = yield from process.fork(child)
    yield from process.must("nanosleep", _SLEEP, 0)
    handle = yield from process.must("pidfd_open", pid, 0)
    yield from process.must("kill", pid, 9)
    yield from process.measure(handle, 0, expect=ZERO)


@error("process_mrelease", "of a child that goes on")
def process_mrelease_alive(process: Process) -> Steps:
    pid = yield from process.fork(_waits_for_ever)
    handle = yield from process.must("pidfd_open", pid, 0)
    yield from process.measure(handle, 0, expect=fails(errno.EINVAL))


plain("process_mrelease", "not a descriptor", (77, 0), fails(errno.EBADF))
plain("process_mrelease", "unknown flags", (0, 1), fails(errno.EINVAL))

# -- locks --------------------------------------------------------------------------------------------
for _call, _more in (("mlock", ()), ("mlock2", (0,))):

    @success(_call, "untouched pages: they are resident then")
    def mlock(process: Process, more: tuple[int, ...] = _more) -> Steps:
        place = yield from _map(process, 3, _OWN)
        yield from process.measure(place + 5, 2 * _PAGE, *more, expect=ZERO)
        residents = yield from _residents(process, place, 3)
        process.check(residents == b"\1\1\1", "all three, for the bytes reach into the third")

    plain(_call, "nothing is there", (_FREE, _PAGE, *_more), fails(errno.ENOMEM))

    @error(_call, "over the limit, by nobody")
    def mlock_limit(process: Process, more: tuple[int, ...] = _more) -> Steps:
        place = yield from _map(process, 3, _OWN)
        yield from process.must("setrlimit", 8, struct.pack("<2Q", _PAGE, _PAGE))
        yield from process.must("setresuid", _NOBODY, _NOBODY, _NOBODY)
        yield from process.measure(place, 3 * _PAGE, *more, expect=fails(errno.ENOMEM))


@success("mlock2", "on fault: nothing is resident yet")
def mlock2_onfault(process: Process) -> Steps:
    place = yield from _map(process, 3, _OWN)
    yield from process.measure(place, 3 * _PAGE, 1, expect=ZERO)
    residents = yield from _residents(process, place, 3)
    process.check(residents == bytes(3), "none")


@success("munlock", "locked pages")
def munlock(process: Process) -> Steps:
    place = yield from _map(process)
    yield from process.must("mlock", place, 3 * _PAGE)
    yield from process.measure(place, 3 * _PAGE, expect=ZERO)


plain("mlock2", "unknown flags", (0x400000, _PAGE, 2), fails(errno.EINVAL))
plain("munlock", "nothing is there", (_FREE, _PAGE), fails(errno.ENOMEM))
for _name, _flags in (("all there is", 1), ("all to come", 2), ("all, on fault", 5)):
    plain("mlockall", _name, (_flags,), ZERO)
plain("mlockall", "nothing", (0,), fails(errno.EINVAL))
plain("mlockall", "on fault only", (4,), fails(errno.EINVAL))
plain("munlockall", "nothing was locked", (), ZERO)


@success("munlockall", "all was locked")
def munlockall(process: Process) -> Steps:
    yield from process.must("mlockall", 3)
    yield from process.measure(expect=ZERO)


@error("mlockall", "by nobody, over the limit")
def mlockall_limit(process: Process) -> Steps:
    yield from process.must("setrlimit", 8, struct.pack("<2Q", _PAGE, _PAGE))
    yield from process.must("setresuid", _NOBODY, _NOBODY, _NOBODY)
    yield from process.measure(1, expect=fails(errno.ENOMEM))


# -- NUMA: mode, mask of nodes, bits of it + 1 --------------------------------------------------------
_NODE_0, _NODE_1, _BITS = struct.pack("<Q", 1), struct.pack("<Q", 2), 64
_MODES = {"DEFAULT": 0, "PREFERRED": 1, "BIND": 2, "INTERLEAVE": 3, "LOCAL": 4, "PREFERRED_MANY": 5}
for _name, _mode in _MODES.items():
    _mask = bytes(8) if _name in ("DEFAULT", "LOCAL") else _NODE_0

    @success("set_mempolicy", f"MPOL_{_name}")
    def set_mempolicy(process: Process, mode: int = _mode, mask: bytes = _mask) -> Steps:
        yield from process.measure(mode, mask, _BITS, expect=ZERO)
        place = process.buffer(4)
        yield from process.must("get_mempolicy", place, 0, 0, 0, 0)
        process.check(process.read_int(place) == mode, "the policy")

    @success("mbind", f"MPOL_{_name}")
    def mbind(process: Process, mode: int = _mode, mask: bytes = _mask) -> Steps:
        place = yield from _map(process)
        yield from process.measure(place, 3 * _PAGE, mode, mask, _BITS, 0, expect=ZERO)


@success("mbind", "MPOL_BIND, moving what is there")
def mbind_move(process: Process) -> Steps:
    place = yield from _map(process)
    yield from process.measure(place, 3 * _PAGE, 2, _NODE_0, _BITS, 3, expect=ZERO)


@success("get_mempolicy", "of an address")
def get_mempolicy_address(process: Process) -> Steps:
    place, mode = (yield from _map(process)), process.buffer(4)
    yield from process.must("mbind", place, 3 * _PAGE, 2, _NODE_0, _BITS, 0)
    yield from process.measure(mode, process.buffer(8), _BITS, place, 2, expect=ZERO)
    process.check(process.read_int(mode) == 2, "MPOL_BIND")


@success("get_mempolicy", "the node of a page")
def get_mempolicy_node(process: Process) -> Steps:
    place, node = (yield from _map(process)), process.buffer(b"\xff" * 4)
    yield from process.measure(node, 0, 0, place, 3, expect=ZERO)
    process.check(process.read_int(node) == 0, "node 0")


plain("get_mempolicy", "own", (b"\xff" * 4, 0, 0, 0, 0), ZERO, holds=bytes(4))
plain("get_mempolicy", "nodes that are allowed", (0, bytes(128), 1024, 0, 4), ZERO, holds=_NODE_0 + bytes(120))
plain("get_mempolicy", "unknown flags", (0, 0, 0, 0, 8), fails(errno.EINVAL))
plain("get_mempolicy", "of an address that is not there", (0, 0, 0, _FREE, 2), fails(errno.EFAULT))
plain("set_mempolicy", "a node that is not there", (2, _NODE_1, _BITS), fails(errno.EINVAL))
plain("set_mempolicy", "no such mode", (99, 0, 0), fails(errno.EINVAL))
plain("set_mempolicy", "bad address", (2, 1, _BITS), fails(errno.EFAULT))
plain("mbind", "a node that is not there", (0x400000, _PAGE, 2, _NODE_1, _BITS, 0), fails(errno.EINVAL))
plain("mbind", "nothing is there", (_FREE, _PAGE, 2, _NODE_0, _BITS, 0), fails(errno.EFAULT))
plain("set_mempolicy_home_node", "no such node", (0x400000, _PAGE, 5, 0), fails(errno.EINVAL))
plain("set_mempolicy_home_node", "no policy there", (0x400000, _PAGE, 0, 0), fails(errno.ENOENT))


@success("set_mempolicy_home_node", "of a mapping that is bound")
def home_node(process: Process) -> Steps:
    place = yield from _map(process)
    yield from process.must("mbind", place, 3 * _PAGE, 2, _NODE_0, _BITS, 0)
    yield from process.measure(place, 3 * _PAGE, 0, 0, expect=ZERO)


plain("migrate_pages", "own, from the only node to it", (0, _BITS, _NODE_0, _NODE_0), ZERO)
plain("migrate_pages", "no such process", (30000, _BITS, _NODE_0, _NODE_0), fails(errno.ESRCH))
plain("migrate_pages", "to a node that is not there", (0, _BITS, _NODE_0, _NODE_1), fails(errno.EINVAL))


@success("move_pages", "asks where pages are")
def move_pages_ask(process: Process) -> Steps:
    place = yield from _map(process)
    pages = process.buffer(struct.pack("<3Q", place, place + _PAGE, _FREE))
    status = process.buffer(b"\xff" * 12)
    yield from process.measure(0, 3, pages, 0, status, 0, expect=ZERO)
    process.check(process.read(status, 12) == struct.pack("<3i", 0, 0, -errno.EFAULT), "node 0, node 0, nowhere")


@success("move_pages", "to the node where they are")
def move_pages(process: Process) -> Steps:
    place = yield from _map(process)
    pages, status = struct.pack("<2Q", place, place + _PAGE), process.buffer(b"\xff" * 8)
    yield from process.measure(0, 2, pages, bytes(8), status, 2, expect=ZERO)
    process.check(process.read(status, 8) == bytes(8), "node 0")


plain("move_pages", "no such process", (30000, 1, bytes(8), 0, bytes(4), 0), fails(errno.ESRCH))
plain(
    "move_pages",
    "to a node that is not there",
    (0, 1, struct.pack("<Q", 0x400000), struct.pack("<i", 7), bytes(4), 2),
    fails(errno.ENODEV),
)
plain("move_pages", "unknown flags", (0, 1, bytes(8), 0, bytes(4), 64), fails(errno.EINVAL))

# -- faults handled in user space ---------------------------------------------------------------------
_UFFDIO_API, _UFFDIO_REGISTER, _UFFDIO_COPY = 0xC018AA3F, 0xC020AA00, 0xC028AA03
plain("userfaultfd", "plain", (0,), POSITIVE)
plain("userfaultfd", "closed on exec, not blocking", (os.O_CLOEXEC | os.O_NONBLOCK,), POSITIVE)
plain("userfaultfd", "of user faults only", (1,), POSITIVE)
plain("userfaultfd", "unknown flags", (2,), fails(errno.EINVAL))


@success("userfaultfd", "a thread fills a page another one waits for")
def userfaultfd(process: Process) -> Steps:
    place = yield from _map(process, 1, _OWN)
    handle = yield from process.measure(0, expect=POSITIVE)
    yield from process.must("ioctl", handle, _UFFDIO_API, process.buffer(struct.pack("<3Q", 0xAA, 0, 0)))
    yield from process.must("ioctl", handle, _UFFDIO_REGISTER, process.buffer(struct.pack("<4Q", place, _PAGE, 1, 0)))
    content = yield from _map(process, 1)
    process.write(content, file_content()[:_PAGE])

    def thread(me: Process) -> Steps:
        message = me.buffer(32)
        yield from me.must("read", handle, message, 32)
        process.check(me.read(message, 1) == b"\x12", "UFFD_EVENT_PAGEFAULT")
        process.check(me.read_int(message + 16, 8) == place, "the address of the fault")
        yield from me.must("ioctl", handle, _UFFDIO_COPY, me.buffer(struct.pack("<5Q", place, content, _PAGE, 0, 0)))

    yield from process.fork(thread, flags=abi.THREAD)
    ends, copy = process.buffer(8), process.buffer(16)
    yield from process.must("pipe", ends)
    yield from process.must("write", process.read_int(ends + 4), place, 10)
    yield from process.must("read", process.read_int(ends), copy, 10)
    process.check(process.read(copy, 10) == b"line 00000", "what the thread put there")


@success("memfd_secret", "memory that is mapped and written")
def memfd_secret(process: Process) -> Steps:
    tried = yield from process.call("memfd_secret", 0)
    process.needs(
        tried >= 0,
        "ENOSYS: before 6.5 secretmem_enable is false unless the kernel is started with secretmem.enable=1 "
        "(mm/secretmem.c, SYSCALL_DEFINE1(memfd_secret))",
    )
    handle = yield from process.measure(0)
    yield from process.must("ftruncate", handle, _PAGE)
    place = yield from process.must("mmap", 0, _PAGE, _RW, _SHARED, handle, 0)
    ends = yield from filled_pipe(process, b"a secret")
    yield from process.must("read", ends[0], place, 8)
    process.check(process.read(place, 8) == b"a secret", "it holds what was written")


# -- what is not there on this machine, refused as it should be ---------------------------------------
plain("memfd_secret", "unknown flags", (1,), fails(errno.ENOSYS, errno.EINVAL))
plain("pkey_alloc", "a CPU without keys", (0, 0), fails(errno.ENOSPC, errno.EINVAL))
plain("pkey_alloc", "unknown flags", (1, 0), fails(errno.EINVAL))
plain("pkey_free", "a key that is not there", (1,), fails(errno.EINVAL))
