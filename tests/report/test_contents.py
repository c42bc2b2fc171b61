"""What a page says: verdicts in words, figures as the record has them, several records side by side."""

import json
import re

import pytest
from tests.support.page_reader import read_page, table
from tests.support.written_records import (
    audit_record,
    coverage,
    killed_record,
    refused_record,
    run_record,
    surface,
    violation,
    written,
)
from thinbox.report.page.contents import contents_of
from thinbox.report.page.document import parse_document
from thinbox.report.page.html_page import render_html

RECORDS = written()


def read(*records, names=()):
    names = names or [f"{at}.json" for at in range(len(records))]
    documents = [parse_document(json.dumps(each).encode(), name) for each, name in zip(records, names, strict=True)]
    return read_page(render_html(contents_of(documents, "t")))


def headline(root):
    (found,) = [each for each in root.all("p") if "headline" in each.attributes.get("class", "")]
    return found.attributes["class"].split()[1], " ".join(found.text.split())


def facts(root):
    pairs = [(each.text for each in div.all("dt", "dd")) for div in root.all("div") if list(div.all("dt"))]
    return {" ".join(term.split()): " ".join(text.split()) for term, text in pairs}


# -- verdicts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "tone", "says"),
    [
        (run_record(), "good", "Ran to its end, no call killed; exit status 0."),
        (run_record(exit_code=3), "good", "no call killed; exit status 3."),
        (run_record(exit_code=139), "good", "exit status 139 (128 + SIGSEGV)."),
        (run_record(exit_code=137), "good", "no call killed; exit status 137 (128 + SIGKILL)."),
        (run_record(coverage=coverage(lost=3)), "warn", "coverage lost 3 blocks: its figures are lower bounds"),
        (killed_record(), "bad", "mkdir was killed: fetch at hugetlb_reserve_pages+0xc5 (0xffffffff812ffc55) refused by rule "
         "6b of policy sci: a jump into the middle of a function (1 more kill below); exit status 137"),
        (killed_record(stuck=True), "bad", "the guest was given up and the record ends there"),
        (run_record(not_started="cannot run /x: no", exit_code=127), "warn", "Never began: cannot run /x: no; exit status 127."),
        (killed_record(stopped=True), "bad", "the run was ended at the violation"),
        (run_record(kills=[violation(undone=True)]), "bad", "what a killed call had done was rolled back"),
        (run_record(kills=[violation(view="strict", rule="V1")]), "bad", "refused by rule V1 of view strict"),
        (refused_record(), "bad", "mkdir was killed: plan web.toml, line 9: mount"),
    ],
)  # fmt: skip
def test_a_run_s_verdict_is_said_in_words(record, tone, says):
    found, text = headline(read(record.to_json()))
    assert found == tone
    assert says in text


def test_a_refused_call_is_said_and_so_is_a_run_that_was_not_isolated():
    record = refused_record()
    record.kills, record.killed = [], None
    tone, text = headline(read(record.to_json()))
    assert (tone, text[:42]) == ("warn", "! socket(family=AF_INET) was refused by we")
    assert "(2 more refusals)" in text
    plain = run_record()
    for call in plain.calls:
        call.isolated = False
        call.code_faults = call.data_faults = 0
    assert headline(read(plain.to_json())) == ("plain", "i Ran un-isolated, so nothing was judged; exit status 0.")
    plain.calls[0].isolated = True
    assert "4 calls not isolated" in headline(read(plain.to_json()))[1]


def test_a_cut_trace_reaches_the_headline():
    record = run_record().to_json()
    record["events"]["references"] = {"file": "x.trace", "lost": 5}
    assert headline(read(record))[0] == "warn"
    assert "5 words found no room" in headline(read(record))[1]


# -- one run -------------------------------------------------------------------------------------------


def test_the_table_of_calls_adds_up_to_the_totals_and_stands_by_faults():
    root = read(RECORDS["run"])
    head, *rows = table(root, "Calls by name, most faults first")
    assert [row[0] for row in rows] == ["execve", "exit_group", "read", "write"]
    read_row = dict(zip(head, next(row for row in rows if row[0] == "read"), strict=True))
    assert read_row == {
        "call": "read", "times": "2", "isolated": "2", "code faults": "40", "data faults": "20", "median faults": "10",
        "most faults": "50", "code executed, bytes": "40,000", "virtual time": "36.0 µs", "slowest, virtual": "27.0 µs",
    }  # fmt: skip
    totals = RECORDS["run"]["totals"]
    for heading, name in (("times", "calls"), ("code faults", "code_faults"), ("data faults", "data_faults")):
        assert sum(int(row[head.index(heading)].replace(",", "")) for row in rows) == totals[name]


def test_the_chart_counts_every_isolated_call_once():
    (described,) = [each.text for each in read(RECORDS["run"]).all("desc") if each.text[0].isdigit()]
    counted = re.findall(r"([\d,]+) with ([\d,]+)(?: to ([\d,]+))?", described)
    assert sum(int(held) for held, *_range in counted) == 5
    faults = sorted(call["code_faults"] + call["data_faults"] for call in RECORDS["run"]["calls"])
    for held, low, high in counted:
        inside = [each for each in faults if int(low) <= each <= int(high or low)]
        assert int(held) == len(inside)


def test_calls_are_shown_with_the_names_of_their_arguments_costliest_first():
    head, *rows = table(read(RECORDS["run"]), "The 5 costliest calls, most faults first")
    assert [row[head.index("number")] for row in rows] == ["0", "4", "1", "2", "3"]
    assert rows[2][1] == "read(fd=3, buf=0x7fff0000, count=5)"
    assert rows[4][head.index("result")] == "EBADF"


def test_each_violation_is_explained_with_what_to_do():
    root = read(RECORDS["killed"])
    rows = table(root, "What was refused and killed, in order")
    assert [row[rows[0].index("rule")] for row in rows[1:]] == ["6b", "6c of sci"]
    advice = [" ".join(each.text.split()) for each in root.all("aside")]
    assert [text.partition(".")[0] for text in advice] == ["Rule 6b", "Rule 6c"]
    assert all("What to do." in text for text in advice)


def test_host_time_stands_under_host_time_and_everything_else_is_virtual():
    root = read(RECORDS["whole run"])
    host = facts(root)["Host time"]
    assert "98.77 s" in host
    assert "5.4 µs" in host
    assert facts(root)["Virtual time"] == "24.02 ms"
    rest = root.text.replace("98.77 s", "").replace("5.4 µs", "")
    assert "98.7" not in rest
    for heading in root.all("th"):
        if re.search(r"\btime\b|slowest", heading.text):
            assert "virtual" in heading.text


def test_refusals_of_a_plan_are_counted_and_phases_told_apart():
    root = read(RECORDS["refused"])
    assert table(root, "Calls that the plan refused, most often first")[1] == [
        "socket", "family=AF_INET", "3", "deny EAFNOSUPPORT", "7", "no rule allows it",
    ]  # fmt: skip
    rows = table(root, "What plan web made of the calls")
    assert [row[:4] for row in rows[1:]] == [["isolate", "4", "2", "2"], ["emulate", "1", "1", "0"]]


def test_surface_and_coverage_are_shown_where_the_record_has_them_and_only_there():
    root = read(RECORDS["whole run"])
    left = {row[0]: row[1:] for row in table(root, "Left in one call under policy sci")}
    assert left["gadgets in these pages"] == ["35", "0.0059 %", "286", "0.048 %", "590,408"]
    published = table(root, "Distinct kernel functions entered (horizontal attack profile)")
    assert published[1][1:] == ["none (thinbox)", "2", "1"]
    assert ["node-express [1]", "Nabla", "", "about 156"] in published
    titles = [each.text for each in read(RECORDS["run"]).all("h3")]
    assert titles == ["Calls", "What it would cost, modelled"]


def test_cost_comes_from_the_model_and_is_called_modelled():
    root = read(RECORDS["run"])
    rows = table(root, "Cycles added to a call, modelled")
    assert len(rows) == 1 + 6 * 3
    skylake = [row for row in rows if row[0].startswith("Intel Skylake")]
    assert [row[1] for row in skylake] == ["pti", "sci", "sci-prepopulated"]
    assert all(".." in row[2] for row in skylake)
    from thinbox.cost.model import Model
    from thinbox.cost.modes import find_mode
    from thinbox.cost.profiles import find_profile
    from thinbox.cost.workload import workload_of
    from thinbox.report.cost_table import span

    (cost,) = Model(workload_of(RECORDS["run"], None)).costs([find_profile("skylake-server")], (find_mode("sci"),))
    assert skylake[1][2] == span(cost.median)
    without = {key: value for key, value in RECORDS["run"].items() if key != "events"}
    assert not [each for each in read(without).all("caption") if "Cycles" in each.text]
    prefaulted = json.loads(json.dumps(RECORDS["run"]))
    prefaulted["calls"][0]["prefaulted"] = 4
    assert "No cost: the record is of a run with --prefault" in read(prefaulted).text


# -- several -------------------------------------------------------------------------------------------


def test_runs_of_the_same_command_stand_side_by_side():
    other = run_record(policy="live", view="strict")
    other.calls = other.calls[:3]
    elsewhere = run_record(command=("id",))
    root = read(*(record.to_json() for record in (run_record(), other, elsewhere)), names=["a", "b", "c"])
    rows = {row[0]: row[1:] for row in table(root, "Figures side by side")}
    assert rows["what"] == ["a", "b"]
    assert rows["policy"] == ["sci", "live"]
    assert rows["view"] == ["none", "strict"]
    assert rows["calls"] == ["5", "3"]
    assert rows["faults of the widest call"] == ["483", "483"]
    by_call = {row[0]: row[1:] for row in table(root, "Calls: times x median faults, most faults first")}
    assert by_call["read"] == ["2 x 10", "2 x 10"]
    assert by_call["write"] == ["1 x 9", "not called"]
    assert [row[0] for row in table(root, "Runs on this page")] == ["run", "a", "b", "c"]


def test_a_single_run_is_compared_with_nothing():
    assert not [each for each in read(RECORDS["run"]).all("caption") if "side by side" in each.text]


def test_more_runs_than_columns_are_counted():
    root = read(*[RECORDS["run"]] * 14)
    assert len(table(root, "Figures side by side")[0]) == 13
    assert "2 more runs of it have no column here" in root.text


def test_tenants_are_named_and_each_is_a_run():
    root = read(RECORDS["tenants"], names=["t.json"])
    assert [row[0] for row in table(root, "Its tenants")] == ["run", "t.json: web", "t.json: batch"]
    assert "calls were killed in batch; exit status 137" in root.text


def test_an_audit_says_kills_and_differences_apart():
    root = read(RECORDS["audit"])
    assert headline(root) == (
        "bad",
        "✕ Of 4 cases that do nothing wrong, 1 killed under policy patch, 1 otherwise different.",
    )
    assert table(root, "By rule, most cases first")[1:] == [
        ["limits (posted)", "1", "1", "open 1"],
        ["not killed", "1", "1", "read 1"],
    ]
    assert [row[:5] for row in table(root, "Each case that differs from its un-isolated run")[1:]] == [
        ["open", "new file", "3", "-", "killed"],
        ["read", "short", "3", "2", "different"],
    ]
    assert [row[0] for row in table(root, "Cases and calls without a working un-isolated run")[1:]] == [
        "mount: proc",
        "mount",
    ]


def test_audits_stand_side_by_side_case_by_case():
    one, other = audit_record("patch").to_json(), audit_record("live", killed=False).to_json()
    root = read(one, other)
    rows = table(root, "Cases that differ under any of them, by policy")
    assert rows == [
        ["case", "patch", "live"],
        ["open: new file", "killed limits (posted)", "same"],
        ["read: short", "different", "different"],
    ]


def test_what_gets_through_is_said_first_and_never_an_empty_cell():
    root = read(RECORDS["attack"])
    assert headline(root)[1].endswith(
        "Under the best of 2 combinations, live+guard, view strict, 0 of 2 attacks succeed."
    )
    assert [each.text for each in root.all("h3")] == ["What gets through", "Attack by policy", "Where they die"]
    assert table(root, "Attacks that succeed, fewest first")[1:] == [
        ["live+guard, view strict", "0 of 2", "none"],
        ["the unisolated kernel", "1 of 2", "bad-call"],
        ["sci", "1 of 2", "own-cred"],
    ]
    assert table(root, "View none: outcome, with the rule that refused") == [
        ["attack", "unisolated", "sci"],
        ["bad-call", "succeeds", "detected 6b"],
        ["own-cred", "contained", "succeeds"],
        ["succeed", "1", "1"],
    ]
    assert "own-cred does not succeed even unisolated" in root.text
    assert table(root, "The step at which each attack was stopped, by what, and under which policies")[1] == [
        "bad-call", "1 lseek: the target", "6b", "f+0x5", "a jump into the middle", "sci (none)", "all",
    ]  # fmt: skip
    assert all(cell for row in table(root, "View strict: outcome, with the rule that refused") for cell in row)


def test_runtimes_stand_by_their_clocks():
    root = read(RECORDS["compare"])
    captions = [each.text for each in root.all("caption")]
    host = table(root, next(each for each in captions if each.startswith("Host clock")))
    emulated = table(root, next(each for each in captions if each.startswith("Emulated")))
    assert [row[0] for row in host[1:]] == ["native", "gVisor, ptrace", "gVisor, systrap"]
    assert [row[0] for row in emulated[1:]] == ["thinbox, isolated"]
    assert host[3][1] == "not entered"
    assert table(root, "gVisor, ptrace: calls the host kernel ran for it")[1] == [
        "sentry",
        "42",
        "2",
        "futex 40, read 2",
    ]
    assert headline(root)[1].endswith("Fewest calls reach the shared kernel un-isolated in thinbox, isolated: 0.")


def test_coverage_says_whose_it_is():
    record = run_record(coverage=coverage()).to_json()
    root = read(record, coverage().to_json(), names=["run.json", "cov.json"])
    assert "Its totals are those of run.json." in root.text
    assert table(root, "Functions and pages by call, most functions first")[1] == [
        "read",
        "2",
        "2",
        "2",
        "1",
        "2",
        "1",
        "0",
    ]


def test_surface_of_a_run_that_made_no_call_is_no_figure():
    empty = run_record(calls=[]).to_json() | {"surface": surface().to_json() | {"all": None, "calls": []}}
    empty["events"]["calls"] = []
    text = read(empty).text
    assert "The record has no call." in text
    assert "nothing was left to measure" in text
