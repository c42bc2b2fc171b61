"""What a record leaves out is said wherever it is read: JSON, summary, page; what needs every call refuses it."""

import json

import pytest
from tests.support.page_reader import read_page
from tests.support.written_records import run_record, violation
from thinbox.cost.workload import workload_of
from thinbox.errors import InputError
from thinbox.planning.evidence import gather_evidence
from thinbox.records.call_log import CallLog
from thinbox.records.fault_log import FaultLog, FaultRecord
from thinbox.records.kill_list import KillList
from thinbox.records.profile import touched_by
from thinbox.records.row_store import CHUNK_ROWS, Bounds
from thinbox.records.run import CallRecord, RunRecord
from thinbox.report.page.contents import contents_of
from thinbox.report.page.document import parse_document
from thinbox.report.page.html_page import render_html
from thinbox.report.summary import render_summary
from thinbox.surface.run_surface import tabulate

LEFT = 2 * CHUNK_ROWS
COUNT = 4 * CHUNK_ROWS


def calls():
    for n in range(COUNT):
        yield CallRecord(n, "tenant", 9, 39, "getpid", (0,) * 6, 9, isolated=True, verdict="granted", code_faults=7)


@pytest.fixture(scope="module")
def record() -> RunRecord:
    record = run_record(calls=CallLog(calls(), Bounds(CHUNK_ROWS, 1 << 30)))
    assert record.calls.left_out == LEFT
    return record


@pytest.fixture(scope="module")
def data(record):
    return json.loads(json.dumps(record.to_json()))


def page_of(data):
    return read_page(render_html(contents_of([parse_document(json.dumps(data).encode(), "run.json")], "t")))


def test_the_json_says_how_many_and_its_totals_are_of_all(data):
    assert data["calls_left_out"] == LEFT and len(data["calls"]) == COUNT - LEFT
    assert data["totals"]["calls"] == COUNT and data["totals"]["code_faults"] == 7 * COUNT


def test_the_summary_says_so(record):
    said = render_summary(record)
    assert "leaves out 8,192 calls, for its bound of 4,096 is reached; totals are of all" in said
    assert "16,384 calls, 16,384 isolated" in said


def test_the_page_says_so_in_its_headline_and_before_its_tables(data):
    root = page_of(data)
    (headline,) = [each for each in root.all("p") if "headline" in each.attributes.get("class", "")]
    assert "Incomplete" in headline.text and "the record leaves out 8,192 calls" in headline.text
    assert "they are in its totals, and not in what follows" in root.text


@pytest.mark.parametrize("change", [{"calls_left_out": LEFT - 1}, {"calls_left_out": 0}])
def test_the_page_refuses_a_record_that_leaves_out_more_than_it_says(data, change):
    with pytest.raises(InputError, match="totals.calls"):
        page_of(data | change)


def test_kills_that_are_only_counted_are_in_the_headline():
    record = run_record(kills=KillList([violation() for _ in range(9)], most=2))
    root = page_of(record.to_json())
    assert "(8 more kills below)" in root.text and "the record leaves out 7 kills" in root.text


def test_a_plan_is_not_made_of_a_record_that_leaves_calls_out(data):
    with pytest.raises(InputError, match="leaves out 8,192 calls: a plan"):
        gather_evidence([data])


def test_no_cost_follows_from_it(data):
    with pytest.raises(InputError, match="leaves out 8,192 calls, so no cost"):
        workload_of(data, None)
    assert "No cost" in page_of(data).text


def test_no_profile_is_learned_and_no_surface_measured_of_it(record):
    for refuses in (touched_by, lambda record: tabulate(record, None)):
        with pytest.raises(InputError, match="leaves out 8,192 calls"):
            refuses(record)
    faults = FaultLog((FaultRecord(0, n, n, "fetch", "f") for n in range(COUNT)), Bounds(CHUNK_ROWS, 1 << 30))
    with pytest.raises(InputError, match="leaves out 8,192 faults"):
        touched_by(run_record(faults=faults))


def test_parquet_says_so_in_its_metadata(record, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    from thinbox.report.parquet import write_record

    write_record(record, tmp_path)
    found = parquet.read_table(tmp_path / "calls.parquet")
    assert found.num_rows == COUNT - LEFT and found.schema.metadata[b"left_out"] == b"8192"
