"""The model against measurements by others, each within the interval it states. Nothing was fitted to them."""

import dataclasses

import numpy as np
import pytest
from thinbox.cost.model import Interval, Model
from thinbox.cost.modes import find_mode
from thinbox.cost.profiles import find_profile
from thinbox.cost.published import ZERO_PAGE_WORK, measurements
from thinbox.isolation.verdict import Verdict
from thinbox.session.session import RunOptions, run

PUBLISHED = measurements()


@pytest.fixture(scope="module")
def added(loop_workload):
    """Cycles PTI adds to a getppid in a loop on Skylake, with and without PCIDs."""
    skylake = find_profile("skylake-server")
    without = dataclasses.replace(skylake, name="skylake-nopcid", pcid=False)
    steady = [i for i, name in enumerate(loop_workload.names) if name == "getppid"][50:190]
    costs = Model(loop_workload).costs([skylake, without], (find_mode("pti"),))
    return {c.cpu.name: Interval(*np.median(c.per_call[steady], axis=0).tolist()) for c in costs}, skylake.figures[
        "frequency_ghz"
    ]


def test_ptis_cost_on_getppid_with_pcids(added):
    assert PUBLISHED["getppid, PTI with PCIDs"].met_by(added[0]["skylake-server"])


def test_ptis_cost_on_getppid_without_pcids(added):
    assert PUBLISHED["getppid, PTI without PCIDs"].met_by(added[0]["skylake-nopcid"])


def in_ns(cycles, clock):
    return Interval(cycles.low / clock.high, cycles.high / clock.low)


def test_ptis_cost_on_another_kernel_with_pcids(added):
    assert PUBLISHED["getppid on FreeBSD, PTI with PCIDs"].met_by(in_ns(added[0]["skylake-server"], added[1]))


def test_kaisers_cost_without_pcids(added):
    assert PUBLISHED["read, write, fstat, stat, KAISER without PCIDs"].met_by(
        in_ns(added[0]["skylake-nopcid"], added[1])
    )


def test_what_pcids_save_a_workload_of_many_calls(added):
    """PostgreSQL's rate of calls is not known; the ratio of the two costs does not depend on it."""
    with_them, without = added[0]["skylake-server"], added[0]["skylake-nopcid"]
    ratio = Interval(without.low / with_them.low, without.high / with_them.high)
    published = PUBLISHED["PostgreSQL, cost without PCIDs over cost with them"].measured
    assert published.low <= ratio.low
    assert ratio.high <= published.high


def test_fifty_thousand_calls_a_second_cost_two_hundredths_only_without_pcids(added):
    """Gregg's 2 % is inside the interval without PCIDs and above the one with them: the model does not reproduce
    it with PCIDs, and docs/cost.md says so."""
    rate, clock = 50_000, added[1]
    share = {
        name: Interval(*(rate * x / (g * 1e9) for x, g in ((c.low, clock.high), (c.high, clock.low))))
        for name, c in added[0].items()
    }
    published = PUBLISHED["50,000 calls a second, PTI"]
    assert share["skylake-nopcid"].high > published.measured.high
    assert published.met_by(share["skylake-nopcid"])
    assert not published.touched_by(share["skylake-server"])


def test_a_minor_fault_from_user_mode():
    trip = find_profile("ice-lake-server").figures["fault_round_trip"]
    modelled = Interval(trip.low, trip.high) + ZERO_PAGE_WORK
    assert PUBLISHED["minor fault from user mode"].met_by(modelled)


class GrantsAll:
    """Counts pages, kills nothing: policy sci refuses devkmsg_write's jump into its cold part."""

    name = "all"
    grants_all_data = True

    def check_access(self, access, call):
        return Verdict(granted=True, rule="all", reason="everything", cacheable=True)


def faults_of_write(guest, path):
    result = run(guest, ["sh", "-c", f"exec echo hello >{path}"], RunOptions(policy=GrantsAll()))
    (write,) = [call for call in result.record.calls if call.name == "write"]
    assert (write.ret, result.exit_code) == (6, 0)
    return write.code_faults + write.data_faults


def test_the_rfcs_printk_call_is_met_within_three_tenths(guest):
    """printk itself: a write to /dev/kmsg less one to /dev/null. On 6.1 it touches 72 pages; the RFC saw 35 to 60."""
    faults = faults_of_write(guest, "/dev/kmsg") - faults_of_write(guest, "/dev/null")
    published = PUBLISHED["RFC printk call"].measured
    assert published.low <= faults <= 1.3 * published.high


def test_the_rfcs_dummy_call_is_not_reproduced(loop_workload):
    """The dummy did nothing on 5.0; the least call on 6.1 already runs entry and exit work on six times the pages."""
    least = min(n for n, name in zip(loop_workload.faults, loop_workload.names, strict=True) if name == "getppid")
    assert PUBLISHED["RFC dummy call"].measured.high < least <= 20
