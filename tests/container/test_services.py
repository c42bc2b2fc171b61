"""Services out of container images, made of Debian packages here, run isolated as a container engine would run them."""

import importlib.util
import marshal
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.container_image import (
    ZSTD,
    layer_of,
    layer_with,
    write_docker_archive,
    write_oci_archive,
    write_oci_layout,
)
from support.debian_rootfs import rootfs_folder
from thinbox.boot.ready import ReadyGuest
from thinbox.container.image import load_image
from thinbox.image.deb import deb_member, iter_deb_files
from thinbox.image.source import fetch_package
from thinbox.session.session import RunOptions, RunResult, run

APPLETS = "cat grep id ls mkfifo sleep wget".split()

CLIENT = """#!/opt/bb/sh
PATH=/opt/bb:$PATH
"$@" &
tries=0
until {probe} >/tmp/out 2>/dev/null; do
  tries=$((tries + 1)); test $tries -lt 40 || exit 99
  sleep 0.3
done
cat /tmp/out
{then}
wait $!
echo status $?
"""
"""Starts the service, asks until it answers, shows the answer, stops it."""


def client(probe: str, then: str = "kill $!") -> dict[str, bytes]:
    return {"client.sh": CLIENT.format(probe=probe, then=then).encode()}


def tools() -> list[bytes]:
    """Layers that bring busybox beside what the image has."""
    names = {f"opt/bb/{name}": "/usr/bin/busybox" for name in [*APPLETS, "sh"]}
    busybox = deb_member(fetch_package("busybox-static"), lambda path: path.endswith("bin/busybox"))
    return [layer_with({"usr/bin/busybox": busybox}), layer_with(names)]


def run_image(guest: ReadyGuest, path: Path, arguments: Sequence[str] = (), policy: str = "sci") -> RunResult:
    image = load_image(str(path))
    launch = image.launch(tuple(arguments))
    options = RunOptions(
        image=image, policy=policy, environment=launch.environment, user=launch.user, workdir=launch.workdir
    )
    return run(guest, launch.command, options)


def require_clean(result: RunResult, least_calls: int) -> None:
    """All calls isolated, none killed."""
    assert result.exit_code == 0, result.stderr
    assert not result.record.kills
    assert len(result.record.calls) >= least_calls
    assert all(call.isolated for call in result.record.calls)


def test_busybox_from_a_docker_archive(guest: ReadyGuest, tmp_path: Path) -> None:
    links = {f"bin/{name}": "busybox" for name in [*APPLETS, "sh"]}
    busybox = deb_member(fetch_package("busybox-static"), lambda path: path.endswith("bin/busybox"))
    users = {"etc/passwd": b"app:x:1000:50:an app:/home/app:/bin/sh\n", "etc/group": b"staff:x:50:\nextra:x:60:app\n"}
    path = write_docker_archive(
        tmp_path / "busybox.tar",
        [layer_with({"bin/busybox": busybox}), layer_with({**links, **users})],
        Entrypoint=["sh", "-c"],
        Cmd=[
            "id; echo $HOME $GREETING; cat /etc/hosts | grep localhost; ls /dev; echo said >/dev/stdout; exec ls -d $PWD"
        ],
        User="app",
        Env=["GREETING=hi there"],
        WorkingDir="/srv/made",
    )
    result = run_image(guest, path, policy="transfer")
    require_clean(result, 50)
    lines = result.stdout.decode().splitlines()
    assert lines[:2] == ["uid=1000(app) gid=50(staff) groups=50(staff),60(extra)", "/home/app hi there"]
    assert "127.0.0.1\tlocalhost" in lines
    assert {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "fd", "stdout"} <= set(lines)
    assert not {"mem", "kmsg", "ttyS0", "ttyS1"} & set(lines)
    assert lines[-2:] == ["said", "/srv/made"]


def test_a_service_of_shell_scripts_from_an_oci_layout(guest: ReadyGuest, tmp_path: Path) -> None:
    service = b"""#!/bin/sh
while read -r a b </run/in; do echo sum $((a + b)) >/run/out; done
"""
    ask = b"""#!/bin/sh
/opt/bb/mkfifo /run/in /run/out || exit 3
/service &
for n in 1 2 3; do echo $n 40 >/run/in; /opt/bb/cat /run/out; done
kill $!
"""
    layers = [layer_of(rootfs_folder("dash")), *tools(), layer_with({"service": service, "ask": ask})]
    path = write_oci_layout(tmp_path / "service", layers, compression=ZSTD, Cmd=["/ask"])
    result = run_image(guest, path, policy="function")
    require_clean(result, 100)
    assert result.stdout == b"sum 41\nsum 42\nsum 43\n"


def test_sqlite3_from_an_oci_archive(guest: ReadyGuest, tmp_path: Path) -> None:
    path = write_oci_archive(
        tmp_path / "sqlite.tar", [layer_of(rootfs_folder("sqlite3"))], Entrypoint=["sqlite3"], Cmd=["--version"]
    )
    statements = "create table t(a); insert into t values (40), (2); select sum(a) from t;"
    result = run_image(guest, path, ["/var/tmp/t.db", statements])
    require_clean(result, 100)
    assert result.stdout == b"42\n"


def bytecode(root: Path) -> bytes:
    """A layer with bytecode of what http.server imports, as an image's build would leave it; without it, slower only."""
    names = "import sys, http.server; print(*(m.__name__ for m in sys.modules.values() if getattr(m, '__cached__', 0)))"
    listed = subprocess.run([sys.executable, "-S", "-c", names], check=True, capture_output=True, text=True)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    files = {}
    for module in listed.stdout.split():
        for name in (f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__init__.py"):
            source = root / "usr/lib" / f"python{version}" / name
            if source.is_file():
                place = Path(importlib.util.cache_from_source(f"usr/lib/python{version}/{name}"))
                code = compile(source.read_bytes(), f"/usr/lib/python{version}/{name}", "exec", dont_inherit=True)
                # Flags 1: never compared with its source (PEP 552).
                data = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8) + marshal.dumps(code)
                files[str(place)] = data
    return layer_with(files)


def test_pythons_http_server_answers_on_loopback(guest: ReadyGuest, tmp_path: Path) -> None:
    served = {"srv/hello.txt": b"hello from python\n", **client("wget -q -O - http://127.0.0.1:8000/hello.txt")}
    path = write_oci_archive(
        tmp_path / "python.tar",
        [layer_of(rootfs_folder("python3")), *tools(), layer_with(served), bytecode(rootfs_folder("python3"))],
        compression=ZSTD,
        Entrypoint=["/client.sh"],
        Cmd=["python3", "-S", "-m", "http.server", "--bind", "127.0.0.1", "8000"],
        WorkingDir="/srv",
        User="nobody",
    )
    result = run_image(guest, path)
    require_clean(result, 1000)
    assert result.stdout == b"hello from python\nstatus 143\n"
    assert b'"GET /hello.txt HTTP/1.1" 200' in result.stderr


def test_nginx_serves_a_file(guest: ReadyGuest, tmp_path: Path) -> None:
    settings = b"""worker_processes 1; user nobody nogroup; error_log /dev/stderr; pid /run/nginx.pid; daemon off;
events { worker_connections 64; }
http { access_log /dev/stdout; server { listen 80; root /srv; } }
"""
    files = {"etc/nginx/nginx.conf": settings, "var/lib/nginx/": b"", "srv/hello.txt": b"hello from nginx\n"}
    path = write_docker_archive(
        tmp_path / "nginx.tar",
        [
            layer_of(rootfs_folder("nginx-light")),
            *tools(),
            layer_with({**files, **client("wget -q -O - http://127.0.0.1/hello.txt")}),
        ],
        Entrypoint=["/client.sh"],
        Cmd=["nginx"],
    )
    result = run_image(guest, path)
    require_clean(result, 300)
    assert b"hello from nginx\nstatus 0\n" in result.stdout
    assert b'"GET /hello.txt HTTP/1.1" 200 17' in result.stdout


def test_redis_answers_redis_cli(guest: ReadyGuest, tmp_path: Path) -> None:
    then = "redis-cli set n 41; redis-cli incr n; redis-cli save; redis-cli shutdown"
    path = write_oci_archive(
        tmp_path / "redis.tar",
        [layer_of(rootfs_folder("redis-server", "redis-tools")), *tools(), layer_with(client("redis-cli ping", then))],
        compression=ZSTD,
        Entrypoint=["/client.sh"],
        Cmd=["redis-server", "--dir", "/tmp", "--loglevel", "warning"],
        User="1000:1000",
    )
    result = run_image(guest, path)
    require_clean(result, 500)
    assert b"PONG\nOK\n42\nOK\n" in result.stdout
    assert result.stdout.endswith(b"status 0\n")


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
    require_clean(result, 10)
    assert result.stdout == b"word 42 hi 7\n"
