"""Container images of real services, made of Debian packages, each with a client that asks it and says what came back.

Why it exists: the tests of services run them isolated and under plans, `benchmarks.rounds` counts what that changes;
both are about the same images.
"""

import importlib.util
import marshal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.container_image import (
    ZSTD,
    layer_of,
    layer_with,
    write_docker_archive,
    write_oci_archive,
    write_oci_layout,
)
from tests.support.debian_rootfs import rootfs_folder
from thinbox.image.deb import deb_member
from thinbox.image.source import fetch_package

APPLETS = "cat grep id ls mkdir mkfifo sleep wget".split()

CLIENT = """#!/opt/bb/sh
PATH=/opt/bb:$PATH
"$@" &
tries=0
until {probe} >/tmp/out 2>/dev/null; do
  tries=$((tries + 1)); test $tries -lt 40 || exit 99
  sleep 0.3
done
cat /tmp/out
$STRAY
{then}
wait $!
echo status $?
"""
"""Starts the service, asks until it answers, shows the answer, strays if the environment says how, stops it."""


@dataclass(frozen=True, slots=True)
class ServiceImage:
    """One image, and how it is run.

    `write` makes its archive or layout in a folder. `policy` isolates it; `least_calls` it makes at the least. `marker`
    names the calls that begin a server's steady state, empty for the planner's own; `start_only` are calls it makes
    before that and never after, empty for what is no server.
    """

    name: str
    write: Callable[[Path], Path]
    least_calls: int
    arguments: tuple[str, ...] = ()
    policy: str = "sci"
    marker: tuple[str, ...] = ()
    start_only: frozenset[str] = frozenset()


def client(probe: str, then: str = "kill $!") -> dict[str, bytes]:
    return {"client.sh": CLIENT.format(probe=probe, then=then).encode()}


def busybox_program() -> bytes:
    return deb_member(fetch_package("busybox-static"), lambda path: path.endswith("bin/busybox"))


def tools() -> list[bytes]:
    """Layers that bring busybox beside what the image has."""
    names = {f"opt/bb/{name}": "/usr/bin/busybox" for name in [*APPLETS, "sh"]}
    return [layer_with({"usr/bin/busybox": busybox_program()}), layer_with(names)]


def write_busybox(folder: Path) -> Path:
    links = {f"bin/{name}": "busybox" for name in [*APPLETS, "sh"]}
    users = {"etc/passwd": b"app:x:1000:50:an app:/home/app:/bin/sh\n", "etc/group": b"staff:x:50:\nextra:x:60:app\n"}
    return write_docker_archive(
        folder / "busybox.tar",
        [layer_with({"bin/busybox": busybox_program()}), layer_with({**links, **users})],
        Entrypoint=["sh", "-c"],
        Cmd=[
            "id; echo $HOME $GREETING; cat /etc/hosts | grep localhost; ls /dev; echo said >/dev/stdout; exec ls -d $PWD"
        ],
        User="app",
        Env=["GREETING=hi there"],
        WorkingDir="/srv/made",
    )


def write_scripts(folder: Path) -> Path:
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
    return write_oci_layout(folder / "service", layers, compression=ZSTD, Cmd=["/ask"])


def write_sqlite(folder: Path) -> Path:
    layers = [layer_of(rootfs_folder("sqlite3"))]
    return write_oci_archive(folder / "sqlite.tar", layers, Entrypoint=["sqlite3"], Cmd=["--version"])


def write_python(folder: Path) -> Path:
    served = {"srv/hello.txt": b"hello from python\n", **client("wget -q -O - http://127.0.0.1:8000/hello.txt")}
    return write_oci_archive(
        folder / "python.tar",
        [layer_of(rootfs_folder("python3")), *tools(), layer_with(served), bytecode(rootfs_folder("python3"))],
        compression=ZSTD,
        Entrypoint=["/client.sh"],
        Cmd=["python3", "-S", "-m", "http.server", "--bind", "127.0.0.1", "8000"],
        WorkingDir="/srv",
        User="nobody",
    )


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


def write_nginx(folder: Path) -> Path:
    settings = b"""worker_processes 1; user nobody nogroup; error_log /dev/stderr; pid /run/nginx.pid; daemon off;
events { worker_connections 64; }
http { access_log /dev/stdout; server { listen 80; root /srv; } }
"""
    files = {"etc/nginx/nginx.conf": settings, "var/lib/nginx/": b"", "srv/hello.txt": b"hello from nginx\n"}
    return write_docker_archive(
        folder / "nginx.tar",
        [
            layer_of(rootfs_folder("nginx-light")),
            *tools(),
            layer_with({**files, **client("wget -q -O - http://127.0.0.1/hello.txt")}),
        ],
        Entrypoint=["/client.sh"],
        Cmd=["nginx"],
    )


def write_redis(folder: Path) -> Path:
    then = "redis-cli set n 41; redis-cli incr n; redis-cli save; redis-cli shutdown"
    return write_oci_archive(
        folder / "redis.tar",
        [layer_of(rootfs_folder("redis-server", "redis-tools")), *tools(), layer_with(client("redis-cli ping", then))],
        compression=ZSTD,
        Entrypoint=["/client.sh"],
        Cmd=["redis-server", "--dir", "/tmp", "--loglevel", "warning"],
        User="1000:1000",
    )


STATEMENTS = "create table t(a); insert into t values (40), (2); select sum(a) from t;"
IMAGES = {
    image.name: image
    for image in (
        ServiceImage("busybox", write_busybox, 50, policy="transfer"),
        ServiceImage("scripts", write_scripts, 100, policy="function"),
        ServiceImage("sqlite3", write_sqlite, 100, arguments=("/var/tmp/t.db", STATEMENTS)),
        ServiceImage("http.server", write_python, 1000, start_only=frozenset({"bind", "listen", "setsockopt"})),
        ServiceImage("nginx", write_nginx, 300, start_only=frozenset({"bind", "listen", "setuid", "setgid", "chown"})),
        # redis-cli waits in poll before the server does in epoll_wait: the planner's own marker would be the client's.
        ServiceImage("redis", write_redis, 500, marker=("epoll_wait",), start_only=frozenset({"bind", "listen"})),
    )
}
