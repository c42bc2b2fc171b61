"""Who the process is: ids, groups, sessions, names."""

import errno

from thinbox.audit.case import POSITIVE, ZERO, Steps, error, fails, plain, success
from thinbox.audit.process import Process

plain("getpid", "plain", (), POSITIVE)
plain("getppid", "plain", (), POSITIVE)
plain("getuid", "plain", (), ZERO)


@success("uname", "into a buffer")
def uname(process: Process) -> Steps:
    place = process.buffer(390)
    yield from process.measure(place, expect=ZERO)
    process.check(process.read(place, 5) == b"Linux", "the system is called Linux")


@error("uname", "bad address")
def uname_bad(process: Process) -> Steps:
    yield from process.measure(1, expect=fails(errno.EFAULT))
