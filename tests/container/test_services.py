"""Services out of container images, made of Debian packages here: run isolated as a container engine would run them,
then under the plan made of that run."""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.support.container_image import layer_with, write_docker_archive
from tests.support.rounds import CommandRound, Ran, Round
from tests.support.service_images import IMAGES
from thinbox.boot.ready import ReadyGuest
from thinbox.container.image import load_image
from thinbox.image.deb import deb_member, iter_deb_files
from thinbox.image.source import fetch_package
from thinbox.session.session import RunOptions, RunResult, run

BY_COMMAND = ("busybox", "sqlite3", "nginx")
"""Their rounds go through the commands, the others' through the Python API."""
SERVERS = tuple(name for name, image in IMAGES.items() if image.start_only)
Rounds = Callable[[str], Round]


@pytest.fixture(scope="module")
def rounds(guest: ReadyGuest, tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    """The round of an image by name; all tests share it, and with it each run."""
    made: dict[str, Round] = {}

    def round_of(name: str) -> Round:
        if name not in made:
            kind = CommandRound if name in BY_COMMAND else Round
            made[name] = kind(guest, IMAGES[name], tmp_path_factory.mktemp(name))
        return made[name]

    return round_of


def isolated_run(rounds: Rounds, name: str) -> Ran:
    """The recorded run of an image: all calls isolated, none killed."""
    ran = rounds(name).isolated
    assert ran.exit_code == 0, ran.stderr
    assert ran.record["kills"] == []
    assert len(ran.record["calls"]) >= IMAGES[name].least_calls
    assert all(call["isolated"] for call in ran.record["calls"])
    return ran


def test_busybox_from_a_docker_archive(rounds: Rounds) -> None:
    lines = isolated_run(rounds, "busybox").stdout.decode().splitlines()
    assert lines[:2] == ["uid=1000(app) gid=50(staff) groups=50(staff),60(extra)", "/home/app hi there"]
    assert "127.0.0.1\tlocalhost" in lines
    assert {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "fd", "stdout"} <= set(lines)
    assert not {"mem", "kmsg", "ttyS0", "ttyS1"} & set(lines)
    assert lines[-2:] == ["said", "/srv/made"]


def test_a_service_of_shell_scripts_from_an_oci_layout(rounds: Rounds) -> None:
    assert isolated_run(rounds, "scripts").stdout == b"sum 41\nsum 42\nsum 43\n"


def test_sqlite3_from_an_oci_archive(rounds: Rounds) -> None:
    assert isolated_run(rounds, "sqlite3").stdout == b"42\n"


def test_pythons_http_server_answers_on_loopback(rounds: Rounds) -> None:
    ran = isolated_run(rounds, "http.server")
    assert ran.stdout == b"hello from python\nstatus 143\n"
    assert b'"GET /hello.txt HTTP/1.1" 200' in ran.stderr


def test_nginx_serves_a_file(rounds: Rounds) -> None:
    ran = isolated_run(rounds, "nginx")
    assert b"hello from nginx\nstatus 0\n" in ran.stdout
    assert b'"GET /hello.txt HTTP/1.1" 200 17' in ran.stdout


def test_redis_answers_redis_cli(rounds: Rounds) -> None:
    ran = isolated_run(rounds, "redis")
    assert b"PONG\nOK\n42\nOK\n" in ran.stdout
    assert ran.stdout.endswith(b"status 0\n")


@pytest.mark.parametrize("name", IMAGES)
def test_under_the_plan_made_of_it_an_image_runs_as_before_and_no_call_reaches_the_kernel_unisolated(
    rounds: Rounds, name: str
) -> None:
    found = rounds(name)
    plain, isolated, planned = found.plain, found.isolated, found.planned
    assert plain.unisolated == plain.reaching == len(plain.record["calls"]) >= IMAGES[name].least_calls
    assert isolated.unisolated == planned.unisolated == 0
    assert planned.record["kills"] == []
    assert planned.record["refusals"] == []
    assert plain.exit_code == isolated.exit_code == planned.exit_code == 0
    assert plain.output == isolated.output == planned.output
    # What is emulated does not reach the kernel at all; nothing else stays out of it.
    assert planned.emulated > 0
    assert planned.reaching == len(planned.record["calls"]) - planned.emulated < isolated.reaching
    assert len(found.allowed) == len(found.plan.rules)


@pytest.mark.parametrize("name", BY_COMMAND)
def test_plan_verify_runs_the_image_again(rounds: Rounds, name: str) -> None:
    found = rounds(name)
    assert isinstance(found, CommandRound)
    assert found.plan.rules
    said = found.verified.stderr.decode()
    assert (found.verified.returncode, said.count("\n")) == (0, 1), said
    assert said.startswith("holds: ")
    assert said.endswith(f"{found.planned.reaching} reached the kernel, 0 of them un-isolated\n")


@pytest.mark.parametrize("name", SERVERS)
def test_a_servers_start_up_is_told_apart_and_ends_at_its_marker(rounds: Rounds, name: str) -> None:
    found = rounds(name)
    start_only = {rule.name for rule in found.start_only}
    assert IMAGES[name].start_only <= start_only
    marker = found.planned.record["steady_seq"]
    calls = found.planned.record["calls"]
    assert calls[marker]["nr"] in found.plan.marker
    assert start_only <= {call["name"] for call in calls[:marker]}
    assert not start_only & {call["name"] for call in calls[marker:]}


def test_a_server_that_strays_into_its_start_up_is_refused(rounds: Rounds) -> None:
    found = rounds("nginx")
    assert isinstance(found, CommandRound)
    assert "mkdir" in {rule.name for rule in found.start_only}
    words = ("--plan", found.folder / "nginx.toml", "--env", "STRAY=mkdir /srv/late")
    strayed = found.run_command("strayed", *words)
    (refusal,) = strayed.record["refusals"]
    assert (refusal["call"], refusal["line"]) == ("mkdir", found.plan.decide(83, (0,) * 6, steady=True).line)
    said = f"mkdir was refused by nginx, line {refusal['line']} (deny ENOSYS): the plan allows it in start-up only"
    assert f"thinbox: {said}" in strayed.stderr.decode().splitlines()
    assert b"mkdir: can't create directory '/srv/late': Function not implemented" in strayed.stderr
    assert b"hello from nginx\nstatus 0\n" in strayed.stdout


def run_image(guest: ReadyGuest, path: Path, arguments: Sequence[str] = ()) -> RunResult:
    image = load_image(str(path))
    launch = image.launch(tuple(arguments))
    options = RunOptions(image=image, environment=launch.environment, user=launch.user, workdir=launch.workdir)
    return run(guest, launch.command, options)


# -- musl -------------------------------------------------------------------------------------------------
MUSL_LOADER = "lib/ld-musl-x86_64.so.1"
PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <pthread.h>
#include <unistd.h>
static void *work(void *a) { return (void *)((long)a * 2); }
int main(int count, char **words) {
  pthread_t t; void *twice;
  if (pthread_create(&t, 0, work, (void *)21L) || pthread_join(t, &twice)) return 1;
  printf("%s %ld %s %d\n", words[count - 1], (long)twice, getenv("GREETING"), (int)getuid());
  return 0;
}
"""


def musl_libc() -> bytes:
    return deb_member(fetch_package("musl"), lambda path: path.endswith("/libc.so") or path == MUSL_LOADER)


def test_the_musl_loader_runs(guest: ReadyGuest, tmp_path: Path) -> None:
    path = write_docker_archive(tmp_path / "musl.tar", [layer_with({MUSL_LOADER: musl_libc()})])
    result = run_image(guest, path, [f"/{MUSL_LOADER}"])
    assert result.exit_code == 1  # its own way of saying that it was given no program
    assert result.stderr.startswith(b"musl libc (x86_64)\n")
    assert not result.record.kills


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here to link a program with musl")
def test_a_program_linked_with_musl_runs(guest: ReadyGuest, tmp_path: Path) -> None:
    sdk = tmp_path / "sdk"
    for entry in iter_deb_files(fetch_package("musl-dev")):
        if entry.data:
            (sdk / entry.path).parent.mkdir(parents=True, exist_ok=True)
            (sdk / entry.path).write_bytes(entry.data)
    source, program, libc = tmp_path / "p.c", tmp_path / "p", tmp_path / "libc.so"
    source.write_text(PROGRAM)
    libc.write_bytes(musl_libc())
    lib = sdk / "usr/lib/x86_64-linux-musl"
    include = sdk / "usr/include/x86_64-linux-musl"
    compiler = ["cc", "-nostdinc", "-isystem", include, "-nostdlib", "-no-pie", "-fno-stack-protector"]
    parts = [lib / "crt1.o", lib / "crti.o", source, f"-L{tmp_path}", "-l:libc.so", lib / "crtn.o"]
    subprocess.run(
        [*compiler, f"-Wl,--dynamic-linker,/{MUSL_LOADER}", "-o", program, *parts], check=True, capture_output=True
    )
    files = {MUSL_LOADER: libc.read_bytes(), "lib/libc.so": "ld-musl-x86_64.so.1", "p": program.read_bytes()}
    path = write_docker_archive(
        tmp_path / "musl.tar", [layer_with(files)], Entrypoint=["/p"], Cmd=["word"], User="7", Env=["GREETING=hi"]
    )
    result = run_image(guest, path)
    assert result.exit_code == 0, result.stderr
    assert not result.record.kills
    assert len(result.record.calls) >= 10
    assert all(call.isolated for call in result.record.calls)
    assert result.stdout == b"word 42 hi 7\n"
