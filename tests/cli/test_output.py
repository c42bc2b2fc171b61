"""What a command writes goes where the user says, `-` to stdout; a place that cannot be is one line, and nothing is lost."""

import json

import pytest
from click.testing import CliRunner
from thinbox.cli import group
from thinbox.cli.output import write_output
from thinbox.errors import InputError
from thinbox.planning import call_costs
from thinbox.planning.call_costs import CallCosts


def test_a_file_or_stdout(tmp_path, capsys):
    write_output(str(tmp_path / "file"), "text\n")
    write_output("-", "text\n")
    assert (tmp_path / "file").read_text() == capsys.readouterr().out == "text\n"
    with pytest.raises(InputError, match="cannot write .*/nowhere/file: No such file or directory"):
        write_output(str(tmp_path / "nowhere" / "file"), "text\n")


@pytest.fixture
def measured(monkeypatch):
    """`compare --calls` has measured nothing, at once."""
    monkeypatch.setattr(call_costs, "find_columns", lambda _choice: ())
    monkeypatch.setattr(call_costs, "measure_calls", lambda *_args: CallCosts((), {}))


def test_compare_shows_its_table_before_a_file_it_cannot_write(measured, tmp_path):
    done = CliRunner().invoke(group, ["compare", "-q", "--calls", "--json", str(tmp_path / "nowhere" / "x.json")])
    assert isinstance(done.exception, InputError) and "x.json" in str(done.exception)
    assert "ns of one turn" in done.stdout


def test_compare_writes_json_to_stdout_alone(measured):
    done = CliRunner().invoke(group, ["compare", "-q", "--calls", "--json", "-"])
    assert done.exit_code == 0 and json.loads(done.stdout)["schema"] == "thinbox.compare-calls/1"
