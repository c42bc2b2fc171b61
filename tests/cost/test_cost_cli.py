"""`thinbox cost`: the table, the JSON, the plots, the page, and one line for what is wrong."""

import json
import re
import subprocess
import sys

import pytest
from thinbox.cost.calibrate import nearest, parse_probe, profile_of, profile_text
from thinbox.cost.profiles import cpu_names, find_profile, load_profile
from thinbox.errors import MachineError

pytestmark = pytest.mark.guest


def thinbox(*words):
    return subprocess.run(
        [sys.executable, "-m", "thinbox", *map(str, words)], capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    path = tmp_path_factory.mktemp("cost") / "run.json"
    done = thinbox(
        "run", "-q", "--events", "--json", path, "--", "sh", "-c", "ls / >/dev/null; cat /proc/self/status >/dev/null"
    )
    assert done.returncode == 0, done.stderr
    return path


def test_every_cpu_and_mode_has_a_row_and_intervals_are_ordered(record, tmp_path):
    done = thinbox(
        "cost", record, "--json", tmp_path / "cost.json", "--plot", tmp_path / "plots", "--page", tmp_path / "cost.md"
    )
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "cost.json").read_text())
    assert data["schema"] == "thinbox.cost/1"
    assert data["replayed"] is True
    assert {row["cpu"] for row in data["rows"]} == set(cpu_names())
    rows = {(row["cpu"], row["mode"]): row for row in data["rows"]}
    assert ("zen-2", "sci-pcid") not in rows, "Zen 2 has no PCIDs"
    for row in data["rows"]:
        for value in (row["median_call_cycles"], row["mean_call_cycles"], row["total_cycles"]):
            assert value["low"] <= value["high"]
        causes = row["causes"].values()
        assert sum(value["low"] for value in causes) == pytest.approx(row["total_cycles"]["low"])
    for cpu in cpu_names():
        assert rows[cpu, "none"]["total_cycles"] == {"low": 0, "high": 0}
        assert rows[cpu, "sci"]["events_added"]["faults"]["low"] == sum(
            call["code_faults"] + call["data_faults"] for call in json.loads(record.read_text())["calls"]
        )
        assert (
            rows[cpu, "sci-prepopulated"]["median_call_cycles"]["high"] < rows[cpu, "sci"]["median_call_cycles"]["low"]
        )
    assert data["prepopulation"]["faults_median"] <= 2
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["cpus.svg", "faults.svg", "modes.svg"]
    page = (tmp_path / "cost.md").read_text()
    assert "nan" not in page
    assert all(re.search(r"\d", line) for line in page.splitlines() if line.startswith("- On "))
    for name in cpu_names():
        assert name in done.stdout


def test_without_a_trace_the_bounds_hold_what_the_replay_says(record, tmp_path):
    replayed = json.loads(thinbox("cost", record, "--json", "-").stdout)
    plain = json.loads(record.read_text())
    plain["events"]["references"] = None
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    bounded = json.loads(thinbox("cost", tmp_path / "plain.json", "--json", "-").stdout)
    assert bounded["replayed"] is False
    wide = {(row["cpu"], row["mode"]): row["total_cycles"] for row in bounded["rows"]}
    for row in replayed["rows"]:
        if row["mode"] in ("sci", "sci-pcid", "sci-nopcid"):
            bound = wide[row["cpu"], row["mode"]]
            assert bound["low"] <= 1.02 * row["total_cycles"]["low"]
            assert row["total_cycles"]["high"] <= 1.02 * bound["high"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["cost"], "give a RUN.json"),
        (["cost", "missing.json"], "cannot read"),
        (["cost", "--mode", "nothing", "RUN"], "no mode 'nothing'"),
        (["cost", "--cpu", "z80", "RUN"], "no CPU profile 'z80'"),
        (["cost", __file__], "no JSON"),
        (["run", "--events", "--", "true"], "--events needs --json"),
    ],
)
def test_bad_usage_is_one_line(words, says, record):
    done = thinbox(*[record if word == "RUN" else word for word in words])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_a_damaged_trace_is_one_line(record, tmp_path):
    (tmp_path / "run.json").write_bytes(record.read_bytes())
    (tmp_path / "run.json.trace").write_bytes(b"x" * 100)
    done = thinbox("cost", tmp_path / "run.json")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


PROBE = {
    "ticks_per_ns": 2.6, "system_call": 950.0, "page_fault": 1580.0, "switch_thread": 6000.0, "switch_process": 6300.0,
    "load_first_level": 3.0, "load_second_level": 8.0, "load_walk": 120.0,
}  # fmt: skip


def test_a_calibrated_profile_can_be_read_again_and_says_what_is_inferred(tmp_path):
    profile = profile_of(PROBE, find_profile("zen-4"), 'A "CPU"', {"pcid"})

    class Host:
        pass

    Host.profile = profile
    path = tmp_path / "host.toml"
    path.write_text(profile_text(Host))
    again = load_profile(path)
    assert again == profile
    assert again.figures["frequency_ghz"].status == "measured"
    assert again.figures["cr3_keep"].high == pytest.approx(300)
    assert {name for name, figure in again.figures.items() if figure.status == "inferred"} == {
        "cr3_keep", "fault_round_trip", "syscall_round_trip", "walk_load", "l2_hit",
    }  # fmt: skip


def test_a_difference_lost_in_noise_is_not_taken_for_a_cr3_write():
    noisy = PROBE | {"switch_process": 6003.0}
    figure = profile_of(noisy, find_profile("zen-4"), "x", {"pcid"}).figures["cr3_keep"]
    assert figure.status == "assumed"
    assert "noise" in figure.source


def test_a_probe_that_measures_nothing_is_refused():
    with pytest.raises(MachineError):
        parse_probe("system_call 3\n")


@pytest.mark.parametrize(
    ("vendor", "family", "model", "name"),
    [("AuthenticAMD", 0x17, 0x31, "zen-2"), ("AuthenticAMD", 0x19, 1, "zen-3"), ("AuthenticAMD", 0x19, 17, "zen-4"),
     ("GenuineIntel", 6, 0x55, "skylake-server"), ("GenuineIntel", 6, 0x6A, "ice-lake-server"), ("GenuineIntel", 6, 0x97, "alder-lake")],
)  # fmt: skip
def test_the_nearest_profile_is_chosen_by_family_and_model(vendor, family, model, name):
    assert nearest(vendor, family, model) == name
