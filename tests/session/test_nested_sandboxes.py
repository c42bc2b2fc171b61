"""Sandboxes inside a tenant: user namespaces, roots of one's own, bubblewrap and rootless container runtimes."""

import json
import os
import shutil

import pytest
from tests.support.debian_rootfs import rootfs_folder
from thinbox.session.session import RunOptions, TenantSpec, run, run_tenants

USER = 1000
KINDS = [("live", "none"), ("live+guard", "permissive")]
"""Policies, and views under them."""
BWRAP = (
    "bwrap --unshare-all --ro-bind / / --proc /proc --dev /dev --tmpfs /tmp "
    "sh -c 'id -u; echo $$; touch /tmp/a; ls /tmp; touch /b 2>&1 | wc -l'"
)
BUNDLE = "home/user/bundle"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Debian's bubblewrap, runc and crun, a user, and a bundle of that user's with a container's root."""
    folder = tmp_path_factory.mktemp("sandboxes") / "root"
    shutil.copytree(rootfs_folder("bubblewrap", "runc", "crun", "busybox-static"), folder, symlinks=True)
    for name in ("sh", "id", "ls", "touch", "wc", "cp", "mount", "umount", "unshare", "nsenter", "mkdir", "chroot"):
        if not (folder / "bin" / name).exists():
            (folder / "bin" / name).symlink_to("busybox")
    for name, line in (("passwd", f"user:x:{USER}:{USER}::/home/user:/bin/sh\n"), ("group", f"user:x:{USER}:\n")):
        with open(folder / "etc" / name, "a") as file:
            file.write(line)
    inner = folder / BUNDLE / "rootfs/bin"
    inner.mkdir(parents=True)
    shutil.copy(folder / "bin/busybox", inner / "busybox")
    (inner / "sh").symlink_to("busybox")
    (inner / "not-a-program").write_bytes(b"\x00\x01\x02")
    (inner / "not-a-program").chmod(0o755)
    return folder


def bundle(*command):
    """A rootless container's configuration (runtime-spec, config.md), as `runc spec --rootless` begins one."""
    private = ["nosuid", "noexec", "nodev"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(command),
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
        },
        "root": {"path": "rootfs"},
        "hostname": "inner",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", *private, "ro"]},
        ],
        "linux": {
            "uidMappings": [{"containerID": 0, "hostID": USER, "size": 1}],
            "gidMappings": [{"containerID": 0, "hostID": USER, "size": 1}],
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "user")],
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
        },
    }


def own(folder):
    for path in (folder, *folder.rglob("*")):
        os.chown(path, USER, USER, follow_symlinks=False)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to a user")
@pytest.mark.parametrize("engine", ["runc", "crun"])
@pytest.mark.parametrize(("policy", "view"), KINDS)
def test_rootless_engines_start_containers(guest, root, engine, policy, view):
    """A program that none can execute has the kernel start modprobe for its format: no kill under a view either."""
    for name, words in (
        ("good", ("/bin/sh", "-c", "id -u; hostname; echo $$; ls /")),
        ("bad", ("/bin/not-a-program",)),
    ):
        (root / BUNDLE / f"{name}.json").write_text(json.dumps(bundle(*words)))
    own(root / "home/user")
    shell = (
        f"export XDG_RUNTIME_DIR=/tmp; cp good.json config.json; {engine} run inner; cp bad.json config.json; "
        f"{engine} run other; echo $?"
    )
    options = RunOptions(rootfs=root, policy=policy, view=view, user="user", workdir=f"/{BUNDLE}")
    result = run(guest, ["sh", "-c", shell], options)
    assert not result.record.kills
    assert result.stdout == b"0\ninner\n1\nbin\ndev\nproc\nsys\n1\n", result.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize(("user", "policy", "view"), [(None, *KINDS[0]), ("user", *KINDS[1])])
def test_bubblewrap_makes_its_sandbox_for_root_and_for_a_user(guest, root, user, policy, view):
    result = run(guest, ["sh", "-c", BWRAP], RunOptions(rootfs=root, policy=policy, view=view, user=user))
    assert not result.record.kills
    uid = USER if user else 0
    assert (result.exit_code, result.stdout.decode().split()) == (0, [str(uid), "2", "a", "1"]), result.stderr


@pytest.mark.slow
def test_sandboxes_are_made_in_tenants_that_run_beside_others(guest, root):
    words = ("sh", "-c", BWRAP + "; unshare -Urm sh -c 'mount -t tmpfs x /tmp && echo mounted'")
    found = run_tenants(guest, [TenantSpec(name, words, rootfs=root, view="strict") for name in ("red", "blue")])
    for result in found.values():
        assert not result.record.kills
        assert result.stdout.decode().split() == ["0", "2", "a", "1", "mounted"], result.stderr


def test_nothing_of_the_guests_first_root_is_below_the_tenants(guest, root):
    """Not by taking the root off, not by a chroot that is left, not by way of /proc."""
    left = "cd /; mkdir -p d; for i in 1 2 3 4; do cd ..; done; ls -d init mnt/tenant"
    taken = "umount -l / ; ls -d /init; nsenter --mount=/proc/self/ns/mnt ls -d /init"
    for shell in (left, taken):
        specs = [TenantSpec(name, ("sh", "-c", shell), rootfs=root) for name in ("red", "blue")]
        for result in run_tenants(guest, specs).values():
            assert result.stdout == b"", result.stdout


def test_the_shell_of_the_guest_itself_may_have_namespaces_and_another_root(guest):
    script = (
        "unshare -U id -u; unshare -m sh -c 'mkdir -p /tmp/r/old; mount -t tmpfs x /tmp/r; mkdir /tmp/r/old; "
        "pivot_root /tmp/r /tmp/r/old && ls /'; ls -d /proc"
    )
    assert run(guest, ["sh", "-c", script]).stdout.decode().split() == ["65534", "old", "/proc"]


def test_cgroups_are_where_programs_look_and_only_the_tenants_own(guest):
    alone = run(guest, ["sh", "-c", "cat /proc/self/cgroup; ls /sys/fs/cgroup | grep -c cgroup.procs"])
    assert alone.stdout == b"0::/\n1\n"
    words = ("sh", "-c", "ls /sys/fs/cgroup | grep -cE 'red|blue'; cat /sys/fs/cgroup/pids.current; "
             "echo 0 > /sys/fs/cgroup/cgroup.procs || echo refused; umount /sys/fs/cgroup; "
             "cat /sys/fs/cgroup/red/pids.current /sys/fs/cgroup/blue/pids.current | wc -l")  # fmt: skip
    for result in run_tenants(guest, [TenantSpec(name, words) for name in ("red", "blue")]).values():
        none, tasks, refused, seen = result.stdout.decode().split()
        assert (none, refused, seen) == ("0", "refused", "0") and 0 < int(tasks) < 10


UNCOVER = (
    "for m in /proc /sys/fs/cgroup /dev/shm /tmp /run /dev/pts /dev /sys; do umount -l $m; done 2>/dev/null; "
    "ls -d /proc/1 /sys/fs/cgroup/*; for d in /dev/shm /tmp /run /dev /var /; do echo left > $d/left; done"
)
"""Take off whatever comes off, look at what was below, and leave something wherever it can be left."""


@pytest.mark.parametrize("has_root", [False, True])
def test_nothing_that_others_see_lies_below_a_tenants_own_mounts(guest, root, has_root):
    """A tenant may take off what process 1 of its namespaces mounted, and nothing else."""
    look = "sleep 1; " + UNCOVER.split("; for d")[0] + "; ls -d /*/left /dev/shm/left"
    words = {"red": ("sh", "-c", UNCOVER), "blue": ("sh", "-c", "sleep 1; ls /*/left /dev/shm/left; echo looked")}
    specs = [TenantSpec(name, command, rootfs=root if has_root else None) for name, command in words.items()]
    found = run_tenants(guest, specs)
    assert not found["red"].record.kills and not found["blue"].record.kills
    assert found["red"].stdout == b"", found["red"].stdout
    assert found["blue"].stdout == b"looked\n"
    # The other way round: who has taken its mounts off looks, too.
    specs = [
        TenantSpec("red", ("sh", "-c", "echo left | tee /tmp/left /dev/shm/left; sleep 2")),
        TenantSpec("blue", ("sh", "-c", look)),
    ]
    other = run_tenants(guest, specs)["blue"].stdout
    assert other == b"", other
