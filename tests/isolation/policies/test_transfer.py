"""Policy `transfer` as a pure function, on hand-assembled code."""

import dataclasses

import pytest
from tests.isolation.policies.fake_call import BASE, FakeCall, block, call_to, jump_to
from thinbox.isolation.policies.transfer import Transfer
from thinbox.isolation.transfers import Frame, Source
from thinbox.isolation.verdict import Access, AccessKind

NOP, RET, INDIRECT_JUMP, INDIRECT_CALL, IRETQ = b"\x90", b"\xc3", b"\xff\xe0", b"\xff\xd0", b"\x48\xcf"
CALLER, CALLEE, OTHER, TAIL, THUNK = (BASE + 0x10000 * i for i in range(5))
ENTRY_BACK = CALLER + 0x1B
CODE = {
    # nop; call CALLEE; nop; ret; jmp *%rax; call *%rax; je CALLER (backwards); iretq; call CALLER
    "caller": (
        CALLER,
        NOP
        + call_to(CALLER + 1, CALLEE)
        + NOP
        + RET
        + INDIRECT_JUMP
        + INDIRECT_CALL
        + b"\x0f\x84" + (-0x12).to_bytes(4, "little", signed=True)
        + IRETQ
        + NOP * 2
        + call_to(CALLER + 0x16, CALLER)
        + NOP * (0xFFB - 0x1B)
        + call_to(CALLER + 0xFFB, OTHER)
        + NOP * 8
        + call_to(CALLER + 0x1008, TAIL)
        + RET,
    ),
    "callee": (CALLEE, b"\x48\xc7\xc0" + (0xC3).to_bytes(4, "little") + RET + NOP * 0x1FF8),
    "other": (OTHER, NOP * 4 + RET),
    "tail": (TAIL, jump_to(TAIL, OTHER)),
    "__x86_indirect_thunk_rax": (THUNK, b"\x48\x89\x04\x24" + RET),
}  # fmt: skip
SOUND = (Frame(CALLER, ENTRY_BACK),)


def judge(target, source, frames=SOUND, executed=(CALLER, CALLER + 0xFFF), **options):
    call = FakeCall(CODE, executed, source, frames, **({"tail": 0x100} | options))
    rip = source.start if source and source.straight else target
    return Transfer().check_access(call.fetch(target, rip), call)


def test_a_direct_call_goes_where_it_was_compiled_to_and_nowhere_else():
    source = block(CALLER, 6)
    verdict = judge(CALLEE, source)
    assert verdict.granted and verdict.cacheable and verdict.per_source, "it holds for this block only"
    assert judge(OTHER, source).rule == "T1"
    assert judge(CALLEE + 1, source).rule == "T1"
    assert judge(CALLER + 6, source).rule == "T1", "a call does not fall through"


def test_a_branch_goes_to_its_target_or_on():
    source = block(CALLER + 0xC, 6)
    assert judge(CALLER, source).granted
    assert judge(CALLER + 0x12, source).granted
    assert not judge(CALLER + 0x13, source).granted


def test_straight_on_means_the_very_next_byte():
    assert judge(CALLER + 1, block(CALLER, 1)).granted
    assert judge(CALLER + 2, block(CALLER, 1)).rule == "T1"


def test_an_engine_that_reads_on_over_a_page_stays_in_its_function():
    assert judge(CALLEE + 0x1000, Source(CALLEE + 0x800, CALLEE + 0x1000, straight=True)).granted
    assert judge(OTHER, Source(CALLEE + 0x800, OTHER, straight=True)).rule == "T0"
    assert judge(CALLEE + 0x1000, Source(CALLEE + 1, CALLEE + 0x1000, straight=True)).rule == "T0"


@pytest.mark.parametrize("source", [block(CALLER + 8, 2), block(CALLER + 10, 2), block(THUNK, 5)], ids="jct")
def test_an_indirect_transfer_must_hit_a_functions_start(source):
    verdict = judge(CALLEE, source)
    assert verdict.granted and verdict.per_source
    assert judge(CALLEE + 7, source).rule == "T2"


def test_an_indirect_jump_may_stay_in_its_function_but_a_thunks_may_not():
    assert judge(CALLER + 0x1000, block(CALLER + 8, 2)).granted
    assert judge(CALLER + 0x1000, block(CALLER + 10, 2)).rule == "T2", "a call has no jump table"
    assert judge(CALLER + 0x1000, block(THUNK, 5)).rule == "T2"
    assert judge(CALLER + 3, block(CALLER + 8, 2)).rule == "T2", "the middle of an instruction is no case of a table"


def test_a_return_goes_behind_a_call_on_a_page_that_executed():
    source = block(CALLEE, 8)
    verdict = judge(CALLER + 0x1000, source)
    assert verdict.granted and verdict.rule == "T3"
    assert not verdict.cacheable, "the call's page executed in this call, perhaps not in the next"
    assert judge(CALLER + 0x1000, source, executed=(CALLER + 0x1000,)).rule == "T3", "its page never executed"
    assert judge(OTHER, source).rule == "T3", "a function's start is not behind a call"
    assert judge(CALLEE + 7, source).rule == "T3", "the middle of a function"
    assert judge(CALLER + 6, source, executed=()).rule == "T3", "behind a call on a page that never executed"
    assert judge(CALLER + 6, source).rule == "T3", "behind a call in the middle of a page that is not mapped"


def test_a_block_that_starts_between_instructions_as_compiled_is_refused():
    # The immediate of callee's mov holds a ret.
    assert judge(CALLER + 0x1000, block(CALLEE + 3, 1)).rule == "T0"
    assert judge(CALLER + 0x1000, block(CALLEE + 3, 5)).rule == "T0"


def test_an_exception_goes_on_only_where_it_is_fixed_up():
    source = block(CALLER + 0x12, 2)
    assert judge(CALLEE + 7, source, fixups=(CALLEE + 7,)).granted
    assert judge(CALLEE + 7, source).rule == "T5"


def test_a_sleeper_goes_on_where_thinbox_lets_it():
    assert judge(CALLEE, None).rule == "T4"
    assert judge(CALLEE, None, frames=(Frame(CALLEE, ENTRY_BACK), Frame(CALLER, 12345))).rule == "T6"


def test_data_is_granted_and_what_has_no_symbol_refused():
    call = FakeCall(CODE, source=block(CALLER, 6), frames=SOUND)
    assert Transfer().check_access(Access(BASE, AccessKind.WRITE, CALLER, None, 0, 0), call).cacheable
    assert Transfer().check_access(Access(1 << 63, AccessKind.FETCH, 1 << 63, None, 0, 0), call).rule == "6c"


GOOD = block(CALLER, 6)
FRAMES = {
    "not behind a call": (Frame(CALLEE, CALLER + 7),),
    "a function's start": (Frame(CALLEE, OTHER),),
    "the call goes elsewhere": (Frame(OTHER, CALLER + 6),),
    "behind a call inside another instruction": (Frame(CALLEE, CALLEE + 3),),
    "its page never executed": (Frame(CALLEE, CALLER + 0x100D),),
    "outside the text": (Frame(CALLEE, 0xFFFF_8880_0000_1000),),
}


@pytest.mark.parametrize("frames", FRAMES.values(), ids=FRAMES)
def test_a_forged_frame_is_refused_whatever_the_transfer(frames):
    assert judge(CALLEE, GOOD, frames=(*frames, *SOUND)).rule == "T6"
    assert judge(CALLEE, GOOD, frames=(Frame(CALLEE, CALLER + 6), *SOUND)).granted


def test_a_stack_that_leads_nowhere_is_refused():
    assert judge(CALLEE, GOOD, frames=None).rule == "T6"


def test_a_call_leads_also_to_where_its_callee_jumps():
    behind = Frame(OTHER, CALLER + 0x100D)
    assert judge(CALLEE, GOOD, frames=(behind, *SOUND), executed=(CALLER, CALLER + 0x1000)).granted
    wrong = dataclasses.replace(behind, lookup=CALLEE)
    assert judge(CALLEE, GOOD, frames=(wrong, *SOUND), executed=(CALLER, CALLER + 0x1000)).rule == "T6"


def test_an_indirect_call_may_have_led_to_any_function():
    assert judge(CALLEE, GOOD, frames=(Frame(OTHER, CALLER + 12), *SOUND)).granted


def test_what_was_decoded_is_forgotten_when_the_kernel_patches_its_text():
    policy, call = Transfer(), FakeCall(CODE, (CALLER,), GOOD, SOUND)
    assert policy.check_access(call.fetch(CALLEE), call).granted
    call.functions = CODE | {"caller": (CALLER, NOP * 6 + CODE["caller"][1][6:])}
    assert policy.check_access(call.fetch(CALLEE), call).granted, "nothing said that the text changed"
    call.text_version += 1
    assert policy.check_access(call.fetch(CALLEE), call).rule == "T1"
