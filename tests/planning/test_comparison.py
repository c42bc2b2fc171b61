"""Worlds side by side: ratios within one clock only, what is missing says how to get it, loops do what they say."""

import pytest
from tests.support.gvisor_binaries import installed_runsc
from thinbox.errors import InputError
from thinbox.planning import runtimes
from thinbox.planning.comparison import compare_runtimes, render_comparison
from thinbox.planning.microbench import LOOPS, build_loop
from thinbox.session.session import RunOptions, run

COMMAND = ["sh", "-c", "echo hello; id -u"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    runtimes.make_busybox_root(folder)
    return folder


def test_every_runtime_is_in_the_table_and_missing_ones_say_what_to_install(guest, root, monkeypatch):
    monkeypatch.setattr(runtimes.shutil, "which", lambda _name: None)
    found = compare_runtimes(guest, COMMAND, root, 1, lambda _text: None)
    rows = {row.runtime: row for row in found.rows}
    assert "apt install bubblewrap" in rows["native, seccomp profile"].note
    for platform, allowed in (("ptrace", 69), ("systrap", 85)):
        row = rows[f"gVisor, {platform}"]
        assert "apt install runsc" in row.note and "2026-11" in row.note and row.host_calls == allowed
    plain, isolated, thinned = (rows[f"thinbox, {w}"] for w in ("un-isolated", "isolated", "thinned"))
    assert plain.unisolated == plain.calls and isolated.unisolated == thinned.unisolated == 0
    assert thinned.reaching < isolated.reaching == plain.reaching
    assert thinned.functions < isolated.functions == plain.functions
    assert plain.ratio == 1.0 and {plain.clock, isolated.clock, thinned.clock} == {"emulated"}
    text = render_comparison(found)
    assert "Kata, QEMU" in text and "Nabla" in text and "nabla-measurements" in text
    assert found.to_json()["schema"] == "thinbox.compare/2"


def test_host_rows_are_ratios_to_the_native_run(guest, root):
    try:
        if runtimes.run_native(root, COMMAND).exit_code:
            pytest.skip("bubblewrap cannot run here")
    except InputError as error:
        pytest.skip(str(error))
    rows = {row.runtime: row for row in compare_runtimes(guest, COMMAND, root, 1, lambda _text: None).rows}
    assert rows["native"].ratio == 1.0 and rows["native"].clock == rows["seccomp profile"].clock == "host"
    assert rows["native"].exit_code == rows["seccomp profile"].exit_code == 0
    gvisor = rows["gVisor, ptrace"]
    if isinstance(installed_runsc(), str):
        assert installed_runsc() in gvisor.note and gvisor.exit_code is None
    else:
        assert gvisor.clock == "host" and gvisor.ratio > 1 and gvisor.exit_code == 0
        assert gvisor.host.missing or gvisor.reaching > gvisor.host_made > 10


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_makes_its_calls_as_often_as_it_says(guest, tmp_path, name):
    for folder in ("bin", "proc", "dev"):
        (tmp_path / folder).mkdir()
    (tmp_path / "loop").write_bytes(build_loop(name, 5))
    (tmp_path / "loop").chmod(0o755)
    result = run(guest, ["/loop"], RunOptions(rootfs=tmp_path, isolate="none"))
    assert result.exit_code == 0
    made = [call for call in result.record.calls if call.name != "execve"]
    for step in LOOPS[name][1]:
        mine = [call for call in made if call.name == step.name]
        assert len(mine) == 5 and all(call.ret >= 0 for call in mine if call.ret is not None)
