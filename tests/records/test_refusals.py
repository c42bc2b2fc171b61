"""Refusals are all counted, and kept once each; a tenant that makes up new ones neither fills the record nor the screen."""

import json
import struct

from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from thinbox.cli import group
from thinbox.planning.microbench import Step, build_elf, build_step
from thinbox.records.refusals import MOST_FORMS, MOST_KEPT, Refusal, Refusals
from thinbox.syscalls.table import call_number

LOOPS = 5000
PLAN = """schema = "thinbox.plan/1"
name = "short"
default = "deny:EPERM"
[calls]
prctl = { do = "isolate", when = { option = "PR_SET_NAME" } }
exit_group = "isolate"
execve = "isolate"
"""


def refusal(call, arguments="", pid=1):
    return Refusal(call, pid, "deny EPERM", 1, "p", 5, arguments, "no rule")


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "#7", "#8", "i386#9"]), st.integers(0, 60)), max_size=300))
def test_all_are_counted_and_the_first_of_each_call_is_kept(made):
    found = Refusals()
    for call, value in made:
        found.add(refusal(call, f"x={value}"))
    assert found.count == len(made) and bool(found) == bool(made)
    rows = found.to_json()
    if not found.truncated:
        assert sum(row["times"] for row in rows) == len(made)
    assert found.truncated == (len(rows) < len(set(made)))
    assert {row["call"] for row in rows} >= {call for call, _value in made if "#" not in call}
    assert [row["call"] for row in rows] == [one.call for one in found]


def test_what_is_kept_has_a_bound_whatever_a_tenant_asks_for():
    found = Refusals()
    for number in range(3 * MOST_KEPT):
        found.add(refusal(f"#{number + 10_000}", pid=number))
        found.add(refusal(f"i386#{number}"))
        found.add(refusal(f"call{number % 100}", f"x={number}"))
    kept = list(found)
    assert len(kept) <= MOST_KEPT + 100
    assert sum(one.call.startswith("#") for one in kept) == MOST_FORMS
    assert (
        found.truncated
        and found.headline() == f"{9 * MOST_KEPT:,} refused, {len(kept):,} kinds of it listed, others not"
    )


def test_the_same_again_is_one_with_a_count():
    found = Refusals()
    for pid in range(1000):
        found.add(refusal("mkdir", pid=pid))
    assert [(row["call"], row["pid"], row["times"]) for row in found.to_json()] == [("mkdir", 0, 1000)]
    assert not found.truncated and found.headline() == "1,000 refused"


def test_a_loop_over_arguments_fills_neither_the_record_nor_the_screen(guest, tmp_path):
    """Each prctl has an option of its own, so each is another refusal."""
    body = b"\x89\xdf\xb8" + struct.pack("<I", call_number("prctl")) + b"\x0f\x05\xff\xcb"  # mov edi, ebx; …; dec ebx
    loop = b"\xbb" + struct.pack("<I", LOOPS + 1000) + body + b"\x81\xfb\xe8\x03\0\0"  # mov ebx; …; cmp ebx, 1000
    loop += b"\x0f\x85" + struct.pack("<i", -(len(body) + 12))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "loop").write_bytes(build_elf(loop + build_step(Step("exit_group", (7,)))))
    (tmp_path / "root" / "loop").chmod(0o755)
    (tmp_path / "plan.toml").write_text(PLAN)
    words = ["run", "--plan", str(tmp_path / "plan.toml"), "--rootfs", str(tmp_path / "root")]
    done = CliRunner().invoke(group, [*words, "--json", str(tmp_path / "run.json"), "--", "/loop"])
    assert done.exit_code == 7
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["totals"]["refused"] == LOOPS
    assert len(record["refusals"]) == MOST_FORMS and record["refusals_truncated"] is True
    lines = done.stderr.splitlines()
    assert sum("was refused by short" in line for line in lines) < MOST_FORMS
    said = f"{LOOPS:,} refused, {MOST_FORMS} kinds of it listed, others not"
    assert sum(said in line for line in lines) == 2  # by itself, and in the line of sums
    checked = CliRunner().invoke(group, [*words[:1], "-q", *words[1:], "--", "/loop"])
    assert len(checked.stderr) < 8192 and f"thinbox: {said}" in checked.stderr
