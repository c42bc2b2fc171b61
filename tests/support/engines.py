"""Container engines and systemd, each running commands in one root file system under a profile of its own format.

Why it exists: whether an export is right is for those to say who read it in production.

Rules of this file: all jobs of an engine run in one room (engine_room.py), one after another; an engine's own files lie
in the room's folder. No job has a file of the host's but its root.
"""

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.container_image import layer_of, write_docker_archive
from tests.support.engine_room import run_in_room
from tests.support.seccomp_readers import operator_profile

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Job:
    """A command, the profile it runs under (None: none), and whether it may gain privileges."""

    command: Sequence[str]
    profile: bytes | None = None
    new_privileges: bool = False


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a job."""

    exit_code: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True)
class Engine:
    """`programs` must be installed; `export` is the format it reads; `runtimes` whose own calls are
    allowed, by whether the job may gain privileges; `script` makes the shell script of a list of jobs and may write into
    the folder; `convert` is done to an export on its way to the engine."""

    name: str
    programs: tuple[str, ...]
    packages: str
    export: str
    runtimes: Mapping[bool, str]
    script: Callable[[Path, Path, Sequence[Job]], str]
    convert: Callable[[bytes], bytes] = bytes

    def missing(self) -> str:
        """Return what to install, or nothing."""
        absent = [name for name in self.programs if shutil.which(name, path=f"{_PATH}:/lib/systemd") is None]
        return f"{', '.join(absent)} not installed: apt install {self.packages}" if absent else ""

    def run(self, folder: Path, root: Path, jobs: Sequence[Job]) -> list[Ran]:
        """Run the jobs; an engine that says nothing of one of them has failed."""
        done = run_in_room(folder, self.script(folder, root, jobs))
        out = []
        for number in range(len(jobs)):
            code = folder / f"code.{number}"
            assert code.is_file(), f"{self.name}: {done.stdout[-1000:]!r} {done.stderr[-2000:]!r}"
            texts = [_read(folder / f"{what}.{number}") for what in ("out", "err")]
            out.append(Ran(int(code.read_text()), *texts))
        return out


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _job(number: int, words: Sequence[str], *, streams: bool = True) -> str:
    where = f">out.{number} 2>err.{number}" if streams else f">log.{number} 2>&1"
    return f"{shlex.join(words)} </dev/null {where}; echo $? >code.{number}"


def _bundles(runtime: str) -> Callable[[Path, Path, Sequence[Job]], str]:
    """Return a script maker for an OCI runtime of its own: a bundle for each job."""

    def script(folder: Path, root: Path, jobs: Sequence[Job]) -> str:
        lines = []
        for number, job in enumerate(jobs):
            bundle = folder / f"bundle.{number}"
            bundle.mkdir()
            subprocess.run([runtime, "spec"], cwd=bundle, check=True)
            config = json.loads((bundle / "config.json").read_text())
            (bundle / "config.json").write_text(json.dumps(_configure(config, root, job)))
            words = [runtime, "--root", "/run/state", "run", "--bundle", str(bundle), f"thinbox-test-{number}"]
            lines.append(_job(number, words))
        return "\n".join(lines)

    return script


def _configure(config: dict[str, Any], root: Path, job: Job) -> dict[str, Any]:
    config["root"] = {"path": str(root), "readonly": True}
    config["process"] |= {"args": list(job.command), "terminal": False, "noNewPrivileges": not job.new_privileges}
    config["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"})
    config["linux"].pop("resources", None)
    if job.profile is not None:
        config["linux"]["seccomp"] = json.loads(job.profile)
    return config


def _options(folder: Path, number: int, job: Job) -> list[str]:
    """Return what podman and docker call alike."""
    seccomp = "unconfined"
    if job.profile is not None:
        seccomp = str(folder / f"profile.{number}.json")
        Path(seccomp).write_bytes(job.profile)
    words = ["--rm", "--network", "none", "--hostname", "thinbox", "--security-opt", f"seccomp={seccomp}"]
    return words + ([] if job.new_privileges else ["--security-opt", "no-new-privileges"])


def _podman(runtime: str) -> Callable[[Path, Path, Sequence[Job]], str]:
    """Return a script maker for podman, which runs conmon, which runs `runtime`; its stores lie in the folder."""

    def script(folder: Path, root: Path, jobs: Sequence[Job]) -> str:
        copy = shutil.copytree(root, folder / "root", symlinks=True)
        stores = [f"--{name}={folder / name}" for name in ("runroot", "tmpdir")]
        stores.append(f"--root={folder / 'store'}")
        common = ["podman", *stores, "--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=none"]
        common += [f"--runtime={runtime}", "run", "--log-driver=none", "--ulimit=host", "--pids-limit=-1"]
        common += ["--cgroups=disabled" if runtime == "crun" else "--cgroups=no-conmon"]
        return "\n".join(
            _job(
                number,
                [
                    *common,
                    *_options(folder, number, job),
                    "--tmpfs=/tmp:notmpcopyup",
                    "--rootfs",
                    str(copy),
                    *job.command,
                ],
            )
            for number, job in enumerate(jobs)
        )

    return script


_DOCKERD = """PATH={path}
dockerd --iptables=false --ip6tables=false --ip-masq=false --bridge=none --storage-driver=vfs --data-root {folder}/docker \
  --exec-root /run/docker-exec --pidfile /run/docker.pid -H unix:///run/docker.sock --group root \
  --config-file {folder}/daemon.json >dockerd.log 2>&1 &
until docker -H unix:///run/docker.sock version >/dev/null 2>&1; do
  kill -0 $! || {{ tail -5 dockerd.log >&2; exit 1; }}
done
docker -H unix:///run/docker.sock load -i image.tar
"""


def _docker(folder: Path, root: Path, jobs: Sequence[Job]) -> str:
    write_docker_archive(folder / "image.tar", [layer_of(root)], tag="thinbox-test:latest")
    (folder / "daemon.json").write_text(json.dumps({"deprecated-key-path": str(folder / "key.json")}))
    lines = [_DOCKERD.format(path=_PATH, folder=folder)]
    for number, job in enumerate(jobs):
        words = ["docker", "-H", "unix:///run/docker.sock", "run", "--tmpfs=/tmp", *_options(folder, number, job)]
        lines.append(_job(number, [*words, "thinbox-test:latest", *job.command]))
    return "\n".join(lines)


_UNIT = """[Unit]
DefaultDependencies=no
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=exec
RootDirectory={root}
MountAPIVFS=yes
TemporaryFileSystem=/tmp
Environment=PATH={path}
ExecStart={command}
StandardOutput=truncate:{folder}/out.{number}
StandardError=truncate:{folder}/err.{number}
"""


def _systemd(folder: Path, root: Path, jobs: Sequence[Job]) -> str:
    """A service manager of one unit for each job, with the export as its drop-in; it sees no unit of the host's."""
    lines = ["mkdir -p /run/systemd/system /run/user"]
    for number, job in enumerate(jobs):
        units = folder / f"units.{number}"
        (units / "job.service.d").mkdir(parents=True)
        command = " ".join(f'"{_escape(word)}"' for word in ["/bin/" + job.command[0], *job.command[1:]])
        unit = _UNIT.format(root=root, path=_PATH, command=command, folder=folder, number=number)
        (units / "job.service").write_text(unit)
        if job.profile is not None:
            (units / "job.service.d" / "thinbox.conf").write_bytes(job.profile)
        words = ["env", "-i", f"PATH={_PATH}", "XDG_RUNTIME_DIR=/run/user", "HOME=/run/user"]
        words += [f"SYSTEMD_UNIT_PATH={units}", "/lib/systemd/systemd", "--user", "--unit=job.service"]
        lines.append(_job(number, [*words, "--log-target=console"], streams=False))
    return "\n".join(lines)


def _escape(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$").replace("%", "%%")


def as_operator(data: bytes) -> bytes:
    """Return the file that the Security Profiles Operator writes for a manifest."""
    return json.dumps(operator_profile(data)).encode()


ENGINES = (
    Engine("crun", ("crun",), "crun", "oci", {False: "crun-nnp", True: "crun"}, _bundles("crun")),
    Engine("runc", ("runc",), "runc", "oci", {False: "runc-nnp", True: "runc"}, _bundles("runc")),
    Engine(
        "podman-crun", ("podman", "conmon", "crun"), "podman conmon crun", "docker", {False: "podman-nnp", True: "podman"},
        _podman("crun"),
    ),
    Engine("podman-runc", ("podman", "conmon", "runc"), "podman conmon runc", "oci", {False: "runc-nnp", True: "runc"}, _podman("runc")),
    Engine(
        "docker", ("dockerd", "docker", "containerd", "runc"), "docker.io", "docker",
        {False: "docker-nnp", True: "docker"}, _docker,
    ),
    Engine("operator", ("runc",), "runc", "spo", {False: "runc-nnp", True: "runc"}, _bundles("runc"), as_operator),
    Engine("systemd", ("systemd",), "systemd", "systemd", {False: "systemd", True: "systemd"}, _systemd),
)  # fmt: skip
"""`operator` is what its node agent writes out of the manifest, run by the runtime that a node has."""
