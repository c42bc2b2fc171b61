"""Code and data that the kernel takes in: modules and BPF."""

import errno
import os
import struct

from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import POSITIVE, ZERO, fails
from thinbox.audit.kernel_module import build_module
from thinbox.harness.process import Steps
from thinbox.kernel.module_file import find_module_file

_NOBODY = 65534
_NAME = "audited"


def _by_nobody(call: str, *args: int | str | bytes) -> None:
    @error(call, "by nobody")
    def body(process: Process) -> Steps:
        yield from process.must("setresuid", _NOBODY, _NOBODY, _NOBODY)
        yield from process.measure(*args, expect=fails(errno.EPERM))


# -- modules ------------------------------------------------------------------------------------------
def _module_file(process: Process, *, has_code: bool = False) -> Steps:
    """A descriptor of a file that holds a module."""
    content = build_module(find_module_file(process.facts), _NAME, has_code=has_code)
    handle = yield from process.must("open", "module", os.O_CREAT | os.O_WRONLY, 0o644)
    yield from process.must("write", handle, process.buffer(content), len(content))
    yield from process.must("close", handle)
    return (yield from process.must("open", "module", os.O_RDONLY, 0))


def _is_loaded(process: Process) -> Steps:
    return (yield from process.call("access", f"/sys/module/{_NAME}", 0)) == 0


for _title, _has_code in (("without code", False), ("with code that runs", True)):

    @success("init_module", _title)
    def init_module(process: Process, has_code: bool = _has_code) -> Steps:
        content = build_module(find_module_file(process.facts), _NAME, has_code=has_code)
        yield from process.measure(process.buffer(content), len(content), "", expect=ZERO)
        process.check((yield from _is_loaded(process)), "the module in /sys/module")

    @success("finit_module", _title)
    def finit_module(process: Process, has_code: bool = _has_code) -> Steps:
        handle = yield from _module_file(process, has_code=has_code)
        yield from process.measure(handle, "", 0, expect=ZERO)
        process.check((yield from _is_loaded(process)), "the module in /sys/module")

    @success("delete_module", _title)
    def delete_module(process: Process, has_code: bool = _has_code) -> Steps:
        handle = yield from _module_file(process, has_code=has_code)
        yield from process.must("finit_module", handle, "", 0)
        yield from process.measure(_NAME, os.O_NONBLOCK, expect=ZERO)
        process.check(not (yield from _is_loaded(process)), "no module in /sys/module")


@error("init_module", "a second time")
def init_module_twice(process: Process) -> Steps:
    content = build_module(find_module_file(process.facts), _NAME, has_code=False)
    place = process.buffer(content)
    yield from process.must("init_module", place, len(content), "")
    yield from process.measure(place, len(content), "", expect=fails(errno.EEXIST))


@error("init_module", "damaged")
def init_module_damaged(process: Process) -> Steps:
    content = bytearray(build_module(find_module_file(process.facts), _NAME, has_code=False))
    content[0x28:0x30] = struct.pack("<Q", 1 << 40)  # The section headers are elsewhere.
    yield from process.measure(process.buffer(bytes(content)), len(content), "", expect=fails(errno.ENOEXEC))


@error("finit_module", "a file that is none")
def finit_module_text(process: Process) -> Steps:
    handle = yield from process.must("open", "file", os.O_RDONLY, 0)
    yield from process.measure(handle, "", 0, expect=fails(errno.ENOEXEC))


plain("init_module", "not a module", (bytes(100), 100, ""), fails(errno.ENOEXEC))
plain("init_module", "bad address", (1, 100, ""), fails(errno.EFAULT))
plain("finit_module", "not a descriptor", (77, "", 0), fails(errno.EBADF))
plain("finit_module", "unknown flags", (0, "", 8), fails(errno.EINVAL))
plain("delete_module", "no such module", ("nothing", 0), fails(errno.ENOENT))
plain("delete_module", "bad address", (1, 0), fails(errno.EFAULT))
_by_nobody("init_module", bytes(100), 100, "")
_by_nobody("finit_module", 0, "", 0)
_by_nobody("delete_module", "nothing", 0)

# -- BPF maps -----------------------------------------------------------------------------------------
_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE, _NEXT_KEY, _PROG_LOAD = range(6)
_PIN, _GET, _ATTACH, _DETACH, _TEST_RUN, _NEXT_PROG, _NEXT_MAP = 6, 7, 8, 9, 10, 11, 12
_PROG_BY_ID, _MAP_BY_ID, _INFO, _QUERY, _RAW_TRACEPOINT, _LOOKUP_DELETE, _FREEZE = 13, 14, 15, 16, 17, 21, 22
_LOOKUP_BATCH, _UPDATE_BATCH, _LINK_CREATE, _STATS = 24, 26, 28, 32
_ATTR_BYTES = 128
_MAP_TYPES = {
    "HASH": (1, 4, 8),
    "ARRAY": (2, 4, 8),
    "PERF_EVENT_ARRAY": (4, 4, 4),
    "PERCPU_HASH": (5, 4, 8),
    "PERCPU_ARRAY": (6, 4, 8),
    "STACK_TRACE": (7, 4, 64),
    "LRU_HASH": (9, 4, 8),
    "DEVMAP": (14, 4, 4),
    "SOCKMAP": (15, 4, 4),
    "CPUMAP": (16, 4, 4),
    "XSKMAP": (17, 4, 4),
    "QUEUE": (22, 0, 8),
    "STACK": (23, 0, 8),
    "RINGBUF": (27, 0, 0),
}


def _attr(layout: str, *values: int | bytes) -> bytes:
    """A `union bpf_attr` that begins with these values."""
    return struct.pack("<" + layout, *values).ljust(_ATTR_BYTES, b"\0")


def _map_attr(kind: int, key_bytes: int, value_bytes: int, flags: int = 0) -> bytes:
    entries = 4096 if kind == 27 else 4
    return _attr("7I16s", kind, key_bytes, value_bytes, entries, flags, 0, 0, b"case")


for _title, (_kind, _key_bytes, _value_bytes) in _MAP_TYPES.items():
    plain("bpf", f"BPF_MAP_CREATE, {_title}", (0, _map_attr(_kind, _key_bytes, _value_bytes), _ATTR_BYTES), POSITIVE)
plain("bpf", "BPF_MAP_CREATE, an array without values", (0, _map_attr(2, 4, 0), _ATTR_BYTES), fails(errno.EINVAL))
plain("bpf", "BPF_MAP_CREATE, no such type", (0, _map_attr(99, 4, 8), _ATTR_BYTES), fails(errno.EINVAL))
plain("bpf", "unknown command", (99, bytes(_ATTR_BYTES), _ATTR_BYTES), fails(errno.EINVAL))
plain("bpf", "bad address", (0, 1, _ATTR_BYTES), fails(errno.EFAULT))
plain("bpf", "attributes longer than known", (0, b"\1" * 2000, 2000), fails(errno.E2BIG))
plain("bpf", "BPF_MAP_GET_NEXT_ID, none", (_NEXT_MAP, _attr("I", 1 << 20), _ATTR_BYTES), fails(errno.ENOENT))
plain("bpf", "BPF_PROG_GET_FD_BY_ID, none", (_PROG_BY_ID, _attr("I", 1 << 20), _ATTR_BYTES), fails(errno.ENOENT))
plain("bpf", "BPF_ENABLE_STATS", (_STATS, _attr("I", 0), _ATTR_BYTES), POSITIVE)
_by_nobody("bpf", _MAP_CREATE, _map_attr(1, 4, 8), _ATTR_BYTES)


def _filled_map(process: Process, kind: int = 1) -> Steps:
    """A map with key 1, its descriptor, and the places of a key and a value."""
    handle = yield from process.must("bpf", _MAP_CREATE, _map_attr(kind, 4, 8), _ATTR_BYTES)
    key, value = process.buffer(struct.pack("<I", 1)), process.buffer(b"contents")
    yield from process.must("bpf", _UPDATE, _attr("I4xQQQ", handle, key, value, 0), _ATTR_BYTES)
    return handle, key, value


for _title, _kind in (("HASH", 1), ("ARRAY", 2), ("LRU_HASH", 9), ("PERCPU_HASH", 5)):

    @success("bpf", f"BPF_MAP_LOOKUP_ELEM, {_title}")
    def bpf_lookup(process: Process, kind: int = _kind) -> Steps:
        handle, key, _value = yield from _filled_map(process, kind)
        place = process.buffer(8)
        yield from process.measure(_LOOKUP, _attr("I4xQQQ", handle, key, place, 0), _ATTR_BYTES, expect=ZERO)
        process.check(process.read(place, 8) == b"contents", "the value")

    @success("bpf", f"BPF_MAP_UPDATE_ELEM, {_title}")
    def bpf_update(process: Process, kind: int = _kind) -> Steps:
        handle, key, value = yield from _filled_map(process, kind)
        process.write(value, b"replaced")
        yield from process.measure(_UPDATE, _attr("I4xQQQ", handle, key, value, 2), _ATTR_BYTES, expect=ZERO)
        yield from process.must("bpf", _LOOKUP, _attr("I4xQQQ", handle, key, value, 0), _ATTR_BYTES)
        process.check(process.read(value, 8) == b"replaced", "the new value")


@success("bpf", "BPF_MAP_DELETE_ELEM")
def bpf_delete(process: Process) -> Steps:
    handle, key, value = yield from _filled_map(process)
    yield from process.measure(_DELETE, _attr("I4xQQQ", handle, key, 0, 0), _ATTR_BYTES, expect=ZERO)
    gone = yield from process.call("bpf", _LOOKUP, _attr("I4xQQQ", handle, key, value, 0), _ATTR_BYTES)
    process.check(gone == -errno.ENOENT, "the key is gone")


@success("bpf", "BPF_MAP_GET_NEXT_KEY")
def bpf_next_key(process: Process) -> Steps:
    handle, _key, _value = yield from _filled_map(process)
    place = process.buffer(8)
    yield from process.measure(_NEXT_KEY, _attr("I4xQQQ", handle, 0, place, 0), _ATTR_BYTES, expect=ZERO)
    process.check(process.read_int(place) == 1, "the only key")


@success("bpf", "BPF_MAP_LOOKUP_AND_DELETE_ELEM")
def bpf_lookup_delete(process: Process) -> Steps:
    handle, key, _value = yield from _filled_map(process)
    place = process.buffer(8)
    yield from process.measure(_LOOKUP_DELETE, _attr("I4xQQQ", handle, key, place, 0), _ATTR_BYTES, expect=ZERO)
    process.check(process.read(place, 8) == b"contents", "the value")


@success("bpf", "BPF_MAP_FREEZE")
def bpf_freeze(process: Process) -> Steps:
    handle, key, value = yield from _filled_map(process)
    yield from process.measure(_FREEZE, _attr("I", handle), _ATTR_BYTES, expect=ZERO)
    refused = yield from process.call("bpf", _UPDATE, _attr("I4xQQQ", handle, key, value, 0), _ATTR_BYTES)
    process.check(refused == -errno.EPERM, "no more changes")


@success("bpf", "BPF_OBJ_GET_INFO_BY_FD, a map")
def bpf_map_info(process: Process) -> Steps:
    handle, _key, _value = yield from _filled_map(process)
    place = process.buffer(88)
    yield from process.measure(_INFO, _attr("IIQ", handle, 88, place), _ATTR_BYTES, expect=ZERO)
    found = struct.unpack("<6I", process.read(place, 24))
    process.check(found[0] == 1 and found[2:5] == (4, 8, 4), "type, sizes, entries")


@success("bpf", "BPF_MAP_GET_NEXT_ID and BPF_MAP_GET_FD_BY_ID")
def bpf_map_id(process: Process) -> Steps:
    yield from _filled_map(process)
    attr = process.buffer(_attr("I", 0))
    yield from process.must("bpf", _NEXT_MAP, attr, _ATTR_BYTES)
    number = process.read_int(attr + 4)
    yield from process.measure(_MAP_BY_ID, _attr("I", number), _ATTR_BYTES, expect=POSITIVE)


@success("bpf", "BPF_OBJ_PIN and BPF_OBJ_GET")
def bpf_pin(process: Process) -> Steps:
    yield from process.must("mount", "bpf", "dir", "bpf", 0, 0)
    handle, _key, _value = yield from _filled_map(process)
    path = process.string("dir/map")
    yield from process.must("bpf", _PIN, _attr("QI", path, handle), _ATTR_BYTES)
    yield from process.measure(_GET, _attr("QI", path, 0), _ATTR_BYTES, expect=POSITIVE)


# -- BPF programs -------------------------------------------------------------------------------------
_RETURN_7 = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 7, 0x95, 0, 0, 0)
_NO_END = struct.pack("<BBhi", 0xB7, 0, 0, 7)
_PROGRAM_TYPES = {
    "SOCKET_FILTER": 1,
    "KPROBE": 2,
    "SCHED_CLS": 3,
    "TRACEPOINT": 5,
    "XDP": 6,
    "PERF_EVENT": 7,
    "RAW_TRACEPOINT": 17,
}


def _load_attr(process: Process, kind: int, code: bytes, *, log: int = 0) -> bytes:
    insns, licence = process.buffer(code), process.string("GPL")
    level, log_bytes = (1, 1024) if log else (0, 0)
    return _attr("IIQQIIQ", kind, len(code) // 8, insns, licence, level, log_bytes, log)


for _title, _kind in _PROGRAM_TYPES.items():

    @success("bpf", f"BPF_PROG_LOAD, {_title}")
    def bpf_load(process: Process, kind: int = _kind) -> Steps:
        yield from process.measure(_PROG_LOAD, _load_attr(process, kind, _RETURN_7), _ATTR_BYTES, expect=POSITIVE)


for _title, _kind in (("SOCKET_FILTER", 1), ("SCHED_CLS", 3), ("XDP", 6)):

    @success("bpf", f"BPF_PROG_TEST_RUN, {_title}")
    def bpf_run(process: Process, kind: int = _kind) -> Steps:
        handle = yield from process.must("bpf", _PROG_LOAD, _load_attr(process, kind, _RETURN_7), _ATTR_BYTES)
        packet, place = process.buffer(bytes(64)), process.buffer(64)
        attr = process.buffer(_attr("4IQQ", handle, 0, 64, 64, packet, place))
        process.volatile(attr + 36, 4)  # How long it took.
        yield from process.measure(_TEST_RUN, attr, _ATTR_BYTES, expect=ZERO)
        process.check(process.read_int(attr + 4) == 7, "what the program returns")


@success("bpf", "BPF_PROG_GET_NEXT_ID")
def bpf_next_program(process: Process) -> Steps:
    yield from process.must("bpf", _PROG_LOAD, _load_attr(process, 1, _RETURN_7), _ATTR_BYTES)
    attr = process.buffer(_attr("I", 0))
    yield from process.measure(_NEXT_PROG, attr, _ATTR_BYTES, expect=ZERO)
    process.check(process.read_int(attr + 4) > 0, "an id")


@success("setsockopt", "SO_ATTACH_BPF: a packet is cut")
def attach_bpf(process: Process) -> Steps:
    program = yield from process.must("bpf", _PROG_LOAD, _load_attr(process, 1, _RETURN_7), _ATTR_BYTES)
    pair = process.buffer(8)
    yield from process.must("socketpair", 1, 2, 0, pair)
    yield from process.measure(process.read_int(pair + 4), 1, 50, struct.pack("<i", program), 4, expect=ZERO)
    yield from process.must("write", process.read_int(pair), "0123456789", 10)
    got = yield from process.must("read", process.read_int(pair + 4), process.buffer(16), 16)
    process.check(got == 7, "7 bytes, as the program says")


@error("bpf", "BPF_PROG_LOAD, a program that does not end")
def bpf_no_end(process: Process) -> Steps:
    log = process.buffer(1024)
    attr = _load_attr(process, 1, _NO_END, log=log)
    yield from process.measure(_PROG_LOAD, attr, _ATTR_BYTES, expect=fails(errno.EINVAL))
    process.check(process.read(log, 100).strip(b"\0"), "the verifier says why")


plain(
    "bpf",
    "BPF_PROG_LOAD, no such type",
    (_PROG_LOAD, _attr("IIQQ", 99, 1, 0x400000, 0x400000), _ATTR_BYTES),
    fails(errno.EINVAL),
)
