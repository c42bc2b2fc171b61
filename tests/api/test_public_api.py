"""The public API: what it promises, and what it refuses."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import thinbox

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("numpy", "numba", "unicorn", "capstone", "pyarrow", "msgspec", "jinja2", "click", "rich")


@pytest.fixture(scope="module")
def booted(guest):
    return thinbox.boot()


@pytest.fixture(scope="module")
def ids(booted):
    return booted.run(["id", "-u"], faults=True)


def test_importing_it_imports_nothing_heavy():
    code = f"import sys, thinbox; thinbox.__version__; print([n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_boot_is_a_function_whatever_was_imported_before():
    code = "import thinbox; first = thinbox.boot; import thinbox.boot.ready as r, thinbox; print(callable(first), callable(thinbox.boot), r.prepare)"
    code += "\ntry: thinbox.boot('/nowhere')\nexcept thinbox.InputError as error: print(error)"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True True <function prepare") and "/nowhere" in done.stdout


def test_no_public_name_is_hidden_by_a_room():
    rooms = {path.name for path in (ROOT / "src" / "thinbox").iterdir() if path.is_dir()}
    assert rooms & set(thinbox.__all__) == {"boot"}


def test_every_public_name_is_there_and_documented():
    assert set(dir(thinbox)) == set(thinbox.__all__)
    for name in thinbox.__all__:
        assert getattr(thinbox, name) is not None
        assert name == "__version__" or getattr(thinbox, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = thinbox.nothing
    imported = ast.parse(Path(thinbox.__file__).read_text())
    shown = {
        alias.name
        for node in ast.walk(imported)
        if isinstance(node, ast.ImportFrom) and node.module == "thinbox.api"
        for alias in node.names
    }
    assert shown == set(thinbox.__all__) - {"__version__"}


def test_a_result_has_status_output_calls_and_sums(ids):
    assert (ids.exit_code, ids.stdout, ids.stderr, ids.text) == (0, b"0\n", b"", "0\n")
    assert ids.check() is ids and not ids.kills and ids.calls[0].name == "execve"
    assert ids.totals["isolated"] == len(ids.calls) and len(ids.faults) > 100
    assert (
        repr(ids)
        == f"<Result of 'id -u': status 0, {len(ids.calls)} calls, {len(ids.calls)} isolated under live, none killed>"
    )


def test_check_raises_for_a_status_a_kill_and_a_program_that_never_began(booted, tmp_path):
    with pytest.raises(thinbox.RunError, match="status 3: sorry") as raised:
        booted.run(["sh", "-c", "echo sorry >&2; exit 3"]).check()
    assert raised.value.status == 3
    with pytest.raises(thinbox.RunError, match="mkdir was killed|execve was killed") as raised:
        booted.run(["mkdir", "/tmp/x"], policy="patch").check()
    assert raised.value.status == 137
    (tmp_path / "empty").touch(0o755)
    with pytest.raises(thinbox.RunError, match="cannot run /empty") as raised:
        booted.run(["/empty"], rootfs=tmp_path).check()
    assert raised.value.status == 126


WRONG = {
    "a string": ("id", {}),
    "nothing": ([], {}),
    "no word": ([3], {}),
    "a NUL": (["i\0d"], {}),
    "bogus violation": (["id"], {"on_violation": "bogus"}),
    "bogus view": (["id"], {"view": "bogus"}),
    "bogus policy": (["id"], {"policy": "bogus"}),
    "no policy": (["id"], {"policy": object()}),
    "bogus call": (["id"], {"isolate": "getuidd"}),
    "no text": (["id"], {"isolate": 3}),
    "unknown option": (["id"], {"polcy": "sci"}),
    "relative folder": (["id"], {"workdir": "tmp"}),
    "text as stdin": (["id"], {"stdin": "text"}),
    "a list of variables": (["id"], {"env": ["A=b"]}),
    "no memory": (["id"], {"memory_bytes": 0}),
    "tasks": (["id"], {"tasks": "many"}),
    "two roots": (["id"], {"rootfs": "/x", "image": "/y"}),
    "no image": ([], {"image": "/nowhere"}),
    "no plan": (["id"], {"plan": "/nowhere.toml"}),
    "no profile": (["id"], {"prefault": "/nowhere.json"}),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_refused_in_one_line(booted, name):
    command, options = WRONG[name]
    for ask in (booted.run, booted.session):
        with pytest.raises(thinbox.InputError) as raised:
            ask(command, **options)
        assert str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(thinbox.InputError):
        booted.run_tenants([thinbox.Tenant("a", command, **options)])


def test_wrong_names_are_refused(booted):
    for ask in (
        lambda: booted.audit("getpidd"),
        lambda: booted.audit("getpid", policy="bogus"),
        lambda: booted.audit("getpid", view="bogus"),
        lambda: booted.attack("bogus"),
        lambda: booted.attack("bad-call", policy="bogus"),
        lambda: booted.attack("bad-call", view="bogus"),
        lambda: booted.attack("bad-call", on_violation="bogus"),
        lambda: booted.run_tenants(["a"]),
        lambda: booted.run_tenants([]),
        lambda: booted.run_tenants([thinbox.Tenant("a", ["id"]), thinbox.Tenant("a", ["id"])]),
        lambda: thinbox.Tenant("a/b", ["id"]) and booted.run_tenants([thinbox.Tenant("a/b", ["id"])]),
        lambda: thinbox.make_plan([]),
        lambda: thinbox.render_report([]),
        lambda: thinbox.boot("/nowhere"),
    ):
        with pytest.raises(thinbox.InputError) as raised:
            ask()
        assert "\n" not in str(raised.value)


def test_a_session_is_looked_into(booted):
    seen = []
    with booted.session(["id"]) as s:
        remove = s.on("__x64_sys_getgid", lambda: seen.append("never"))
        s.on("__x64_sys_getuid", lambda: seen.append((s.current.comm, s.symbols.at(s.regs.rip), s.regs.rdi)))
        remove()
        assert s.memory.read(s.symbols["linux_banner"], 14) == b"Linux version "
        assert s.struct("cred", "init_cred").number("uid.val") == 0
        with pytest.raises(thinbox.InputError, match="no symbol"):
            s.on("no_such_function", print)
        with pytest.raises(KeyError):
            _ = s.symbols["no_such_function"]
        with pytest.raises(thinbox.InputError, match="maps nothing"):
            s.memory.read(0xFFFF_F000_0000_0000, 8)
        with pytest.raises(thinbox.InputError, match="not been run"):
            _ = s.result
    assert len(seen) == [call.name for call in s.result.calls].count("getuid") > 0
    assert seen[0][:2] == ("id", "__x64_sys_getuid") and seen[0][2] >> 47 == 0x1FFFF
    assert s.result.exit_code == 0 and s.run() is s.result


def test_a_session_runs_step_by_step(booted):
    s = booted.session(["sh", "-c", "id -u; exit 4"])
    assert s.run_to("__x64_sys_getuid") and s.current.comm == "sh"
    # The call is isolated now, and memory is still seen as the kernel sees it.
    task = s.current
    assert task.struct("cred", "cred").number("uid.val") == 0 and task.has("comm") and not task.has("no_member")
    first_ns = s.now_ns
    told = []
    s.on("__x64_sys_getuid", lambda: told.append(s.current.comm))
    assert s.run_to("__x64_sys_getuid") and s.current.comm == "id" and s.now_ns > first_ns
    assert told == ["sh", "id"], "the one it stood at, and the next, each once"
    s.regs.rdi = s.regs.rdi
    result = s.run()
    assert (result.exit_code, result.stdout) == (4, b"0\n")
    plain = booted.run(["sh", "-c", "id -u; exit 4"])
    assert [(call.name, call.ret) for call in result.calls] == [(call.name, call.ret) for call in plain.calls]
    assert not s.run_to("__x64_sys_getuid")


def test_what_a_hook_raises_ends_the_run_and_leaving_by_an_error_runs_nothing(booted):
    with pytest.raises(ZeroDivisionError), booted.session(["id"]) as s:
        s.on("__x64_sys_getuid", lambda: 1 / 0)
    with pytest.raises(LookupError), booted.session(["id"]) as s:
        raise LookupError
    with pytest.raises(thinbox.InputError):
        _ = s.result


def test_a_policy_is_a_class_with_one_method(booted):
    asked = []

    class Mine(thinbox.Policy):
        def check_access(self, access, call):
            asked.append((access.kind, call.name))
            if access.symbol == "shmem_mkdir":
                return self.refuse("no folders here")
            return self.grant()

    script = "mkdir /tmp/x; echo after"
    result = booted.run(["sh", "-c", script], policy=Mine())
    assert result.stdout == b"after\n" and result.exit_code == 137
    (kill,) = result.kills
    assert (kill.policy, kill.rule, kill.call) == ("Mine", "Mine", "mkdir") and "no folders here" in kill.sentence()
    assert len(asked) > 100
    with pytest.raises(TypeError):
        thinbox.Policy()


def test_tenants_have_options_of_their_own(booted):
    plan = thinbox.make_plan([booted.run(["id", "-u"])], "ids")
    found = booted.run_tenants(
        [
            thinbox.Tenant("a", ["id", "-u"], plan=plan, coverage=True),
            thinbox.Tenant("b", ["sh", "-c", "cat; exit 5"], stdin=b"given", policy="sci", isolate="read", faults=True),
        ]
    )
    a, b = found.values()
    assert (a.stdout, a.refusals, a.run.record.plan) == (b"0\n", (), "ids") and a.coverage is not None
    assert (b.exit_code, b.stdout, b.run.record.plan, b.coverage) == (5, b"given", "", None)
    assert {call.name for call in b.calls if call.isolated} == {"read"} and b.faults and not a.faults
    assert "b: <Result of" in repr(found)
    with pytest.raises(thinbox.RunError):
        found.check()


def test_results_are_tables_and_show_themselves_in_a_notebook(booted, ids):
    table = ids.to_arrow()
    assert table.num_rows == len(ids.calls) and table.column("name")[0].as_py() == "execve"
    bad = booted.run(["sh", "-c", "exit 1", "<script>alert(1)</script>"])
    assert "&lt;script&gt;" in bad._repr_html_() and "<script>" not in bad._repr_html_()
    assert "<table>" in ids._repr_html_()


def test_a_library_that_is_not_there_is_said(ids, monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(thinbox.InputError, match="pip install polars"):
        ids.to_polars()
    with pytest.raises(thinbox.InputError, match=r"thinbox\[record\]"):
        ids.to_arrow()


def test_an_audit_and_attacks(booted):
    audited = booted.audit("getpid", "getuid")
    assert audited.check() is audited and {entry.call for entry in audited.entries} == {"getpid", "getuid"}
    assert (
        not audited.killed
        and audited.to_arrow().num_rows == len(audited.entries)
        and "<table>" in audited._repr_html_()
    )
    tried = booted.attack("bad-call")
    assert [row.policy for row in tried.rows] == ["none", "live"]
    assert (tried.outcome("bad-call", "none"), tried.outcome("bad-call", "live")) == ("succeeded", "detected")
    with pytest.raises(thinbox.InputError, match="was not tried"):
        tried.outcome("bad-call", "sci")


def test_what_is_saved_is_what_the_commands_read(booted, ids, tmp_path):
    ids.save(tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text())["schema"] == "thinbox.run/1"
    ids.save_profile(tmp_path / "ids.json")
    again = booted.run(["id", "-u"], prefault=tmp_path / "ids.json", policy=f"profile:{tmp_path / 'ids.json'}")
    assert again.exit_code == 0 and sum(call.prefaulted for call in again.calls) > 100
    assert b"<html" in thinbox.render_report([ids, booted.audit("getpid")], "Two results")
    with pytest.raises(thinbox.InputError, match="faults=True"):
        booted.run(["true"]).save_profile(tmp_path / "none.json")


def test_an_export_of_ones_own(ids):
    @thinbox.exporter("names-only")
    def names(made):
        return "\n".join(made.allowed()).encode()

    plan = thinbox.make_plan([ids])
    assert b"getuid" in thinbox.export(plan, "names-only") and b"getuid" in thinbox.export(
        plan, f"{__name__}:names_only"
    )
    for wrong in ("oci", "names-only", "a=b"):
        with pytest.raises(thinbox.InputError):
            thinbox.exporter(wrong)(names)
    for wrong in ("bogus", "no.such:thing", f"{__name__}:HEAVY"):
        with pytest.raises(thinbox.InputError):
            thinbox.export(plan, wrong)


def names_only(made):
    return "\n".join(made.allowed()).encode()
