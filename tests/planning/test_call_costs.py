"""Costs of single calls: by difference, on one CPU; noise is no figure, old figures are marked."""

import os

import pytest
from thinbox.errors import InputError
from thinbox.planning import call_costs
from thinbox.planning.call_costs import CallCosts, Column, find_columns, measure_calls, render_costs
from thinbox.planning.gvisor_rows import GvisorChoice
from thinbox.planning.microbench import LOOPS
from thinbox.planning.runsc import Runsc
from thinbox.planning.runtimes import HostRun

SILENT = lambda _text: None


def column(title, seconds, before="native", **more):
    values = iter(seconds)
    return Column(title, before, 1000, run=lambda _root: HostRun(0, b"", b"", next(values)), **more)


def test_a_figure_is_the_difference_of_two_runs_and_noise_is_none(tmp_path):
    native, gvisor = column("native", (0.5, 0.4)), column("gVisor ptrace", (0.1, 0.3), "ptrace")
    found = measure_calls(tmp_path, SILENT, (native, gvisor), 1, ("getppid",))
    assert found.figures["getppid"] == {"native": None, "gVisor ptrace": pytest.approx(200_000)}
    assert "| getppid |  | 200,000 |" in render_costs(found)


def test_ratios_are_to_native_and_the_cpus_are_given_back(tmp_path):
    before = os.sched_getaffinity(0)
    native, gvisor = column("native", (0.1, 0.2)), column("gVisor ptrace", (0.1, 2.1), "ptrace")
    found = measure_calls(tmp_path, SILENT, (native, gvisor), 1, ("stat",))
    assert "| stat | 100,000 | 2,000,000 (20x) |" in render_costs(found)
    assert os.sched_getaffinity(0) == before
    assert found.to_json()["calls"][0]["name"] == "stat"


def test_columns_take_turns(tmp_path):
    order = []
    columns = [
        Column(title, title, 10, run=lambda _root, title=title: (order.append(title), HostRun(0, b"", b"", 0.1))[1])
        for title in ("native", "other")
    ]
    measure_calls(tmp_path, SILENT, columns, 2, ("getppid",))
    assert order == ["native", "native", "other", "other"] * 2


def test_a_loop_that_was_not_supervised_is_an_error(tmp_path):
    idle = column("PTRACE_SYSCALL", (0.1, 0.2), "traced", build=lambda _name, _count: b"")
    with pytest.raises(InputError, match="0 of 1 calls of getppid were supervised"):
        measure_calls(tmp_path, SILENT, (idle,), 1, ("getppid",))


def test_what_was_not_measured_here_stands_in_brackets_with_its_source(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    columns = find_columns(GvisorChoice())
    titles = ["native", "gVisor ptrace", "gVisor systrap", "seccomp-notify + continue", "PTRACE_SYSCALL"]
    assert [one.title for one in columns] == titles
    text = render_costs(CallCosts(columns, {name: {"native": 100.0} for name in LOOPS}))
    assert "| getppid | 100 | [21,500 (92x)] | [11,200 (48x)] |  |  |" in text
    assert "Linux 6.18, runsc 0.0~20221219" in text and text.count("apt install runsc") == 2
    assert "[2,435,000 (26x)]" in text


def test_a_platform_one_of_two_binaries_has_is_one_column(monkeypatch):
    binaries = {"old": Runsc("old", "1", ("ptrace",)), "new": Runsc("new", "2", ("systrap", "ptrace"))}
    monkeypatch.setattr(call_costs, "find_runsc", binaries.get)
    monkeypatch.setattr("thinbox.planning.runsc.Runsc.run", lambda *_args: HostRun(0, b"", b"", 0.1))
    titles = [one.title for one in find_columns(GvisorChoice(("old", "new")))]
    assert titles[1:4] == ["gVisor ptrace (1)", "gVisor ptrace (2)", "gVisor systrap (2)"]
    assert len(titles) == 6


def test_the_loops_are_measured_for_real(tmp_path):
    columns = [one for one in find_columns(GvisorChoice(platforms=())) if one.run]
    try:
        found = measure_calls(tmp_path, SILENT, columns, 1, ("getppid",))
    except InputError as error:
        pytest.skip(str(error))
    # Which costs more, and how much, `thinbox compare --calls` tells; a busy machine may turn any two about.
    assert found.figures.keys() == {"getppid"}
    assert found.figures["getppid"].keys() == {column.title for column in columns}
    assert all(cost > 0 for cost in found.figures["getppid"].values())
