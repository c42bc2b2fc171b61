"""The loops of `microbench` with a supervisor that sees every call: by seccomp notification, and by ptrace.

Why it exists: between a native call and gVisor's stands the bare cost of asking another process. A supervisor in Python
would measure Python, and a compiler may not be there; so each is some two hundred bytes of machine code, assembled here
as the loops are, and does nothing but let the call go on. strace, a tracer in C, also decodes and prints.

Rules of this file: the first process supervises, its child makes the calls. At the end it writes how often it was asked
(eight bytes, to its output), for an idle supervisor is a fast one, and exits with 0.

Source: seccomp_unotify(2), ptrace(2), include/uapi/linux/seccomp.h.
"""

import struct

from thinbox.planning.microbench import LOOPS, Step, build_elf, build_step
from thinbox.syscalls.table import call_number

NOTIFY, PTRACE = "notify", "ptrace"
SUPERVISORS = (NOTIFY, PTRACE)

_SHARED = 0x600000
"""A page of both processes."""
_LISTENER, _STATUS, _COUNT, _NOTICE, _ANSWER = (_SHARED + offset for offset in (0, 8, 16, 64, 192))
_PROGRAM = 256
"""Offset in the data page of the filter (struct sock_fprog, then one instruction)."""
_NOTICE_BYTES = 80
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_CLONE_FILES, _SIGCHLD, _SIGSTOP = 0x400, 17, 19
_OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x100000
"""PTRACE_O_TRACESYSGOOD, _TRACEFORK, _TRACEVFORK, _TRACECLONE, _EXITKILL."""


def build_supervised(name: str, count: int, supervisor: str) -> bytes:
    """Return an executable in which the calls of `LOOPS[name]`, `count` times (1 to 2^31 - 1), are supervised."""
    before, body = LOOPS[name]
    setup = b"".join(build_step(step) for step in before)
    loop = b"".join(build_step(step) for step in body)
    turns = b"\xbb" + struct.pack("<I", count) + loop + b"\xff\xcb"  # mov ebx, count; the body; dec ebx
    turns += b"\x0f\x85" + struct.pack("<i", -(len(loop) + 8))  # jnz to the body
    child = setup + (_ask_to_be_notified() if supervisor == NOTIFY else _ask_to_be_traced()) + turns
    child += build_step(Step("exit_group", (0,)))
    watch = _answer_notices() if supervisor == NOTIFY else _let_stops_go_on()
    # The descriptors are shared until the supervisor has seen the listener, so that it has it too.
    flags = _SIGCHLD | (_CLONE_FILES if supervisor == NOTIFY else 0)
    start = build_step(Step("getpid")) + b"\x41\x89\xc5"  # mov r13d, eax
    start += build_step(Step("mmap", (_SHARED, 4096, 3, 0x31, -1, 0))) + build_step(Step("clone", (flags, 0, 0, 0, 0)))
    start += b"\x85\xc0\x0f\x85" + struct.pack("<i", len(child))  # test eax, eax; jnz over the child
    data = struct.pack("<HxxxxxxQ", 1, 0x410000 + _PROGRAM + 16) + struct.pack("<HBBI", 0x06, 0, 0, 0x7FC00000)
    return build_elf(start + child + watch, {_PROGRAM: data})


def _ask_to_be_notified() -> bytes:
    """Load a filter that notifies of every call, and put its listener where the supervisor looks.

    Then close it here: the first call that is asked about, so the supervisor has its own by then. Whoever holds one
    waits for ever where nobody is left to answer. And die with the supervisor.
    """
    return b"".join(
        (
            _die_with_the_supervisor(),
            build_step(Step("prctl", (38, 1, 0, 0, 0))),  # PR_SET_NO_NEW_PRIVS
            build_step(Step("seccomp", (1, 8, 0x410000 + _PROGRAM))),  # SET_MODE_FILTER, NEW_LISTENER
            b"\x89\x04\x25" + struct.pack("<I", _LISTENER),  # mov [listener], eax
            b"\x89\xc7" + _load(0, call_number("close")) + b"\x0f\x05",  # mov edi, eax
        )
    )


def _answer_notices() -> bytes:
    """Receive a notice, let the call go on; until the child itself asks for `exit_group`."""
    wait = build_step(Step("sched_yield")) + b"\x8b\x04\x25" + struct.pack("<I", _LISTENER)  # mov eax, [listener]
    wait += b"\x85\xc0\x74"  # test eax, eax; jz back
    wait += struct.pack("<b", -(len(wait) + 1))
    listener = b"\x8b\x3c\x25" + struct.pack("<I", _LISTENER)  # mov edi, [listener]
    clear = b"".join(
        (
            b"\xbf" + struct.pack("<I", _NOTICE), b"\xb9" + struct.pack("<I", _NOTICE_BYTES // 8),  # mov edi; mov ecx
            b"\x31\xc0\xf3\x48\xab",  # xor eax, eax; rep stosq
        )
    )  # fmt: skip
    receive = clear + listener + _load(6, _RECEIVE) + _load(2, _NOTICE) + _load(0, call_number("ioctl")) + b"\x0f\x05"
    receive += b"\x48\x85\xc0\x0f\x88"  # test rax, rax; js to the failing end
    reply = b"".join(
        (
            b"\x48\xff\x04\x25", struct.pack("<I", _COUNT),  # inc qword [count]
            b"\x48\x8b\x04\x25", struct.pack("<I", _NOTICE),  # mov rax, [notice.id]
            b"\x48\x89\x04\x25", struct.pack("<I", _ANSWER),  # mov [answer.id], rax
            b"\xc7\x04\x25", struct.pack("<II", _ANSWER + 20, _CONTINUE),  # mov dword [answer.flags], continue
            listener, _load(6, _SEND), _load(2, _ANSWER), _load(0, call_number("ioctl")), b"\x0f\x05",
            # cmp dword [notice.data.nr], exit_group; jne again; cmp [notice.pid], r12d; jne again
            b"\x81\x3c\x25", struct.pack("<II", _NOTICE + 16, call_number("exit_group")), b"\x0f\x85",
        )
    )  # fmt: skip
    end = _report() + build_step(Step("exit_group", (0,)))
    pid = b"\x44\x39\x24\x25" + struct.pack("<I", _NOTICE + 8) + b"\x0f\x85"  # cmp [notice.pid], r12d; jne again
    start = len(receive) + 4
    first = struct.pack("<i", -(start + len(reply) + 4))
    second = struct.pack("<i", -(start + len(reply) + 4 + len(pid) + 4))
    rest = reply + first + pid + second + end
    unshare = build_step(Step("unshare", (_CLONE_FILES,)))
    keep = b"\x41\x89\xc4"  # mov r12d, eax: the child
    return keep + wait + unshare + receive + struct.pack("<i", len(rest)) + rest + build_step(Step("exit_group", (1,)))


def _die_with_the_supervisor() -> bytes:
    """Ask for SIGKILL at the supervisor's end, and end here if that has been: whoever adopted this is not in r13d."""
    failed = build_step(Step("exit_group", (1,)))
    asked = build_step(Step("prctl", (1, 9, 0, 0, 0))) + build_step(Step("getppid"))  # PR_SET_PDEATHSIG, SIGKILL
    return asked + b"\x44\x39\xe8\x74" + bytes((len(failed),)) + failed  # cmp eax, r13d; je over the end


def _ask_to_be_traced() -> bytes:
    """Stop for the supervisor. Where that ends before it sets `PTRACE_O_EXITKILL`, this would stay stopped for ever."""
    ask = _die_with_the_supervisor() + build_step(Step("ptrace", (0, 0, 0, 0)))
    stop = build_step(Step("getpid")) + b"\x89\xc7" + _load(6, _SIGSTOP)  # mov edi, eax
    return ask + stop + _load(0, call_number("kill")) + b"\x0f\x05"


def _let_stops_go_on() -> bytes:
    """Wait for any tracee's stop, let it go on to the next; until the child has exited.

    Signals are not passed on: the loops get SIGCHLD only, which they ignore.
    """
    keep = b"\x41\x89\xc4"  # mov r12d, eax: the child
    first = b"\x44\x89\xe7" + _load(6, _STATUS) + _load(2, 0) + _load_r10(0) + _load(0, 61) + b"\x0f\x05"
    options = _load(7, 0x4200) + b"\x44\x89\xe6" + _load(2, 0) + _load_r10(_OPTIONS) + _load(0, 101) + b"\x0f\x05"
    go_on = b"\x44\x89\xe6"  # mov esi, r12d: the child is the first to go on
    resume = _load(7, 24) + _load(2, 0) + _load_r10(0) + _load(0, 101) + b"\x0f\x05"  # PTRACE_SYSCALL
    wait = _load(7, -1) + _load(6, _STATUS) + _load(2, 0x40000000) + _load_r10(0) + _load(0, 61) + b"\x0f\x05"
    wait += b"\x85\xc0\x0f\x88"  # test eax, eax; js to the failing end
    # mov esi, eax; cmp byte [status], 0x7f; je stopped; cmp eax, r12d; jne wait
    look = b"\x89\xc6\x80\x3c\x25" + struct.pack("<IB", _STATUS, 0x7F) + b"\x74"
    gone = b"\x44\x39\xe0\x0f\x85"
    end = _report() + build_step(Step("exit_group", (0,)))
    count = b"\x48\xff\x04\x25" + struct.pack("<I", _COUNT) + b"\xe9"  # stopped: inc qword [count]; jmp resume
    to_wait = len(wait) + 4 + len(look) + 1 + len(gone) + 4
    gone += struct.pack("<i", -to_wait)
    to_resume = len(resume) + to_wait + len(end) + len(count) + 4
    rest = look + struct.pack("<b", len(gone) + len(end)) + gone + end + count + struct.pack("<i", -to_resume)
    fail = build_step(Step("exit_group", (1,)))
    return keep + first + options + go_on + resume + wait + struct.pack("<i", len(rest)) + rest + fail


def _report() -> bytes:
    return build_step(Step("write", (1, _COUNT, 8)))


def _load(register: int, value: int) -> bytes:
    """`mov r64, imm32` (sign-extended), for the first eight registers."""
    value = value - (1 << 32) if value >= 1 << 31 else value
    return bytes((0x48, 0xC7, 0xC0 | register)) + struct.pack("<i", value)


def _load_r10(value: int) -> bytes:
    return b"\x49\xc7\xc2" + struct.pack("<i", value)
