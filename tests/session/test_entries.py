"""Prefixes are part of an instruction: an entry into the kernel is where the kernel has it, whatever stands before it."""

import errno

import pytest
from tests.support.call_program import Step, build_program, results
from thinbox.sandbox.plan_file import parse_plan
from thinbox.session.session import RunOptions, run

PREFIXES = ("", "66", "2e", "f2", "f3", "67", "48", "4f", "6667", "66" * 12, "f3" * 12 + "48")
"""Operand and address size, a segment, REPNE, REP, REX, and as many as fit the 15 bytes of an instruction."""
GETPID = 39
GETPID_32 = 20
HEAD = 'schema = "thinbox.plan/1"\nname = "test"\ndefault = "isolate"\n[calls]\n'


def entered_by(code):
    """`code` with each prefix, and `mov rbx, rcx`-like work behind it that a lost byte would garble."""
    return [bytes.fromhex(prefix + code) + b"\x48\x89\xc3\x48\x89\xd8" for prefix in PREFIXES]


@pytest.fixture
def run_program(guest, tmp_path):
    def start(*steps, **options):
        (tmp_path / "program").write_bytes(build_program(*steps))
        (tmp_path / "program").chmod(0o755)
        return run(guest, ["/program"], RunOptions(rootfs=tmp_path, **options))

    return start


def steps_of(number, code):
    load = b"\xb8" + number.to_bytes(4, "little")
    return [load + step for step in entered_by(code)]


@pytest.mark.parametrize("isolate", ["all", "none"])
@pytest.mark.parametrize(("number", "code", "name"), [(GETPID, "0f05", "getpid"), (GETPID_32, "cd80", "i386#20")])
def test_a_call_is_entered_and_left_where_the_kernel_says(run_program, number, code, name, isolate):
    result = run_program(Step("getpid"), *steps_of(number, code), policy="live+guard", isolate=isolate)
    own, *others = results(result.stdout)
    assert result.exit_code == 0 and others == [own] * len(PREFIXES)
    called = [call.name for call in result.record.calls]
    assert called.count(name) == len(PREFIXES) + (name == "getpid") and not result.record.kills


def test_a_plan_is_asked_about_it_and_its_answer_comes_back_behind_it(run_program):
    plan = parse_plan(f'{HEAD}getpid = "deny:EACCES"\n', "test.toml", lambda _path: b"")
    result = run_program(*steps_of(GETPID, "0f05"), policy="live", plan=plan)
    assert results(result.stdout) == [-errno.EACCES] * len(PREFIXES)
    assert result.record.refusals.count == len(PREFIXES)


def test_where_an_emulated_calls_page_is_brought_in_the_same_instruction_runs_again(run_program):
    plan = parse_plan(f'{HEAD}clock_gettime = "emulate"\n', "test.toml", lambda _path: b"")
    steps = []
    for number, step in enumerate(steps_of(228, "0f05")):
        place = 0x50000000 + (number << 12)
        load = b"\xbf\x01\0\0\0\x48\xbe" + place.to_bytes(8, "little")  # mov edi, 1; mov rsi, place
        steps += [Step("mmap", (place, 4096, 3, 0x32, -1, 0)), load + step]
    result = run_program(*steps, policy="live", plan=plan)
    assert result.exit_code == 0 and results(result.stdout)[1::2] == [0] * len(PREFIXES)
    assert len([call for call in result.record.calls if call.disposition == "populate"]) == len(PREFIXES)


@pytest.mark.parametrize(("code", "status"), [("cd06", 139), ("0f0b", 132), ("cd0d", 139), ("cc", 133)])
def test_a_software_interrupt_is_no_exception_of_its_number(run_program, code, status):
    """`int $6` and `int $13` have no gate for programs: #GP, as every other; `ud2` is #UD, `int3` #BP."""
    assert run_program(bytes.fromhex(code), isolate="none").exit_code == status


def test_other_instructions_the_machine_answers_go_on_behind_their_last_byte(run_program):
    """rdtsc; cpuid: RAX is not looked at, but that the program goes on is."""
    steps = [b"\x31\xc0" + step + b"\x31\xc0" for code in ("0f31", "0fa2") for step in entered_by(code)]
    result = run_program(*[b"\x31\xc9\x53" + step + b"\x5b" for step in steps], isolate="none")
    assert result.exit_code == 0 and results(result.stdout) == [0] * len(steps)
