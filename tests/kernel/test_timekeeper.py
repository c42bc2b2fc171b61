"""The kernel's clock is found in an array, in a struct of a name, or behind a lock whose size is asked for."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.timekeeper import find_timekeeper

MEMBERS = {
    "timekeeper.tkr_mono": 0, "timekeeper.offs_real": 112, "timekeeper.offs_boot": 120, "timekeeper.offs_tai": 128,
    "tk_read_base.base": 40, "tk_read_base.xtime_nsec": 32, "tk_read_base.shift": 28, "tk_read_base.mult": 24,
    "tk_read_base.cycle_last": 16, "tk_read_base.clock": 0, "clocksource.name": 80,
}  # fmt: skip
NAMED = MEMBERS | {"tk_data.timekeeper": 8}


@pytest.mark.parametrize("symbol", ["timekeeper_data", "tk_core"])
def test_6_13_in_a_struct_of_a_name(symbol):
    found = find_timekeeper(fake_facts(symbol, members=NAMED, sizes={"tk_data": 600}))
    assert (found.mono_at, found.real_offset_at) == (0x1008, 0x1008 + 112)


@pytest.mark.parametrize(("lock", "bytes_", "at"), [("seqcount_raw_spinlock_t", 4, 8), ("seqcount_t", 12, 16)])
def test_6_1_behind_its_lock_aligned(lock, bytes_, at):
    assert find_timekeeper(fake_facts("tk_core", members=MEMBERS, sizes={lock: bytes_})).mono_at == 0x1000 + at


def test_a_kernel_that_keeps_time_elsewhere_is_refused():
    with pytest.raises(MissingFactError, match="timekeeper_data or tk_core"):
        find_timekeeper(fake_facts(members=NAMED, sizes={"tk_data": 600}))


def test_on_real_kernels(real_facts):
    core = real_facts.symbols.find("tk_core") or real_facts.symbols.find("timekeeper_data")
    # With PREEMPT_RT the sequence counter knows its lock (include/linux/seqlock.h, __SEQ_LOCK).
    assert find_timekeeper(real_facts).mono_at == core + (16 if "-rt-" in real_facts.release else 8)
