"""Mappings: mmap, munmap, mprotect, mremap, brk, msync, mincore, and what else arranges them."""

import errno
import os

from thinbox.audit import abi
from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.case_runner import FILE_BYTES, file_content
from thinbox.audit.expect import ADDRESS, POSITIVE, ZERO, Expect, exactly, fails
from thinbox.harness.process import Steps

_PAGE = abi.PAGE
_READ, _WRITE, _EXEC = 1, 2, 4
_RW = _READ | _WRITE
_SHARED, _PRIVATE, _FIXED, _ANONYMOUS = 1, 2, 0x10, 0x20
_GROWSDOWN, _LOCKED, _NORESERVE, _POPULATE = 0x100, 0x2000, 0x4000, 0x8000
_NONBLOCK, _STACK, _HUGETLB, _FIXED_NOREPLACE, _32BIT, _SYNC = 0x10000, 0x20000, 0x40000, 0x100000, 0x40, 0x80000
_OWN = _PRIVATE | _ANONYMOUS
_FREE = 0x5000_0000_0000
"""Nothing is mapped there."""


def _map(process: Process, pages: int = 3, protection: int = _RW, flags: int = _OWN | _POPULATE) -> Steps:
    return (yield from process.must("mmap", 0, pages * _PAGE, protection, flags, -1, 0))


def _open(process: Process, path: str = "file", flags: int = os.O_RDWR) -> Steps:
    return (yield from process.must("open", path, flags, 0))


def _copy(process: Process, vaddr: int, size: int) -> Steps:
    """What the process sees at `vaddr`, by way of a pipe: pages are made present by it."""
    ends, place = process.buffer(8), process.buffer(size)
    yield from process.must("pipe", ends)
    done = yield from process.call("write", process.read_int(ends + 4), vaddr, size)
    if done > 0:
        yield from process.must("read", process.read_int(ends), place, done)
    return done, process.read(place, max(done, 0))


# -- mmap: memory without a file ----------------------------------------------------------------------
for _name, _size, _protection, _flags in (
    ("one byte", 1, _RW, _OWN),
    ("a page", _PAGE, _RW, _OWN),
    ("128 MiB that are not touched", 128 << 20, _RW, _OWN),
    ("to read only", _PAGE, _READ, _OWN),
    ("not accessible", _PAGE, 0, _OWN),
    ("executable", _PAGE, _READ | _EXEC, _OWN),
    ("executable and writable", _PAGE, 7, _OWN),
    ("shared", 5 * _PAGE, _RW, _SHARED | _ANONYMOUS),
    ("shared, at once", 5 * _PAGE, _RW, _SHARED | _ANONYMOUS | _POPULATE),
    ("at once", 5 * _PAGE, _RW, _OWN | _POPULATE),
    ("at once, a large page", 4 << 20, _RW, _OWN | _POPULATE),
    ("at once but not waiting", _PAGE, _RW, _OWN | _POPULATE | _NONBLOCK),
    ("locked", 2 * _PAGE, _RW, _OWN | _LOCKED),
    ("not accounted", 1 << 40, _RW, _OWN | _NORESERVE),
    ("a stack that grows", 4 * _PAGE, _RW, _OWN | _GROWSDOWN | _STACK),
    ("below 2 GiB", _PAGE, _RW, _OWN | _32BIT),
):
    plain("mmap", _name, (0, _size, _protection, _flags, -1, 0), ADDRESS)
_AT_FREE = exactly(_FREE)
plain("mmap", "at an address, as a wish", (_FREE, _PAGE, _RW, _OWN, -1, 0), _AT_FREE)
plain("mmap", "at an address", (_FREE, _PAGE, _RW, _OWN | _FIXED, -1, 0), _AT_FREE)
plain("mmap", "at a free address", (_FREE, _PAGE, _RW, _OWN | _FIXED_NOREPLACE, -1, 0), _AT_FREE)
for _name, _args, _number in (
    ("nothing", (0, 0, _RW, _OWN, -1, 0), errno.EINVAL),
    ("more than memory can hold", (0, 64 << 30, _RW, _OWN, -1, 0), errno.ENOMEM),
    ("more than there is", (0, 1 << 47, _RW, _OWN, -1, 0), errno.ENOMEM),
    ("at an address that is no page's", (_FREE + 5, _PAGE, _RW, _OWN | _FIXED, -1, 0), errno.EINVAL),
    ("over the kernel's half", (0xFFFF800000000000, _PAGE, _RW, _OWN | _FIXED, -1, 0), errno.ENOMEM),
    ("the first page", (0, _PAGE, _RW, _OWN | _FIXED, -1, 0), None),
    ("neither shared nor private", (0, _PAGE, _RW, _ANONYMOUS, -1, 0), errno.EINVAL),
    ("where something is", (0x400000, _PAGE, _RW, _OWN | _FIXED_NOREPLACE, -1, 0), errno.EEXIST),
    ("not a descriptor", (0, _PAGE, _RW, _SHARED, 77, 0), errno.EBADF),
    ("an offset that is no page's", (0, _PAGE, _RW, _SHARED, 0, 5), errno.EINVAL),
    ("large pages, none are there", (0, 2 << 20, _RW, _OWN | _HUGETLB, -1, 0), errno.ENOMEM),
):
    plain("mmap", _name, _args, fails(_number) if _number else ZERO)


@success("mmap", "is zero and can be written")
def mmap_zero(process: Process) -> Steps:
    place = yield from process.measure(0, 2 * _PAGE, _RW, _OWN, -1, 0, expect=ADDRESS)
    _done, before = yield from _copy(process, place + _PAGE - 4, 8)
    handle = yield from _open(process)
    yield from process.must("pread64", handle, place + _PAGE - 4, 8, 0)
    process.check(before == bytes(8), "zeros")
    process.check(process.read(place + _PAGE - 4, 8) == b"line 000", "what was read into it, across its pages")


@success("mmap", "over another mapping")
def mmap_over(process: Process) -> Steps:
    place = yield from _map(process)
    process.write(place + _PAGE, b"old")
    yield from process.measure(place + _PAGE, _PAGE, _RW, _OWN | _FIXED, -1, 0, expect=exactly(place + _PAGE))
    _done, now = yield from _copy(process, place + _PAGE, 3)
    process.check(now == bytes(3), "zeros in place of the old page")


@success("mmap", "large pages that were set aside")
def mmap_huge(process: Process) -> Steps:
    handle = yield from _open(process, "/proc/sys/vm/nr_hugepages")
    yield from process.must("write", handle, "4", 1)
    place = yield from process.measure(0, 4 << 20, _RW, _OWN | _HUGETLB | _POPULATE, -1, 0, expect=ADDRESS)
    process.check(place % (2 << 20) == 0, "aligned to 2 MiB")


# -- mmap: files --------------------------------------------------------------------------------------
for _name, _path, _protection, _flags in (
    ("shared", "file", _RW, _SHARED),
    ("shared, at once", "file", _RW, _SHARED | _POPULATE),
    ("shared and checked", "file", _RW, 3),
    ("private", "file", _RW, _PRIVATE),
    ("private, at once", "file", _RW, _PRIVATE | _POPULATE),
    ("to read", "file", _READ, _PRIVATE),
    ("/dev/zero, private", "/dev/zero", _RW, _PRIVATE),
    ("/dev/zero, shared", "/dev/zero", _RW, _SHARED),
):

    @success("mmap", f"a file: {_name}")
    def mmap_file(process: Process, path: str = _path, protection: int = _protection, flags: int = _flags) -> Steps:
        handle = yield from _open(process, path)
        place = yield from process.measure(0, 2 * _PAGE, protection, flags, handle, 0, expect=ADDRESS)
        _done, found = yield from _copy(process, place + 4090, 12)
        process.check(found == (file_content()[4090:4102] if path == "file" else bytes(12)), "the content")


@success("mmap", "a file from an offset, past its end")
def mmap_file_offset(process: Process) -> Steps:
    handle = yield from _open(process)
    place = yield from process.measure(0, 4 * _PAGE, _READ, _SHARED, handle, 2 * _PAGE, expect=ADDRESS)
    done, found = yield from _copy(process, place, FILE_BYTES - 2 * _PAGE + 8)
    process.check(found == file_content()[2 * _PAGE :] + bytes(8) and done, "the rest, then zeros")
    past, _found = yield from _copy(process, place + 3 * _PAGE, 8)
    process.check(past == -errno.EFAULT, "nothing behind the last page")


@success("mmap", "a program, to execute")
def mmap_program(process: Process) -> Steps:
    handle = yield from _open(process, "/bin/busybox", os.O_RDONLY)
    yield from process.measure(0, 16 * _PAGE, _READ | _EXEC, _PRIVATE, handle, 0, expect=ADDRESS)


@success("mmap", "a memfd, shared with a child")
def mmap_memfd(process: Process) -> Steps:
    handle = yield from process.must("memfd_create", "shared", 0)
    yield from process.must("ftruncate", handle, 2 * _PAGE)
    source = yield from _open(process)
    place = yield from process.measure(0, 2 * _PAGE, _RW, _SHARED, handle, 0, expect=ADDRESS)

    def child(me: Process) -> Steps:
        yield from me.must("pread64", source, place, 10, 0)

    pid = yield from process.fork(child)
    yield from process.wait(pid)
    _done, found = yield from _copy(process, place, 10)
    process.check(found == b"line 00000", "what the child wrote")


@error("mmap", "a file to write, opened to read")
def mmap_file_access(process: Process) -> Steps:
    handle = yield from _open(process, "file", os.O_RDONLY)
    yield from process.measure(0, _PAGE, _RW, _SHARED, handle, 0, expect=fails(errno.EACCES))


@error("mmap", "a folder")
def mmap_folder(process: Process) -> Steps:
    handle = yield from _open(process, "dir", os.O_RDONLY)
    yield from process.measure(0, _PAGE, _READ, _PRIVATE, handle, 0, expect=fails(errno.ENODEV))


@error("mmap", "a pipe")
def mmap_pipe(process: Process) -> Steps:
    ends = process.buffer(8)
    yield from process.must("pipe", ends)
    yield from process.measure(0, _PAGE, _READ, _PRIVATE, process.read_int(ends), 0, expect=fails(errno.ENODEV))


@error("mmap", "over the limit of the address space")
def mmap_limit(process: Process) -> Steps:
    yield from process.must("setrlimit", 9, (8 << 20).to_bytes(8, "little") * 2)
    yield from process.measure(0, 16 << 20, _RW, _OWN, -1, 0, expect=fails(errno.ENOMEM))


# -- munmap, mprotect ---------------------------------------------------------------------------------
for _name, _first, _count in (("all", 0, 3), ("the middle", 1, 1), ("the end and what is not there", 2, 5)):

    @success("munmap", _name)
    def munmap(process: Process, first: int = _first, count: int = _count) -> Steps:
        place = yield from _map(process)
        yield from process.measure(place + first * _PAGE, count * _PAGE, expect=ZERO)
        gone = yield from process.call("mincore", place + first * _PAGE, _PAGE, process.buffer(8))
        process.check(gone == -errno.ENOMEM, "nothing is mapped there")


plain("munmap", "nothing is there", (_FREE, _PAGE), ZERO)
plain("munmap", "not a page's address", (_FREE + 1, _PAGE), fails(errno.EINVAL))
plain("munmap", "no length", (_FREE, 0), fails(errno.EINVAL))
for _name, _protection, _result in (
    ("not accessible", 0, -errno.EFAULT),
    ("to read", _READ, 8),
    ("to read and execute", _READ | _EXEC, 8),
    ("to read and write", _RW, 8),
):
    for _call, _more in (("mprotect", ()), ("pkey_mprotect", (-1,))):

        @success(_call, _name)
        def mprotect(
            process: Process, protection: int = _protection, result: int = _result, more: tuple[int, ...] = _more
        ) -> Steps:
            place = yield from _map(process)
            yield from process.measure(place + _PAGE, _PAGE, protection, *more, expect=ZERO)
            done, _found = yield from _copy(process, place + _PAGE, 8)
            process.check(done == result, "what may be done with the page now")


for _call, _more in (("mprotect", ()), ("pkey_mprotect", (-1,))):
    plain(_call, "nothing is there", (_FREE, _PAGE, _READ, *_more), fails(errno.ENOMEM))
    plain(_call, "not a page's address", (_FREE + 1, _PAGE, _READ, *_more), fails(errno.EINVAL))
    plain(_call, "unknown protection", (0x400000, _PAGE, 0x100, *_more), fails(errno.EINVAL))
plain("pkey_mprotect", "a key that is not there", (0x400000, _PAGE, _READ, 5), fails(errno.EINVAL))


@error("mprotect", "a file opened to read, to be written")
def mprotect_file(process: Process) -> Steps:
    handle = yield from _open(process, "file", os.O_RDONLY)
    place = yield from process.must("mmap", 0, _PAGE, _READ, _SHARED, handle, 0)
    yield from process.measure(place, _PAGE, _RW, expect=fails(errno.EACCES))


@success("mprotect", "its own code, copied on a write")
def mprotect_code(process: Process) -> Steps:
    yield from process.measure(0x400000, _PAGE, 7, expect=ZERO)
    handle = yield from _open(process)
    yield from process.must("pread64", handle, 0x400000 + 1000, 10, 0)
    process.check(process.read(0x400000 + 1000, 10) == b"line 00000", "the page can be written")


# -- mremap: address, old size, new size, flags (1 may move, 2 to an address, 4 leave the old one), address
for _name, _old, _new, _flags in (("larger, moved if need be", 3, 20, 1), ("smaller", 3, 1, 0), ("the same", 3, 3, 0)):

    @success("mremap", _name)
    def mremap(process: Process, old: int = _old, new: int = _new, flags: int = _flags) -> Steps:
        place = yield from _map(process)
        process.write(place, b"content")
        now = yield from process.measure(place, old * _PAGE, new * _PAGE, flags, 0, expect=ADDRESS)
        process.check(process.read(now, 7) == b"content", "the content")


@success("mremap", "to an address")
def mremap_fixed(process: Process) -> Steps:
    place = yield from _map(process)
    process.write(place, b"content")
    yield from process.measure(place, 3 * _PAGE, 3 * _PAGE, 3, _FREE, expect=exactly(_FREE))
    process.check(process.read(_FREE, 7) == b"content", "the content")


@success("mremap", "the pages only, the old mapping stays")
def mremap_dontunmap(process: Process) -> Steps:
    place = yield from _map(process)
    process.write(place, b"content")
    now = yield from process.measure(place, 3 * _PAGE, 3 * _PAGE, 5, 0, expect=ADDRESS)
    _done, old = yield from _copy(process, place, 7)
    process.check(process.read(now, 7) == b"content" and old == bytes(7), "moved, and zeros where it was")


@error("mremap", "larger where there is no room")
def mremap_no_room(process: Process) -> Steps:
    place = yield from _map(process)
    yield from process.measure(place, _PAGE, 2 * _PAGE, 0, 0, expect=fails(errno.ENOMEM))


plain("mremap", "nothing is there", (_FREE, _PAGE, 2 * _PAGE, 1, 0), fails(errno.EFAULT))
plain("mremap", "not a page's address", (_FREE + 1, _PAGE, _PAGE, 1, 0), fails(errno.EINVAL))
plain("mremap", "unknown flags", (0x400000, _PAGE, _PAGE, 8, 0), fails(errno.EINVAL))

# -- brk ----------------------------------------------------------------------------------------------
plain("brk", "ask", (0,), POSITIVE)
plain("brk", "far too high: stays", (1 << 50,), Expect(lambda result: 0 < result < 1 << 47, "where it was"))
for _name, _bytes in (("a page more", _PAGE), ("one byte more", 1), ("1 MiB more", 1 << 20)):

    @success("brk", _name)
    def brk(process: Process, more: int = _bytes) -> Steps:
        start = yield from process.must("brk", 0)
        yield from process.measure(start + more, expect=exactly(start + more))
        _done, found = yield from _copy(process, start, 1)
        process.check(found == b"\0", "the memory is there")


@success("brk", "less")
def brk_less(process: Process) -> Steps:
    start = yield from process.must("brk", 0)
    yield from process.must("brk", start + 5 * _PAGE)
    yield from process.measure(start + _PAGE, expect=exactly(start + _PAGE))


# -- msync, mincore -----------------------------------------------------------------------------------
for _name, _flags in (("MS_ASYNC", 1), ("MS_INVALIDATE", 2), ("MS_SYNC", 4)):

    @success("msync", _name)
    def msync(process: Process, flags: int = _flags) -> Steps:
        handle = yield from _open(process)
        place = yield from process.must("mmap", 0, 2 * _PAGE, _RW, _SHARED | _POPULATE, handle, 0)
        process.write(place, b"LINE")
        yield from process.measure(place, 2 * _PAGE, flags, expect=ZERO)


plain("msync", "nothing is there", (_FREE, _PAGE, 4), fails(errno.ENOMEM))
plain("msync", "now and later", (0x400000, _PAGE, 5), fails(errno.EINVAL))
plain("msync", "not a page's address", (1, _PAGE, 4), fails(errno.EINVAL))


@success("mincore", "touched and untouched pages")
def mincore(process: Process) -> Steps:
    place = yield from _map(process, 3, _RW, _OWN)
    yield from process.must("pread64", (yield from _open(process)), place + _PAGE, 10, 0)
    answer = process.buffer(3)
    yield from process.measure(place, 3 * _PAGE, answer, expect=ZERO)
    process.check(process.read(answer, 3) == b"\0\1\0", "only the middle one is resident")


plain("mincore", "nothing is there", (_FREE, _PAGE, bytes(1)), fails(errno.ENOMEM))
plain("mincore", "not a page's address", (1, _PAGE, bytes(1)), fails(errno.EINVAL))
plain("mincore", "bad address", (0x400000, _PAGE, 1), fails(errno.EFAULT))


# -- the order of a file's pages, changed -------------------------------------------------------------
@success("remap_file_pages", "the first page shows the second")
def remap_file_pages(process: Process) -> Steps:
    handle = yield from _open(process)
    place = yield from process.must("mmap", 0, 2 * _PAGE, _RW, _SHARED, handle, 0)
    yield from process.measure(place, _PAGE, 0, 1, 0, expect=ZERO)
    _done, found = yield from _copy(process, place, 12)
    process.check(found == file_content()[_PAGE : _PAGE + 12], "the file's second page")


plain("remap_file_pages", "nothing is there", (_FREE, _PAGE, 0, 0, 0), fails(errno.EINVAL))
plain("remap_file_pages", "with a protection", (0x400000, _PAGE, 1, 0, 0), fails(errno.EINVAL))
