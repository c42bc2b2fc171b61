"""Keys and keyrings. Serial numbers are random, so results that are such numbers may differ between the runs."""

import errno

from thinbox.audit import abi
from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import POSITIVE, ZERO, exactly, fails
from thinbox.harness.process import Steps

_THREAD, _PROCESS, _SESSION, _USER, _USER_SESSION = -1, -2, -3, -4, -5
_ALL = 0x3F3F3F3F
_NOBODY = 65534
_GET_ID, _JOIN, _UPDATE, _REVOKE, _CHOWN, _SETPERM, _DESCRIBE, _CLEAR, _LINK, _UNLINK, _SEARCH, _READ = range(12)
_SET_REQKEY, _TIMEOUT, _ASSUME, _SECURITY, _TO_PARENT, _INVALIDATE, _PERSISTENT = 14, 15, 16, 17, 18, 21, 22
_RESTRICT, _MOVE, _CAPABILITIES = 29, 30, 31


def _key(process: Process, text: bytes = b"secret", ring: int = _PROCESS, name: str = "key") -> Steps:
    return (yield from process.must("add_key", "user", name, text, len(text), ring))


def _ring(process: Process) -> Steps:
    return (yield from process.must("add_key", "keyring", "ring", 0, 0, _PROCESS))


for _name, _ring_id in (("thread", _THREAD), ("process", _PROCESS), ("session", _SESSION), ("user", _USER)):
    plain("add_key", f"to the {_name}'s keyring", ("user", "key", "secret", 6, _ring_id), POSITIVE, varies=True)
    plain("keyctl", f"KEYCTL_GET_KEYRING_ID, {_name}", (_GET_ID, _ring_id, 1), POSITIVE, varies=True)
plain("add_key", "a keyring", ("keyring", "ring", 0, 0, _PROCESS), POSITIVE, varies=True)
plain("add_key", "a logon key", ("logon", "a:key", "secret", 6, _PROCESS), POSITIVE, varies=True)
plain("add_key", "32 KiB less one", ("user", "key", bytes(20_000), 20_000, _PROCESS), POSITIVE, varies=True)
plain("add_key", "no such type", ("nothing", "key", "secret", 6, _PROCESS), fails(errno.ENODEV))
plain("add_key", "nothing in it", ("user", "key", 0, 0, _PROCESS), fails(errno.EINVAL))
plain("add_key", "too large", ("user", "key", "x", 1 << 20, _PROCESS), fails(errno.EINVAL))
plain("add_key", "no such keyring", ("user", "key", "secret", 6, 12345), fails(errno.ENOKEY))
plain("add_key", "bad address", (1, "key", "secret", 6, _PROCESS), fails(errno.EFAULT))
plain("request_key", "none, and no one to make it", ("user", "none", 0, 0), fails(errno.ENOKEY))
plain(
    "request_key",
    "none; the kernel starts a helper that is not there",
    ("user", "none", "x", 0),
    fails(errno.ENOENT, errno.ENOKEY),
)
plain("request_key", "no such type", ("nothing", "key", 0, 0), fails(errno.ENOKEY))
plain("keyctl", "KEYCTL_JOIN_SESSION_KEYRING, a new one", (_JOIN, 0), POSITIVE, varies=True)
plain("keyctl", "KEYCTL_JOIN_SESSION_KEYRING, by name", (_JOIN, "name"), POSITIVE, varies=True)
plain("keyctl", "KEYCTL_SET_REQKEY_KEYRING, ask", (_SET_REQKEY, -1), ZERO)
plain("keyctl", "KEYCTL_SET_REQKEY_KEYRING, thread", (_SET_REQKEY, 1), ZERO)
plain("keyctl", "KEYCTL_ASSUME_AUTHORITY, none", (_ASSUME, 0), ZERO)
plain("keyctl", "KEYCTL_CAPABILITIES", (_CAPABILITIES, bytes(2), 2), exactly(2), holds=lambda data: data[0] & 1 == 1)
plain("keyctl", "KEYCTL_GET_PERSISTENT", (_PERSISTENT, 0, _PROCESS), POSITIVE, varies=True)
plain("keyctl", "unknown command", (99,), fails(errno.EOPNOTSUPP))
plain("keyctl", "KEYCTL_GET_KEYRING_ID, there is none", (_GET_ID, _THREAD, 0), fails(errno.ENOKEY))
plain("keyctl", "KEYCTL_READ, no such key", (_READ, 12345, 0, 0), fails(errno.ENOKEY))


@success("add_key", "again, is an update")
def add_key_again(process: Process) -> Steps:
    made = yield from _key(process)
    yield from process.measure("user", "key", "other text", 10, _PROCESS, expect=exactly(made))
    place = process.buffer(16)
    yield from process.must("keyctl", _READ, made, place, 16)
    process.check(process.read(place, 10) == b"other text", "the new text")


@success("request_key", "one that is there")
def request_key(process: Process) -> Steps:
    made = yield from _key(process)
    yield from process.measure("user", "key", 0, 0, expect=exactly(made))


@success("request_key", "one that is there, linked to a keyring")
def request_key_link(process: Process) -> Steps:
    made = yield from _key(process)
    yield from process.measure("user", "key", 0, _THREAD, expect=exactly(made))


for _size in (1, 6, 5000):

    @success("keyctl", f"KEYCTL_READ, {_size} bytes")
    def keyctl_read(process: Process, size: int = _size) -> Steps:
        made = yield from _key(process, b"s" * size)
        place = process.buffer(size)
        yield from process.measure(_READ, made, place, size, expect=exactly(size))
        process.check(process.read(place, size) == b"s" * size, "the key's text")


@success("keyctl", "KEYCTL_READ, a keyring")
def keyctl_read_ring(process: Process) -> Steps:
    made = yield from _key(process)
    place = process.buffer(16)
    yield from process.measure(_READ, _PROCESS, place, 16, expect=exactly(4))
    process.check(process.read_int(place) == made, "the key in it")


for _name, _command, _arguments in (
    ("KEYCTL_REVOKE", _REVOKE, ()),
    ("KEYCTL_CHOWN", _CHOWN, (5, 6)),
    ("KEYCTL_SETPERM", _SETPERM, (_ALL,)),
    ("KEYCTL_LINK", _LINK, (_THREAD,)),
    ("KEYCTL_UNLINK", _UNLINK, (_PROCESS,)),
    ("KEYCTL_SET_TIMEOUT", _TIMEOUT, (100,)),
    ("KEYCTL_INVALIDATE", _INVALIDATE, ()),
    ("KEYCTL_MOVE", _MOVE, (_PROCESS, _THREAD, 0)),
):

    @success("keyctl", _name)
    def keyctl(process: Process, command: int = _command, arguments: tuple[int, ...] = _arguments) -> Steps:
        made = yield from _key(process)
        yield from process.measure(command, made, *arguments, expect=ZERO)


@success("keyctl", "KEYCTL_UPDATE")
def keyctl_update(process: Process) -> Steps:
    made = yield from _key(process)
    yield from process.measure(_UPDATE, made, "new", 3, expect=ZERO)
    place = process.buffer(8)
    yield from process.must("keyctl", _READ, made, place, 8)
    process.check(process.read(place, 3) == b"new", "the new text")


@success("keyctl", "KEYCTL_DESCRIBE")
def keyctl_describe(process: Process) -> Steps:
    made = yield from _key(process)
    place = process.buffer(64)
    yield from process.measure(_DESCRIBE, made, place, 64, expect=POSITIVE)
    process.check(process.read(place, 64).rstrip(b"\0") == b"user;0;0;3f010000;key", "type, owner, rights, name")


@success("keyctl", "KEYCTL_GET_SECURITY")
def keyctl_security(process: Process) -> Steps:
    made = yield from _key(process)
    yield from process.measure(_SECURITY, made, process.buffer(64), 64, expect=POSITIVE)


@success("keyctl", "KEYCTL_CLEAR")
def keyctl_clear(process: Process) -> Steps:
    ring = yield from _ring(process)
    yield from _key(process, ring=ring)
    yield from process.measure(_CLEAR, ring, expect=ZERO)
    left = yield from process.must("keyctl", _READ, ring, 0, 0)
    process.check(left == 0, "nothing in the keyring")


@success("keyctl", "KEYCTL_SEARCH")
def keyctl_search(process: Process) -> Steps:
    ring = yield from _ring(process)
    made = yield from _key(process, ring=ring)
    yield from process.measure(_SEARCH, _PROCESS, "user", "key", 0, expect=exactly(made))


@success("keyctl", "KEYCTL_RESTRICT_KEYRING, nothing may be added")
def keyctl_restrict(process: Process) -> Steps:
    ring = yield from _ring(process)
    yield from process.measure(_RESTRICT, ring, 0, 0, expect=ZERO)
    refused = yield from process.call("add_key", "user", "key", "x", 1, ring)
    process.check(refused == -errno.EPERM, "a key is refused")


@success("keyctl", "KEYCTL_SESSION_TO_PARENT")
def keyctl_to_parent(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        yield from me.must("keyctl", _JOIN, 0)
        yield from me.measure(_TO_PARENT, expect=ZERO)

    yield from process.must("keyctl", _JOIN, 0)
    pid = yield from process.fork(child)
    yield from process.wait(pid)


@error("keyctl", "KEYCTL_READ, a revoked key")
def keyctl_revoked(process: Process) -> Steps:
    made = yield from _key(process)
    yield from process.must("keyctl", _REVOKE, made)
    yield from process.measure(_READ, made, 0, 0, expect=fails(errno.EKEYREVOKED))


@error("keyctl", "KEYCTL_READ, an expired key")
def keyctl_expired(process: Process) -> Steps:
    made = yield from _key(process)
    yield from process.must("keyctl", _TIMEOUT, made, 1)
    yield from process.must("nanosleep", abi.timespec(2), 0)
    yield from process.measure(_READ, made, 0, 0, expect=fails(errno.EKEYEXPIRED))


@error("keyctl", "KEYCTL_READ, a logon key cannot be read")
def keyctl_logon(process: Process) -> Steps:
    made = yield from process.must("add_key", "logon", "a:key", "secret", 6, _PROCESS)
    yield from process.measure(_READ, made, 0, 0, expect=fails(errno.EOPNOTSUPP))


@error("keyctl", "KEYCTL_CHOWN, by nobody")
def keyctl_nobody(process: Process) -> Steps:
    yield from process.must("setresuid", _NOBODY, _NOBODY, _NOBODY)
    made = yield from _key(process)
    yield from process.measure(_CHOWN, made, 5, -1, expect=fails(errno.EACCES))
