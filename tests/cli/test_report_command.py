"""`thinbox report` as its users meet it: from real runs to a page, and one line for whatever is wrong."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.support.page_reader import read_page, table
from tests.support.written_records import killed_record, run_record

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def thinbox(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "thinbox", *map(str, words)], capture_output=True, timeout=300, check=False, **options
    )


def assert_one_line(done, *words):
    assert done.returncode == 2
    assert done.stdout == b""
    line = done.stderr.decode()
    assert line.startswith("thinbox: ")
    assert line.count("\n") == 1, line
    for word in words:
        assert word in line


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run_record().to_json()))
    return path


def test_real_runs_become_a_page_that_says_what_they_say(guest, tmp_path):
    names = []
    for policy, view, status in (("sci", "strict", 0), ("patch", "none", 137)):
        names.append(tmp_path / f"{policy}.json")
        done = thinbox(
            "run", "-q", "--policy", policy, "--view", view, "--json", names[-1], "--coverage", tmp_path / f"{policy}.cov",
            "--", "sh", "-c", "mkdir /tmp/x; echo $?",
        )  # fmt: skip
        assert done.returncode == status, done.stderr
    (tmp_path / "sci.cov").rename(tmp_path / "cov.json")
    page = tmp_path / "page.html"
    done = thinbox("report", *names, tmp_path / "cov.json", "-o", page)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    root = read_page(page.read_bytes())
    rows = table(root, "Runs on this page")
    shown = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert [(row["policy"], row["view"], row["status"]) for row in shown] == [
        ("sci", "strict", "0"),
        ("patch", "none", "137"),
    ]
    for row, name in zip(shown, names, strict=True):
        record = json.loads(name.read_text())
        assert row["calls"] == f"{record['totals']['calls']:,}"
        assert row["code faults"] == f"{record['totals']['code_faults']:,}"
        assert record["kernel"]["release"] in root.text
    sentence = json.loads(names[1].read_text())["killed"]
    assert f"execve was killed: fetch at {sentence['symbol']}" in root.text
    assert "Rule limits (posted)." in root.text
    assert "Its totals are those of sci.json." in root.text
    written = json.loads(names[0].read_text())
    assert written["view"] == "strict"
    assert table(root, "Figures side by side")[0] == ["what", "sci.json", "patch.json"]


def test_the_matrix_of_the_documents_becomes_a_page(tmp_path):
    done = thinbox("report", ROOT / "docs/attacks.json", "-o", "-")
    assert done.returncode == 0, done.stderr
    root = read_page(done.stdout)
    rows = json.loads((ROOT / "docs/attacks.json").read_text())["rows"]
    for row in table(root, "View none: outcome, with the rule that refused")[1:-1]:
        assert row[1] == "succeeds"
    listed = {
        under: names
        for unders, _count, names in table(root, "Attacks that succeed, fewest first")[1:]
        for under in unders.split("; ")
    }
    for policy in ("sci", "live+guard"):
        names = [
            row["attack"]
            for row in rows
            if (row["policy"], row["view"], row["outcome"]) == (policy, "none", "succeeded")
        ]
        assert listed[policy] == ", ".join(names)


def test_a_page_goes_to_stdout_with_a_title(record):
    done = thinbox("report", record, "-o", "-", "--title", "a <b>")
    assert done.returncode == 0
    assert b"<title>a &lt;b&gt;</title>" in done.stdout


def test_a_reader_that_goes_away_is_no_error_of_ours(record):
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m thinbox report {record} {record} -o - | head -c 1 | wc -c"],
        capture_output=True, timeout=600, check=False,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr


def test_what_is_wrong_is_one_line(record, tmp_path):
    newer = tmp_path / "newer.json"
    newer.write_text(record.read_text().replace("thinbox.run/1", "thinbox.run/2"))
    page = tmp_path / "page.html"
    assert_one_line(thinbox("report", "-o", page), "RUN.json")
    assert_one_line(thinbox("report", record), "--output")
    assert_one_line(thinbox("report", newer, "-o", page), "newer.json", "thinbox.run/2", "it shows thinbox.run/1")
    assert_one_line(thinbox("report", record, tmp_path / "nowhere.json", "-o", page), "nowhere.json", "No such file")
    assert_one_line(thinbox("report", tmp_path, "-o", page), "directory")
    assert_one_line(thinbox("report", record, "-o", tmp_path / "no/where.html"), "where.html", "-o another file")
    assert not page.exists()


def test_a_record_is_never_written_over(record, tmp_path):
    kept = record.read_bytes()
    (tmp_path / "link.html").symlink_to(record)
    for output in (record, tmp_path / "link.html"):
        assert_one_line(thinbox("report", record, "-o", output), "is one of the records")
    assert record.read_bytes() == kept


def test_the_command_is_imported_when_it_is_called_only(record):
    code = "import sys, thinbox.cli as c; c.group.main(['--help'], standalone_mode=False); print('jinja2' in sys.modules, 'msgspec' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.splitlines()[-1] == "False False"


def test_neither_engine_nor_compiler_is_started_for_a_page(tmp_path):
    path = tmp_path / "killed.json"
    path.write_text(json.dumps({key: value for key, value in killed_record().to_json().items() if key != "events"}))
    code = (
        "import sys; from pathlib import Path; from thinbox.report.page.contents import contents_of;"
        "from thinbox.report.page.document import load_documents; from thinbox.report.page.html_page import render_html;"
        f"render_html(contents_of(load_documents([Path({str(path)!r})]), 't'));"
        "print(sorted({'unicorn', 'numba', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.strip() == "[]"


def test_an_installed_wheel_brings_its_templates(record, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    code = "import sys, thinbox; assert thinbox.__file__.startswith(sys.argv[1]), thinbox.__file__; from thinbox.cli import main; sys.argv = ['thinbox', *sys.argv[2:]]; main()"
    words = [tmp_path / "installed", "report", record, "-o", "-"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, timeout=600, check=False,
        env={"PYTHONPATH": str(tmp_path / "installed"), "PATH": "/usr/bin:/bin"}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == thinbox("report", record, "-o", "-").stdout
