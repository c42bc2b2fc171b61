"""Records as input: what each writer writes is read, and whatever else comes ends in one line."""

import copy
import dataclasses
import json
import sys
import typing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.written_records import plan_text, written
from thinbox.errors import InputError
from thinbox.report.page.contents import contents_of
from thinbox.report.page.document import WRITERS, load_documents, parse_document
from thinbox.report.page.html_page import render_html
from thinbox.sandbox.plan import Plan

RECORDS = written()


def data_of(record):
    return json.dumps(record).encode()


def refusal(data, **options):
    with pytest.raises(InputError) as caught:
        parse_document(data, "x.json", **options)
    line = str(caught.value)
    assert line.isprintable(), "one line, nothing hidden in it"
    assert line.startswith(("x.json ", "plan x.json"))
    assert len(line) < 600
    return line


@pytest.mark.parametrize("name", RECORDS)
def test_what_each_writer_writes_is_read(name):
    record = RECORDS[name]
    document = parse_document(data_of(record), "x.json")
    assert type(document.body) is WRITERS[record["schema"]][0]


OLD_SCHEMAS = {"thinbox.compare/1"}


def test_every_schema_that_is_read_has_a_writer_here():
    assert {record["schema"] for record in RECORDS.values()} == set(WRITERS) - OLD_SCHEMAS


def test_a_comparison_of_before_the_renaming_is_still_read():
    """`thinbox.compare/1` called a runtime a world."""
    record = json.loads(json.dumps(RECORDS["compare"]))
    record["schema"] = "thinbox.compare/1"
    for row in record["rows"]:
        row["world"] = row.pop("runtime")
    old = parse_document(json.dumps(record).encode(), "old.json")
    new = parse_document(json.dumps(RECORDS["compare"]).encode(), "new.json")
    assert [row.name for row in old.body.rows] == [row.name for row in new.body.rows]
    assert all(row.name for row in old.body.rows)


def test_a_plan_is_read_and_nothing_it_names_is_opened_or_imported(tmp_path):
    text = plan_text() + 'uname = { emulate = "antigravity:fly" }\n'
    text = text.replace('text = "web\\n"', 'from = "/nowhere/at/all"')
    (tmp_path / "web.toml").write_text(text)
    (document,) = load_documents([tmp_path / "web.toml"])
    assert isinstance(document.body, Plan)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "damaged or no JSON"),
        (b"{", "damaged or no JSON"),
        (b"\xff\xfe\x00", "damaged or no JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"schema": "thinbox.run/1", "exit_code": NaN}', "NaN"),
        (b'{"schema": "thinbox.run/1", "exit_code": 1e999}', "too large"),
        (b'{"schema": "thinbox.run/1", "exit_code": ' + b"9" * 5000 + b"}", "64 bits"),
        (b'{"schema": "thinbox.run/1", "exit_code": 18446744073709551616}', "64 bits"),
        (b"[]", "no schema"),
        (b"3", "no schema"),
        (b"{}", "no schema"),
        (b'{"schema": null}', "no schema"),
        (b'{"schema": ["thinbox.run/1"]}', "does not show"),
        (b'{"schema": "thinbox.run/2"}', "does not show; it shows thinbox.run/1"),
        (b'{"schema": "thinbox.boot/1"}', "does not show; it shows thinbox.run/1"),
        (b'{"schema": "a\\nb\\u202e' + b"c" * 10_000 + b'"}', "does not show"),
        (b'{"schema": "thinbox.run/1"}', "write it again with `thinbox run --json`"),
        (b'{"schema": "thinbox.attack/1", "kernel": 3, "rows": []}', "$.kernel"),
    ],
)
def test_what_is_no_record_is_refused_in_one_line_that_says_why(data, says):
    assert says in refusal(data)


@pytest.mark.parametrize("part", [0.01, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_was_cut_is_refused(name, part):
    data = data_of(RECORDS[name])
    assert "damaged" in refusal(data[: int(len(data) * part)])


PROMISED = {
    "run": "schema kernel policy command exit_code killed calls totals",
    "audit": "schema kernel policy entries totals",
    "attack": "schema kernel rows",
    "tenants": "schema kernel exit_code",
}
"""Fields of the contract (DESIGN section 6), at the top."""
PROMISED_OF_ONE = {
    ("run", "calls"): "seq tenant pid nr name args ret isolated verdict code_faults data_faults code_bytes virtual_ns",
    ("audit", "entries"): "call case exercised reason ret isolated_ret same killed code_faults data_faults",
    ("attack", "rows"): "attack policy view outcome step vaddr symbol undone",
}


@pytest.mark.parametrize(
    ("name", "place", "missing"),
    [(name, None, each) for name, fields in PROMISED.items() for each in fields.split()]
    + [(name, place, each) for (name, place), fields in PROMISED_OF_ONE.items() for each in fields.split()],
)
def test_without_a_field_of_the_contract_a_record_is_refused_and_the_field_named(name, place, missing):
    record = copy.deepcopy(RECORDS[name])
    del (record if place is None else record[place][0])[missing]
    line = refusal(data_of(record))
    assert f"`{missing}`" in line or (missing == "schema" and "no schema" in line)


def test_fields_of_a_later_version_are_left_alone():
    for record in map(copy.deepcopy, RECORDS.values()):
        record["later"] = {"x": [1]}
        for key in ("calls", "entries", "rows"):
            if isinstance(record.get(key), list):
                record[key][0]["later"] = "x"
        parse_document(data_of(record), "x.json")


def test_sums_that_are_not_those_of_the_parts_are_refused():
    for key in ("calls", "isolated", "code_faults", "data_faults", "refused", "killed"):
        record = copy.deepcopy(RECORDS["killed"])
        record["totals"][key] += 1
        assert f"`totals.{key}`" in refusal(data_of(record))
    for key in ("different", "killed"):
        record = copy.deepcopy(RECORDS["audit"])
        record["totals"][key] += 1
        assert f"`totals.{key}`" in refusal(data_of(record))


def test_refusals_beyond_those_listed_are_believed_only_where_the_record_says_it_left_some_out():
    record = copy.deepcopy(RECORDS["refused"])
    record["totals"]["refused"] += 5
    assert "`totals.refused`" in refusal(data_of(record))
    record["refusals_truncated"] = True
    parse_document(data_of(record), "x.json")
    record["totals"]["refused"] = 2
    assert "`totals.refused`" in refusal(data_of(record))


def test_kills_that_were_taken_out_are_noticed():
    record = copy.deepcopy(RECORDS["killed"]) | {"kills": [], "killed": None}
    assert "`totals.killed`" in refusal(data_of(record))
    record["totals"] |= {"killed": 0}
    assert "a call's `verdict` is killed" in refusal(data_of(record))


def test_numbers_of_64_bits_are_kept():
    record = copy.deepcopy(RECORDS["killed"])
    record["kills"][0]["vaddr"] = (1 << 64) - 1
    record["calls"][0]["args"][0] = -(1 << 63)
    assert parse_document(data_of(record), "x.json").body.kills[0].vaddr == (1 << 64) - 1


def test_files_of_one_name_are_told_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "run.json").write_bytes(data_of(RECORDS["run"]))
    (tmp_path / "other.json").write_bytes(data_of(RECORDS["audit"]))
    names = [
        each.name
        for each in load_documents([tmp_path / "a/run.json", tmp_path / "b/run.json", tmp_path / "other.json"])
    ]
    assert names == [str(tmp_path / "a/run.json"), str(tmp_path / "b/run.json"), "other.json"]


# -- whatever comes ------------------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for at in range(min(len(value), 2)):
            yield from places(value[at], (*path, at))


PLACES = {name: list(places(record)) for name, record in RECORDS.items()}


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_record_with_anything_in_any_place_is_refused_in_one_line_or_shown(data):
    name = data.draw(st.sampled_from(sorted(RECORDS)))
    path = data.draw(st.sampled_from(PLACES[name]))
    record = holder = {"": copy.deepcopy(RECORDS[name])}
    for key in ("", *path)[:-1]:
        holder = holder[key]
    holder[("", *path)[-1]] = data.draw(ANYTHING)
    text = json.dumps(record[""]).encode()
    try:
        document = parse_document(text, "x.json")
    except InputError as error:
        assert str(error).isprintable()
        return
    assert render_html(contents_of([document], "t")).startswith(b"<!DOCTYPE html>")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_refused_in_one_line(data, plan):
    with pytest.raises(InputError) as caught:
        parse_document(data, "x.json", plan=plan)
    assert "\n" not in str(caught.value)


def test_the_types_that_are_read_hold_no_field_that_anything_may_be_in():
    seen, left = set(), [kind for kind, _writer in WRITERS.values()]
    while left:
        kind = left.pop()
        if kind in seen:
            continue
        seen.add(kind)
        assert kind not in (typing.Any, object)
        left += typing.get_args(kind)
        if dataclasses.is_dataclass(kind):
            left += typing.get_type_hints(kind, include_extras=False).values()
