"""`thinbox audit` as a user meets it."""

import json

import pytest
from click.testing import CliRunner
from thinbox.cli.audit import audit
from thinbox.errors import InputError


def invoke(*words):
    return CliRunner().invoke(audit, words)


def test_the_table_names_call_case_and_verdict(guest):
    result = invoke("-q", "getpid", "uname")
    assert result.exit_code == 0, result.output
    assert "into a buffer" in result.output and "EFAULT" in result.output
    assert "0 different, 0 of them killed, 0 not exercised" in result.output


def test_json_goes_to_stdout_alone(guest):
    result = invoke("-q", "getpid", "--json", "-", "--grants")
    entry = json.loads(result.stdout)["entries"][0]
    assert len(entry["grants"]) == entry["code_faults"] + entry["data_faults"] > 5


def test_a_baseline_that_had_fewer_grants_fails_and_says_which(guest, tmp_path):
    path = tmp_path / "baseline.json"
    assert invoke("-q", "getpid", "--baseline", str(path), "--update-baseline").exit_code == 0
    assert invoke("-q", "getpid", "--baseline", str(path)).exit_code == 0
    text = path.read_text()
    row = json.loads(text)["cases"]["getpid: plain"]
    path.write_text(text.replace(json.dumps(row), json.dumps([row[0] - 1, *row[1:]])))
    result = invoke("-q", "getpid", "--baseline", str(path))
    assert result.exit_code == 1
    assert f"getpid: plain: {row[0]} code pages granted, the baseline has {row[0] - 1}" in result.output


def test_the_list_needs_no_kernel():
    result = invoke("--list", "getpid")
    assert result.output.splitlines()[0] == "getpid                   success  plain"


@pytest.mark.parametrize("words", [(), ("--all", "getpid"), ("getpid", "--update-baseline")])
def test_bad_usage_is_one_line(words):
    with pytest.raises(InputError):
        CliRunner().invoke(audit, words, catch_exceptions=False)
