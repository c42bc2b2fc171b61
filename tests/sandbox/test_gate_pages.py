"""Pages that an emulated call waits for: the kernel brings them in, or the call fails; nobody else's call is taken for it."""

import errno
import struct

import pytest
from tests.support.call_program import DATA, Step, results
from thinbox.kernel.populate import find_populate
from thinbox.planning.microbench import build_elf, build_step
from thinbox.sandbox.plan_file import parse_plan
from thinbox.session.session import RunOptions, run
from thinbox.syscalls.table import call_number

HEAD = 'schema = "thinbox.plan/1"\nname = "test"\ndefault = "isolate"\n[calls]\nclock_gettime = "emulate"\n'
FILTER, PROGRAM, ANSWER, COUNTS = 256, 320, 512, 512
PAGE = 0x50000000
RET_ERRNO, RET_ALLOW = 0x00050000, 0x7FFF0000
"""include/uapi/linux/seccomp.h"""
SIGALRM, SA_RESTORER = 14, 0x04000000


@pytest.fixture
def run_image(guest, tmp_path):
    def start(image, calls=""):
        path = tmp_path / "program"
        path.write_bytes(image)
        path.chmod(0o755)
        plan = parse_plan(HEAD + calls, "test.toml", lambda _path: b"")
        return run(guest, ["/program"], RunOptions(rootfs=tmp_path, plan=plan))

    return start


def answer_calls(name, value):
    """A program of classic BPF: RET_ERRNO with `value` for the call `name`, and what points to it."""
    rows = ((0x20, 0, 0, 0), (0x15, 0, 1, call_number(name)), (0x06, 0, 0, RET_ERRNO | value), (0x06, 0, 0, RET_ALLOW))
    code = b"".join(struct.pack("<HBBI", *row) for row in rows)
    return {PROGRAM: code, FILTER: struct.pack("<HxxxxxxQ", len(rows), DATA + PROGRAM)}


def test_a_page_that_is_said_to_be_there_and_is_not_is_a_bad_address(guest, run_image):
    """The tenant's own filter answers the call that would bring the page in, with success, as often as it is made."""
    steps = (
        Step("prctl", (38, 1, 0, 0, 0)),
        Step("seccomp", (1, 0, DATA + FILTER)),
        Step("mmap", (PAGE, 4096, 3, 0x32, -1, 0)),
        Step("clock_gettime", (1, PAGE)),
    )
    code = b"".join(build_step(step) for step in steps) + b"\x48\x89\x04\x25" + struct.pack("<I", DATA + ANSWER)
    code += build_step(Step("write", (1, DATA + ANSWER, 8))) + build_step(Step("exit_group", (0,)))
    populate = find_populate(guest.facts).call(PAGE, write=True)
    (done,) = populate.done
    result = run_image(build_elf(code, answer_calls(populate.name, -done)))
    assert results(result.stdout) == [-errno.EFAULT]
    assert [call.ret for call in result.record.calls if call.disposition == "populate"] == [done] * 65


def interrupted_program(rounds):
    """clock_gettime() into a new page, `rounds` times, while SIGALRM comes every 50 us; its handler makes a call by the
    same instruction. Writes two words: how often the handler ran, and how often a call of either was not answered as
    the plan says."""
    counted, wrong = DATA + COUNTS, DATA + COUNTS + 8
    parts = {}

    def whole():
        vaddr = 0x400000 + 64 + 2 * 56
        do, handler, restorer = (vaddr + parts.get(name, 0) for name in ("do", "handler", "restorer"))
        code = b""

        def enter(number):
            nonlocal code
            code += b"\xb8" + struct.pack("<I", number)
            code += b"\xe8" + struct.pack("<i", do - (vaddr + len(code) + 5))

        def count(place):
            nonlocal code
            code += b"\x48\xff\x04\x25" + struct.pack("<I", place)  # inc qword [place]

        code += build_step(Step("rt_sigaction", (SIGALRM, DATA + FILTER, 0, 8)))
        code += build_step(Step("setitimer", (0, DATA + PROGRAM, 0)))
        code += b"\xbb" + struct.pack("<I", rounds)  # mov ebx, rounds
        again = len(code)
        code += build_step(Step("mmap", (0, 4096, 3, 0x22, -1, 0)))
        code += b"\x48\x89\xc6\xbf\x01\0\0\0"  # mov rsi, rax; mov edi, 1
        enter(call_number("clock_gettime"))
        code += b"\x85\xc0\x74\x08"  # test eax, eax; jz over
        count(wrong)
        code += b"\xff\xcb\x0f\x85" + struct.pack("<i", again - len(code) - 8)  # dec ebx; jnz again
        code += build_step(Step("write", (1, counted, 16))) + build_step(Step("exit_group", (0,)))
        parts["do"] = len(code)
        code += b"\x0f\x05\xc3"  # syscall; ret
        parts["handler"] = len(code)
        count(counted)
        enter(call_number("getppid"))
        code += b"\x83\xf8\xff\x74\x08"  # cmp eax, -EPERM; je over
        count(wrong)
        code += b"\xc3"
        parts["restorer"] = len(code)
        code += b"\xb8\x0f\0\0\0\x0f\x05"  # rt_sigreturn
        action = struct.pack("<QQQQ", handler, SA_RESTORER, restorer, 0)
        return build_elf(code, {FILTER: action, PROGRAM: struct.pack("<QQQQ", 0, 50, 0, 50)})

    whole()
    return whole()


def test_a_handlers_call_is_not_taken_for_the_one_that_waits_for_a_page(run_image):
    result = run_image(interrupted_program(300), 'getppid = "deny:EPERM"\n')
    handled, wrong = results(result.stdout)
    assert handled > 10 and wrong == 0
    waited = [call.seq for call in result.record.calls if call.disposition == "populate"]
    behind = [result.record.calls[seq + 1].name for seq in waited if seq + 1 < len(result.record.calls)]
    assert "getppid" in behind, "no signal came while a page was brought in: the test shows nothing"
