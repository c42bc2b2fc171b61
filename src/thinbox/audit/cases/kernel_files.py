"""Files that are the kernel itself: proc, sysfs, cgroups, tracing, and the small file systems."""

import errno
import re

from thinbox.audit.case import error, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import POSITIVE, ZERO, either, exactly, fails
from thinbox.audit.files import (
    CLONE_NEWNS,
    O_CREAT,
    O_RDWR,
    O_WRONLY,
    PAGE,
    make_file,
    map_pages,
    open_file,
    read_back,
    rest,
    timespec,
)
from thinbox.harness.process import Steps

CLONE_NEWUSER = 0x10000000

# -- read ------------------------------------------------------------------------------------------------
for _path, _pattern in (
    ("/proc/cpuinfo", rb"processor\t: 0\n"),
    ("/proc/meminfo", rb"MemTotal: +\d+ kB\n"),
    ("/proc/loadavg", rb"\d+\.\d\d \d+\.\d\d "),
    ("/proc/vmstat", rb"nr_free_pages \d+\n"),
    ("/proc/zoneinfo", rb"Node 0, zone"),
    ("/proc/buddyinfo", rb"Node 0, zone"),
    ("/proc/pagetypeinfo", rb"Page block order: 9"),
    ("/proc/vmallocinfo", rb"0x[0-9a-f]+-0x[0-9a-f]+ "),
    ("/proc/iomem", rb"00000000-00000fff : Reserved"),
    ("/proc/ioports", rb"0000-"),
    ("/proc/devices", rb"Character devices:\n"),
    ("/proc/misc", rb" *\d+ "),
    ("/proc/crypto", rb"name  "),
    ("/proc/timer_list", rb"Timer List Version"),
    ("/proc/softirqs", rb" +CPU0"),
    ("/proc/cgroups", rb"#subsys_name"),
    ("/proc/key-users", rb" +0:"),
    ("/proc/schedstat", rb"version \d+\n"),
    ("/proc/diskstats", rb"$"),
    ("/proc/net/dev", rb"Inter-\|"),
    ("/proc/net/tcp", rb"  sl  local_address"),
    ("/proc/net/unix", rb"Num "),
    ("/proc/net/route", rb"Iface\t"),
    ("/proc/net/netlink", rb"sk  "),
    ("/proc/net/snmp", rb"Ip: "),
    ("/proc/tty/drivers", rb"/dev/tty "),
    ("/proc/sys/fs/file-nr", rb"\d+\t\d+\t\d+\n"),
    ("/proc/sys/kernel/random/uuid", rb"[0-9a-f]{8}-"),
    ("/proc/self/status", rb"Name:\tinit\n"),
    ("/proc/self/smaps", rb"00400000-00401000 r-xp "),
    ("/proc/self/smaps_rollup", rb"00400000-"),
    ("/proc/self/mountinfo", rb"\d+ \d+ 0:\d+ / / "),
    ("/proc/self/mountstats", rb"device rootfs"),
    ("/proc/self/limits", rb"Limit "),
    ("/proc/self/statm", rb"\d+ \d+ "),
    ("/proc/self/io", rb"rchar: \d+\n"),
    ("/proc/self/sched", rb"init \(\d+, #threads: 1\)"),
    ("/proc/self/stack", rb"\[<0>\] "),
    ("/proc/self/wchan", rb"0"),
    ("/proc/self/cgroup", rb"$|0::/"),
    ("/proc/self/auxv", rb"\x21"),
    ("/proc/self/syscall", rb"running|0 0x"),
    ("/proc/1/status", rb"Name:\tinit\n"),
    ("/proc/1/stack", rb"\[<0>\] "),
    # 0: it sleeps, but its dequeue was put off (6.12, kernel/sched/fair.c, sched_delayed; get_wchan looks at on_rq).
    ("/proc/1/wchan", rb"do_wait|0$"),
    ("/proc/1/syscall", rb"61 0x"),
    ("/proc/kcore", rb"\x7fELF"),
    ("/sys/kernel/vmcoreinfo", rb"0x[0-9a-f]+ "),
    ("/sys/kernel/uevent_seqnum", rb"\d+\n"),
    ("/sys/devices/system/cpu/online", rb"0\n"),
    ("/sys/devices/system/cpu/vulnerabilities/meltdown", rb"Not affected|Mitigation|Vulnerable"),
    ("/sys/devices/system/memory/block_size_bytes", rb"8000000\n"),
    ("/sys/devices/system/clocksource/clocksource0/current_clocksource", rb"\w+"),
    ("/sys/devices/system/node/node0/meminfo", rb"\s*Node 0 MemTotal:"),
    ("/sys/class/net/lo/mtu", rb"65536\n"),
    ("/sys/class/net/lo/address", rb"00:00:00:00:00:00\n"),
    ("/sys/class/tty/ttyS0/dev", rb"4:64\n"),
    ("/sys/kernel/btf/vmlinux", rb"\x9f\xeb\x01"),
    ("/sys/module/kernel/parameters/panic", rb"-?\d+\n"),
):

    @success("read", f"{_path}, its beginning")
    def read_kernel_file(process: Process, path: str = _path, pattern: bytes = _pattern) -> Steps:
        handle = yield from open_file(process, path)
        place = process.buffer(PAGE)
        process.volatile(place, PAGE)
        count = yield from process.measure(handle, place, PAGE)
        process.check(re.match(pattern, process.read(place, count)), f"it matches {pattern!r}")


# -- write -----------------------------------------------------------------------------------------------
for _path, _data, _found in (
    ("/proc/sys/kernel/sched_schedstats", b"1\n", b"1\n"),  # flips a static key: the kernel patches its text
    ("/proc/sys/kernel/bpf_stats_enabled", b"1\n", b"1\n"),
    ("/proc/sys/kernel/task_delayacct", b"1\n", b"1\n"),
    ("/proc/sys/kernel/core_pattern", b"core.%p\n", b"core.%p\n"),
    ("/proc/sys/kernel/pid_max", b"4000\n", b"4000\n"),
    ("/proc/sys/kernel/printk", b"3 4 1 7\n", b"3\t4\t1\t7\n"),
    ("/proc/sys/net/ipv4/ip_forward", b"1\n", b"1\n"),
    ("/proc/sys/net/core/somaxconn", b"99\n", b"99\n"),
    ("/proc/sys/vm/overcommit_memory", b"2\n", b"2\n"),
    ("/proc/sys/vm/min_free_kbytes", b"5000\n", b"5000\n"),
    ("/proc/sys/vm/nr_hugepages", b"2\n", b"2\n"),
    ("/proc/sys/fs/file-max", b"5000\n", b"5000\n"),
    ("/proc/self/timerslack_ns", b"70000", b"70000\n"),
    ("/sys/class/net/lo/mtu", b"1500\n", b"1500\n"),
    ("/sys/kernel/mm/ksm/run", b"1\n", b"1\n"),
    ("/sys/module/printk/parameters/time", b"N\n", b"N\n"),
):

    @success("write", f"{_path}, set")
    def set_kernel_file(process: Process, path: str = _path, data: bytes = _data, found: bytes = _found) -> Steps:
        handle = yield from open_file(process, path, O_WRONLY)
        yield from process.measure(handle, data, len(data), expect=exactly(len(data)))
        now = yield from read_back(process, path)
        process.check(now == found, f"it reads {found!r} (found {now!r})")


for _path, _data in (
    ("/proc/sysrq-trigger", b"h"),
    ("/proc/sys/vm/compact_memory", b"1"),
    ("/proc/sys/vm/stat_refresh", b"1"),
    ("/proc/sys/net/ipv4/route/flush", b"1"),
    ("/sys/class/tty/ttyS0/uevent", b"change\n"),
):

    @success("write", f"{_path}, done at once")
    def trigger(process: Process, path: str = _path, data: bytes = _data) -> Steps:
        handle = yield from open_file(process, path, O_WRONLY)
        yield from process.measure(handle, data, len(data), expect=exactly(len(data)))


# -- memory through proc ---------------------------------------------------------------------------------
@success("pread64", "/proc/self/mem")
def read_memory(process: Process) -> Steps:
    handle = yield from open_file(process, "/proc/self/mem")
    source, place = process.buffer(b"memory" * 1000), process.buffer(6000)
    yield from process.measure(handle, place, 6000, source, expect=exactly(6000))
    process.check(process.read(place, 6000) == b"memory" * 1000, "the bytes")


@success("pwrite64", "/proc/self/mem, pages never touched")
def write_memory(process: Process) -> Steps:
    handle = yield from open_file(process, "/proc/self/mem", O_RDWR)
    place = yield from map_pages(process, 2)
    yield from process.measure(handle, b"across", 6, place + PAGE - 3, expect=exactly(6))
    process.check(process.read(place + PAGE - 3, 6) == b"across", "the bytes")


@success("pwrite64", "/proc/self/mem, the program's own text")
def write_text(process: Process) -> Steps:
    handle = yield from open_file(process, "/proc/self/mem", O_RDWR)
    yield from process.measure(handle, b"\x7f", 1, 0x400000, expect=either(exactly(1), fails(errno.EIO)))


@error("pread64", "/proc/self/mem, nothing is mapped there")
def read_no_memory(process: Process) -> Steps:
    handle = yield from open_file(process, "/proc/self/mem")
    yield from process.measure(handle, process.buffer(8), 8, PAGE, expect=fails(errno.EIO))


@success("pread64", "/proc/self/pagemap")
def read_pagemap(process: Process) -> Steps:
    handle, place = (yield from open_file(process, "/proc/self/pagemap")), process.buffer(8)
    process.volatile(place, 8)
    yield from process.measure(handle, place, 8, 0x400 * 8, expect=exactly(8))
    process.check(process.read_int(place, 8) < 0, "the page is present")


@success("pread64", "/proc/kpageflags")
def read_page_flags(process: Process) -> Steps:
    handle, place = (yield from open_file(process, "/proc/kpageflags")), process.buffer(64)
    process.volatile(place, 64)
    yield from process.measure(handle, place, 64, 0x1000 * 8, expect=exactly(64))


@success("write", "/proc/self/uid_map of a new user name space")
def write_uid_map(process: Process) -> Steps:
    yield from process.must("unshare", CLONE_NEWUSER | CLONE_NEWNS)
    handle = yield from open_file(process, "/proc/self/uid_map", O_WRONLY)
    yield from process.measure(handle, b"0 0 1\n", 6, expect=exactly(6))
    process.check((yield from process.must("getuid")) == 0, "root again")


# -- control groups --------------------------------------------------------------------------------------
def _group(process: Process) -> Steps:
    """Mount cgroup2 on `dir`."""
    yield from process.must("mount", "none", "dir", "cgroup2", 0, 0)
    yield from process.must("mkdir", "dir/one", 0o755)


@success("mkdir", "cgroup2, a group")
def make_group(process: Process) -> Steps:
    yield from process.must("mount", "none", "dir", "cgroup2", 0, 0)
    yield from process.measure("dir/one", 0o755, expect=ZERO)
    yield from process.must("access", "dir/one/cgroup.procs", 6)


@success("rmdir", "cgroup2, a group")
def remove_group(process: Process) -> Steps:
    yield from _group(process)
    yield from process.measure("dir/one", expect=ZERO)


@error("rmdir", "cgroup2, a group with a process")
def remove_used_group(process: Process) -> Steps:
    yield from _group(process)
    handle = yield from open_file(process, "dir/one/cgroup.procs", O_WRONLY)
    yield from process.must("write", handle, b"0", 1)
    yield from process.measure("dir/one", expect=fails(errno.EBUSY))


@success("write", "cgroup2, a process joins")
def join_group(process: Process) -> Steps:
    yield from _group(process)
    handle = yield from open_file(process, "dir/one/cgroup.procs", O_WRONLY)
    yield from process.measure(handle, b"0", 1, expect=exactly(1))
    pid = yield from process.must("getpid")
    process.check((yield from read_back(process, "dir/one/cgroup.procs")) == b"%d\n" % pid, "it is in the group")


@success("write", "cgroup2, controllers handed down")
def hand_down(process: Process) -> Steps:
    yield from _group(process)
    handle = yield from open_file(process, "dir/cgroup.subtree_control", O_WRONLY)
    yield from process.measure(handle, b"+pids +memory", 13, expect=exactly(13))
    yield from process.must("access", "dir/one/pids.max", 6)


@success("write", "cgroup2, a group is killed")
def kill_group(process: Process) -> Steps:
    yield from _group(process)

    def child(me: Process) -> Steps:
        yield from me.must("write", (yield from open_file(me, "dir/one/cgroup.procs", O_WRONLY)), b"0", 1)
        yield from rest(me, 500)

    pid = yield from process.fork(child)
    yield from rest(process)
    handle = yield from open_file(process, "dir/one/cgroup.kill", O_WRONLY)
    yield from process.measure(handle, b"1", 1, expect=exactly(1))
    yield from process.wait(pid, 9)


# -- tracing ---------------------------------------------------------------------------------------------
def _trace(process: Process, path: str, data: bytes = b"") -> Steps:
    """Mount tracefs on `dir`, open `path` in it and write `data`; its value is the descriptor."""
    yield from process.must("mount", "none", "dir", "tracefs", 0, 0)
    handle = yield from open_file(process, f"dir/{path}", O_RDWR)
    if data:
        yield from process.must("write", handle, data, len(data))
    return handle


@success("write", "tracefs, an event on: the kernel patches its text")
def trace_event(process: Process) -> Steps:
    handle = yield from _trace(process, "events/sched/sched_process_fork/enable")
    yield from process.measure(handle, b"1", 1, expect=exactly(1))

    def child(_me: Process) -> Steps:
        yield from ()

    yield from process.wait((yield from process.fork(child)))
    found = yield from read_back(process, "dir/trace", 8192)
    process.check(b"sched_process_fork: comm=init" in found, "the fork was traced")


@success("write", "tracefs, an event off")
def trace_event_off(process: Process) -> Steps:
    handle = yield from _trace(process, "events/sched/sched_process_fork/enable", b"1")
    yield from process.measure(handle, b"0", 1, expect=exactly(1))


@success("write", "tracefs, a line")
def trace_marker(process: Process) -> Steps:
    yield from process.must("mount", "none", "dir", "tracefs", 0, 0)
    handle = yield from open_file(process, "dir/trace_marker", O_WRONLY)
    yield from process.measure(handle, b"marked\n", 7, expect=exactly(7))
    process.check(b"marked" in (yield from read_back(process, "dir/trace", 8192)), "it is in the trace")


@success("write", "tracefs, a probe: the kernel patches its text")
def trace_probe(process: Process) -> Steps:
    handle = yield from _trace(process, "kprobe_events", b"p:audit __x64_sys_getuid\n")
    yield from process.must("close", handle)
    handle = yield from open_file(process, "dir/events/kprobes/audit/enable", O_WRONLY)
    yield from process.measure(handle, b"1", 1, expect=exactly(1))
    yield from process.must("getuid")
    # The place has the name that the kernel finds first, and lies behind an `endbr64` where there is one.
    hit = re.search(rb"audit: \(__(x64|do)_sys_getuid\+0x[04]/", (yield from read_back(process, "dir/trace", 8192)))
    process.check(hit is not None, "it was hit")


@success("read", "tracefs, what can be traced")
def trace_events(process: Process) -> Steps:
    yield from process.must("mount", "none", "dir", "tracefs", 0, 0)
    handle = yield from open_file(process, "dir/available_events")
    yield from process.measure(handle, process.buffer(PAGE), PAGE, expect=POSITIVE)


@success("getuid", "with a probe on it")
def traced_probe(process: Process) -> Steps:
    handle = yield from _trace(process, "kprobe_events", b"p:audit __x64_sys_getuid\n")
    yield from process.must("close", handle)
    handle = yield from open_file(process, "dir/events/kprobes/audit/enable", O_WRONLY)
    yield from process.must("write", handle, b"1", 1)
    yield from process.measure(expect=ZERO)
    # The place has the name that the kernel finds first, and lies behind an `endbr64` where there is one.
    hit = re.search(rb"audit: \(__(x64|do)_sys_getuid\+0x[04]/", (yield from read_back(process, "dir/trace", 8192)))
    process.check(hit is not None, "it was hit")


@success("getuid", "with every system call traced")
def traced_calls(process: Process) -> Steps:
    yield from _trace(process, "events/raw_syscalls/enable", b"1")
    yield from process.measure(expect=ZERO)
    process.check(b"sys_enter: NR 102 (" in (yield from read_back(process, "dir/trace", 8192)), "it was traced")


@success("nanosleep", "with task switches traced")
def traced_switches(process: Process) -> Steps:
    yield from _trace(process, "events/sched/sched_switch/enable", b"1")
    yield from process.measure(timespec(0, 5_000_000), 0, expect=ZERO)
    process.check(b"sched_switch: prev_comm=init" in (yield from read_back(process, "dir/trace", 8192)), "traced")


# -- the small file systems ------------------------------------------------------------------------------
for _type in ("ramfs", "devtmpfs"):

    @success("write", f"{_type}, a new file")
    def write_small(process: Process, kind: str = _type) -> Steps:
        yield from process.must("mount", "none", "dir", kind, 0, 0)
        handle = yield from open_file(process, "dir/new", O_CREAT | O_WRONLY)
        yield from process.measure(handle, process.buffer(b"x" * 5000), 5000, expect=exactly(5000))
        process.check((yield from read_back(process, "dir/new", 8192)) == b"x" * 5000, "the bytes")

    @success("open", f"{_type}, a new file")
    def open_small(process: Process, kind: str = _type) -> Steps:
        yield from process.must("mount", "none", "dir", kind, 0, 0)
        yield from process.measure("dir/new", O_CREAT | O_WRONLY, 0o600, expect=POSITIVE)

    @success("unlink", f"{_type}, a file of two pages")
    def unlink_small(process: Process, kind: str = _type) -> Steps:
        yield from process.must("mount", "none", "dir", kind, 0, 0)
        yield from make_file(process, "dir/new", bytes(2 * PAGE))
        yield from process.measure("dir/new", expect=ZERO)

    @success("fsync", f"{_type}, after a write")
    def fsync_small(process: Process, kind: str = _type) -> Steps:
        yield from process.must("mount", "none", "dir", kind, 0, 0)
        handle = yield from open_file(process, "dir/new", O_CREAT | O_WRONLY)
        yield from process.must("write", handle, b"x", 1)
        yield from process.measure(handle, expect=ZERO)


@success("fallocate", "hugetlbfs, a huge page")
def allocate_huge(process: Process) -> Steps:
    handle = yield from open_file(process, "/proc/sys/vm/nr_hugepages", O_WRONLY)
    yield from process.must("write", handle, b"1", 1)
    yield from process.must("mount", "none", "dir", "hugetlbfs", 0, 0)
    handle = yield from open_file(process, "dir/new", O_CREAT | O_RDWR)
    yield from process.measure(handle, 0, 0, 2 << 20, expect=ZERO)


@success("open", "mqueue, a queue's file")
def open_queue(process: Process) -> Steps:
    yield from process.must("mount", "none", "dir", "mqueue", 0, 0)
    yield from process.measure("dir/queue", O_CREAT | O_RDWR, 0o600, expect=POSITIVE)


@success("mkdir", "bpf")
def mkdir_bpf(process: Process) -> Steps:
    yield from process.must("mount", "none", "dir", "bpf", 0, 0)
    yield from process.measure("dir/new", 0o755, expect=ZERO)
