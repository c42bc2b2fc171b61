"""A tenant that holds the lock of its own output for ever holds nobody else up."""

import pytest
from tests.support.debian_rootfs import rootfs_folder
from thinbox.session.session import Session, TenantSpec

HOLDS = """
import os, socket
here, there = socket.socketpair()
there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100)
os.write(1, b"before")
here.send(b"x" * 10)
os.splice(there.fileno(), 1, 4096)
"""


@pytest.fixture
def beside(guest):
    def start(*specs):
        session = Session.apart(guest, specs)
        session.start()
        return session

    return start


def test_a_neighbour_ends_while_the_other_sleeps_with_its_pipes_lock(beside):
    session = beside(
        TenantSpec("holds", ("/usr/bin/python3", "-c", HOLDS), rootfs=rootfs_folder("python3"), isolate="none"),
        TenantSpec("works", ("sh", "-c", "sleep 2; seq 20000 | md5sum; echo done"), isolate="none"),
    )
    works = session.tenants["works"]
    ended_in_time = session.go_on(lambda: works.io.wait_status is not None or session.machine.now_ns > 60 * 10**9)
    assert not ended_in_time and works.io.wait_status == 0
    session.go_on(lambda: b"done" in works._output[1] or session.machine.now_ns > 90 * 10**9)
    assert bytes(works._output[1]).endswith(b"done\n")
    holds = session.tenants["holds"]
    in_splice = [
        state for state in session.enforcer.tasks.values() if state.call and state.call.record.name == "splice"
    ]
    assert holds.io.wait_status is None and len(in_splice) == 1, "it does not hold its pipe: the test shows nothing"


def test_what_a_tenant_writes_last_and_what_it_reads_come_through(guest, beside):
    big = b"line of input\n" * 20_000
    session = beside(
        TenantSpec(
            "a",
            ("sh", "-c", "md5sum; dd if=/dev/zero bs=65536 count=9 2>/dev/null | tr '\\0' x; echo end >&2"),
            stdin=big,
        ),
        TenantSpec("b", ("sh", "-c", "exec <&-; echo early"), stdin=big),
    )
    session.go_on()
    found = session.finish()
    import hashlib

    text = hashlib.md5(big).hexdigest().encode() + b"  -\n"
    assert found["a"].stdout == text + b"x" * (9 << 16) and found["a"].stderr == b"end\n"
    assert (found["b"].exit_code, found["b"].stdout) == (0, b"early\n")
