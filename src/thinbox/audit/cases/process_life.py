"""The life of processes: fork, exec, exit, wait."""

import struct

from thinbox.audit.case import POSITIVE, ZERO, Steps, success
from thinbox.audit.process import SIGCHLD, Process


@success("clone", "a process")
def clone_process(process: Process) -> Steps:
    def child(_me: Process) -> Steps:
        yield from ()

    yield from process.prepare_child(child)
    pid = yield from process.measure(SIGCHLD, 0, 0, 0, 0, expect=POSITIVE)
    yield from process.wait(pid)


@success("exit_group", "with a status")
def exit_group(process: Process) -> Steps:
    yield from process.measure_last(7, status=0x700)


@success("exit", "of a child")
def exit_child(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        yield from me.measure_last(3)

    pid = yield from process.fork(child)
    yield from process.wait(pid, 0x300)


@success("execve", "a static program")
def execve_static(process: Process) -> Steps:
    path, name = process.string("/bin/busybox"), process.string("true")
    argv = process.buffer(struct.pack("<2Q", name, 0))
    yield from process.measure_last(path, argv, 0, status=0)


@success("wait4", "for a child that ends later")
def wait4_later(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        yield from me.must("nanosleep", struct.pack("<qq", 0, 5_000_000), 0)

    pid = yield from process.fork(child)
    status = process.buffer(4)
    got = yield from process.measure(pid, status, 0, 0, expect=POSITIVE)
    process.check(got == pid and process.read_int(status) == 0, "the child's pid and status")


@success("nanosleep", "5 ms")
def nanosleep(process: Process) -> Steps:
    yield from process.measure(struct.pack("<qq", 0, 5_000_000), 0, expect=ZERO)
