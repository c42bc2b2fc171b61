"""A call's state changes by the table only, and the documents draw the table."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thinbox.enforcement.open_call import BENEATH, TRANSITIONS, CallEvent, CallState, OpenCall, render_transitions
from thinbox.errors import MachineError
from thinbox.records.run import CallRecord

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "calls.md"
ENDS = {CallState.RETURNED, CallState.UNDONE, CallState.DEAD}


def new_call():
    return OpenCall(CallRecord(0, "tenant", 1, 0, "read", ()), 0, 0, 0.0, isolated=True)


def test_the_document_draws_the_table():
    text = DOCUMENT.read_text()
    assert f"```mermaid\n{render_transitions()}```" in text


@pytest.mark.parametrize("state", CallState)
def test_what_stands_in_no_row_does_not_happen(state):
    for event in CallEvent:
        call = new_call()
        call.state = state
        if (state, event) in TRANSITIONS:
            call.on(event)
            continue
        with pytest.raises(MachineError, match=event.value):
            call.on(event)
        assert call.state is state


def test_nothing_leads_out_of_an_end_and_every_state_is_reached():
    assert not {state for state, _event in TRANSITIONS} & ENDS
    reached = {following for following in TRANSITIONS.values() if following is not BENEATH}
    assert reached == set(CallState)


@given(
    st.lists(
        st.sampled_from([CallEvent.INTERRUPT, CallEvent.IRETQ, CallEvent.DEFERRED_WORK, CallEvent.DEFERRED_WORK_DONE])
    )
)
def test_a_call_wakes_up_where_it_fell_asleep(events):
    call = new_call()
    for event in events:
        if (call.state, event) in TRANSITIONS:
            call.on(event)
    before = call.state
    call.on(CallEvent.SWITCH_OUT)
    assert call.state is CallState.SLEEPING
    assert call.on(CallEvent.SWITCH_IN) is before


@pytest.mark.parametrize("resume_rsp", [0, 0x1000])
def test_interruptions_the_hooks_took_are_followed(resume_rsp):
    call = new_call()
    call.note_interruption(resume_rsp)
    assert call.state is (CallState.INTERRUPTED if resume_rsp else CallState.RUNNING)
    call.note_interruption(0)
    assert call.state is CallState.RUNNING
