"""Whatever is wrong with the input gives one line on stderr and the documented exit status; the cache stays usable."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from thinbox.image.cache import CACHE_VARIABLE, cache_dir
from thinbox.image.source import resolve_kernel

INPUT, MACHINE, INTERRUPTED = 2, 3, 130
TIMEOUT_S = 600
SOURCE = Path(__file__).resolve().parents[2] / "src"

pytestmark = pytest.mark.usefixtures("guest")  # the default kernel and its snapshot are cached


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "thinbox", *map(str, args)]


def environment(**changes: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(SOURCE)} | changes


def thinbox(*args: object, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*args),
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT_S,
        check=False,
    )


def assert_one_line(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == status, (done.returncode, done.stderr)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("thinbox: ")
    for word in words:
        assert word in lines[0]
    assert done.stdout == ""


def assert_usage(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == INPUT
    assert done.stderr.startswith("thinbox: ")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def kernel_bytes() -> bytes:
    return resolve_kernel(None).path.read_bytes()


@pytest.fixture
def own_cache(tmp_path: Path) -> Path:
    """What a boot needs of the cache, but no snapshot: nothing that other tests keep there, or fetch at this moment."""
    copy = tmp_path / "cache"
    for name in ("kernels", "packages", "members", "native", "facts", "types"):
        if (cache_dir() / name).is_dir():
            shutil.copytree(cache_dir() / name, copy / name, ignore=shutil.ignore_patterns(".*"), symlinks=True)
    return copy


# -- kernels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["boot", "run"])
def test_a_random_file_is_no_kernel(tmp_path: Path, what: str) -> None:
    noise = tmp_path / "noise"
    noise.write_bytes(random.Random(3).randbytes(100_000))
    tail = ("--", "true") if what == "run" else ()
    assert_one_line(thinbox(what, "-q", "--kernel", noise, *tail), INPUT, "noise")


def test_an_empty_file_is_no_kernel(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert_one_line(thinbox("boot", "-q", "--kernel", tmp_path / "empty"), INPUT, "empty")


@pytest.mark.parametrize("part", [0.001, 0.1, 0.5, 0.95])
def test_a_truncated_kernel_is_refused(tmp_path: Path, kernel_bytes: bytes, part: float) -> None:
    short = tmp_path / "short"
    short.write_bytes(kernel_bytes[: int(len(kernel_bytes) * part)])
    assert_one_line(thinbox("boot", "-q", "--kernel", short), INPUT, "short")


def test_a_directory_is_no_kernel(tmp_path: Path) -> None:
    assert_one_line(thinbox("boot", "-q", "--kernel", tmp_path), INPUT, "directory")


def test_a_kernel_that_is_not_there(tmp_path: Path) -> None:
    assert_one_line(thinbox("boot", "-q", "--kernel", tmp_path / "nowhere"), INPUT, "nowhere")


def test_a_word_that_is_no_release() -> None:
    assert_one_line(thinbox("boot", "-q", "--kernel", "windows"), INPUT, "windows")


# -- programs ------------------------------------------------------------------------------------------


def test_a_program_that_is_not_there() -> None:
    assert_one_line(thinbox("run", "-q", "--", "no-such-program"), INPUT, "no-such-program")


def test_a_directory_is_no_program() -> None:
    assert_one_line(thinbox("run", "-q", "--", "/etc"), INPUT, "/etc", "directory")


def test_a_file_that_is_not_executable() -> None:
    assert_one_line(thinbox("run", "-q", "--", "/etc/passwd"), INPUT, "/etc/passwd", "executable")


def test_no_program_at_all_is_bad_usage() -> None:
    assert_usage(thinbox("run"), "PROGRAM")


def test_an_unknown_option_is_bad_usage() -> None:
    assert_usage(thinbox("run", "--frobnicate", "--", "true"), "--frobnicate")


def test_an_unknown_command_is_bad_usage() -> None:
    assert_usage(thinbox("frobnicate"), "frobnicate")


# -- root file systems ---------------------------------------------------------------------------------


def test_a_root_file_system_that_is_not_there(tmp_path: Path) -> None:
    assert_one_line(thinbox("run", "-q", "--rootfs", tmp_path / "nowhere", "--", "true"), INPUT, "nowhere")


def test_a_broken_archive_as_root_file_system(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/big").write_bytes(random.Random(1).randbytes(300_000))
    subprocess.run(["tar", "-czf", tmp_path / "whole.tgz", "-C", tmp_path, "etc"], check=True)
    whole = (tmp_path / "whole.tgz").read_bytes()
    broken = tmp_path / "broken.tgz"
    broken.write_bytes(whole[: len(whole) // 2])
    assert_one_line(thinbox("run", "-q", "--rootfs", broken, "--", "true"), INPUT)
    broken.write_bytes(random.Random(2).randbytes(5000))
    assert_one_line(thinbox("run", "-q", "--rootfs", broken, "--", "true"), INPUT, "broken.tgz")


# -- options -------------------------------------------------------------------------------------------


def test_a_policy_that_does_not_exist() -> None:
    assert_one_line(thinbox("run", "-q", "--policy", "lenient", "--", "true"), INPUT, "lenient")


@pytest.mark.parametrize(
    "spec", ["no.such.module:Name", "json:nothing", "json:dumps", "math:pi", ":", "a:", ":b", "..:x"]
)
def test_a_policy_that_cannot_be_loaded(spec: str) -> None:
    assert_one_line(thinbox("run", "-q", "--policy", spec, "--", "true"), INPUT, spec)


@pytest.mark.parametrize("calls", ["getpid,frobnicate", ",", "", "All"])
def test_a_call_that_does_not_exist(calls: str) -> None:
    assert_one_line(thinbox("run", "-q", "--isolate", calls, "--", "true"), INPUT)


@pytest.mark.parametrize("memory", ["1", "0", "-5", "95", "100000"])
def test_memory_that_is_too_small_or_too_large(memory: str) -> None:
    assert_one_line(thinbox("run", "-q", "--memory", memory, "--", "true"), INPUT, "--memory")


def test_memory_that_is_no_number_is_bad_usage() -> None:
    assert_usage(thinbox("run", "--memory", "lots", "--", "true"), "--memory")


def test_a_command_line_that_is_too_long() -> None:
    assert_one_line(thinbox("boot", "-q", "--append", "x" * 3000), INPUT, "--append")


def test_a_variable_without_a_value() -> None:
    assert_one_line(thinbox("run", "-q", "--env", "JUSTANAME", "--", "true"), INPUT, "--env")


def test_a_record_that_cannot_be_written(tmp_path: Path) -> None:
    assert_one_line(thinbox("run", "-q", "--json", tmp_path / "no" / "where", "--", "true"), INPUT, "where")


def test_boot_facts_that_cannot_be_written(tmp_path: Path) -> None:
    assert_one_line(thinbox("boot", "-q", "--json", tmp_path / "no" / "where"), INPUT, "where")


def test_a_kernel_that_does_not_boot_says_what_it_printed_last(own_cache: Path) -> None:
    done = thinbox("boot", "-q", "--append", "rdinit=/nowhere", **{CACHE_VARIABLE: str(own_cache)})
    assert_one_line(done, MACHINE, "did not reach user space", "printed last")


# -- the cache -----------------------------------------------------------------------------------------


def test_a_cache_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = thinbox("run", "-q", "--", "true", **{CACHE_VARIABLE: str(tmp_path / "file")})
    assert_one_line(done, MACHINE, CACHE_VARIABLE)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "tiny"
    place.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k,mode=0700", "none", place], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("cannot mount a small tmpfs here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_for_the_whole_cache(tiny_disk: Path, kernel_bytes: bytes, tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(kernel_bytes)
    done = thinbox("run", "-q", "--kernel", kernel, "--", "true", **{CACHE_VARIABLE: str(tiny_disk)})
    assert "Traceback" not in done.stderr
    assert done.returncode in (INPUT, MACHINE)
    assert len([line for line in done.stderr.splitlines() if not line.startswith("thinbox: warning:")]) == 1


def test_a_full_disk_for_snapshots_is_a_warning(own_cache: Path, tiny_disk: Path) -> None:
    # Mounted, for no link is followed in a cache.
    folder = own_cache / "snapshots"
    folder.mkdir(mode=0o700, exist_ok=True)
    subprocess.run(["mount", "--bind", str(tiny_disk), str(folder)], check=True)
    try:
        done = thinbox("run", "-q", "--", "echo", "hello", **{CACHE_VARIABLE: str(own_cache)})
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("thinbox: warning: cannot write")
    assert list(tiny_disk.iterdir()) == [], "nothing half written stays"


def test_a_damaged_snapshot_is_noticed_and_rebuilt(own_cache: Path) -> None:
    where = {CACHE_VARIABLE: str(own_cache)}
    assert thinbox("boot", "-q", **where).returncode == 0
    (path,) = (own_cache / "snapshots").glob("*.snapshot")
    data = bytearray(path.read_bytes())
    whole = bytes(data)
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)
    done = thinbox("boot", **where)
    assert done.returncode == 0
    assert "cannot be used" in done.stderr
    assert path.read_bytes() == whole


def test_an_archive_that_cannot_be_reached(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{closed.getsockname()[1]}"
    proxies = {name: proxy for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    where = {CACHE_VARIABLE: str(tmp_path / "cache")}
    done = thinbox("run", "-q", "--kernel", "6.1.0-1-nowhere-amd64", "--", "true", **where, **proxies)
    assert_one_line(done, INPUT)


def test_two_processes_share_an_empty_snapshot_cache(own_cache: Path) -> None:
    both = [
        subprocess.Popen(
            command("run", "-q", "--", "echo", f"number {number}"),
            env=environment(**{CACHE_VARIABLE: str(own_cache)}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for number, process in enumerate(both):
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert (process.returncode, out, err) == (0, f"number {number}\n", "")
    assert len(list((own_cache / "snapshots").iterdir())) == 1


# -- Ctrl-C --------------------------------------------------------------------------------------------


def start_until_ready(script: str) -> subprocess.Popen[str]:
    """Run `script` as a tenant, up to its line "ready"."""
    process = subprocess.Popen(
        command("run", "-q", "--", "sh", "-c", script),
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


def test_ctrl_c_ends_a_tenant_that_sleeps() -> None:
    process = start_until_ready("echo ready; sleep 10000")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (INTERRUPTED, "")


def test_a_tenant_may_catch_ctrl_c() -> None:
    process = start_until_ready("trap 'echo caught; exit 7' INT; echo ready; read line")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert (process.returncode, out, err) == (7, "caught\n", "")


@pytest.mark.parametrize("phase", ["loading the machine", "booting Linux", "Memory:", "clocksource"])
def test_ctrl_c_before_the_tenant_runs_ends_thinbox_and_leaves_the_cache_usable(own_cache: Path, phase: str) -> None:
    where = {CACHE_VARIABLE: str(own_cache)}
    process = subprocess.Popen(
        command("boot", "--fresh"),
        env=environment(**where),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has SIGINT ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr
    assert any(phase in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert (process.returncode, out) == (INTERRUPTED, "")
    assert err.splitlines()[-1] == "thinbox: interrupted"
    assert "Traceback" not in err
    assert not [path for path in own_cache.rglob(".*") if path.is_file()], "nothing half written stays"
    assert thinbox("run", "-q", "--", "true", **where).returncode == 0


# -- every command takes its own options ---------------------------------------------------------------


def test_every_command_accepts_the_options_it_declares() -> None:
    """What click passes on is what the function takes: an option shared by several commands must be taken by all."""
    import inspect

    from thinbox.cli import group

    context = group.make_context("thinbox", ["--help"], resilient_parsing=True)
    commands = [group.get_command(context, name) for name in group.list_commands(context)]
    for command in [*commands, *(sub for each in commands for sub in getattr(each, "commands", {}).values())]:
        taken = inspect.signature(inspect.unwrap(command.callback)).parameters if command.callback else {}
        if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values()):
            continue
        declared = {param.name for param in command.params if param.expose_value and param.name != "help"}
        assert declared <= set(taken), f"{command.name}: {declared - set(taken)}"
