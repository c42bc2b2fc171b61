"""Modules of the kernel's own package: by name, by need, and what they make possible, isolated and not."""

from pathlib import Path

import pytest
from thinbox.boot.ready import ReadyGuest
from thinbox.errors import InputError
from thinbox.image.modules import ModuleLibrary
from thinbox.session.session import RunOptions, TenantSpec, run, run_tenants

LOADED = "cut -d' ' -f1 /proc/modules | sort"
OVERLAY = """
mkdir /tmp/low /tmp/up /tmp/work /tmp/merged
echo low > /tmp/low/file
mount -t overlay overlay -o lowerdir=/tmp/low,upperdir=/tmp/up,workdir=/tmp/work /tmp/merged || exit
cat /tmp/merged/file; echo up > /tmp/merged/file; cat /tmp/up/file /tmp/low/file; rm /tmp/merged/file; ls -l /tmp/up
"""
WAYS = (
    {"isolate": "none"},
    {"policy": "live"},
    {"policy": "live+guard", "view": "strict"},
)


def run_every_way(guest: ReadyGuest, script: str, **options) -> bytes:
    """Return what the script prints, the same un-isolated and under every policy."""
    results = [run(guest, ["sh", "-c", script], RunOptions(**way | options)) for way in WAYS]
    for way, result in zip(WAYS, results, strict=True):
        assert not result.record.kills, (way, result.record.kills)
        assert (result.stdout, result.stderr) == (results[0].stdout, results[0].stderr), way
        assert bool(result.record.totals["isolated"]) is (way.get("isolate") != "none")
    assert results[0].stderr == b""
    return results[0].stdout


def test_modules_are_loaded_with_what_they_need_and_the_ready_guest_has_none(guest):
    result = run(guest, ["sh", "-c", LOADED], RunOptions(modules=("vsock-loopback",)))
    assert result.stdout.split() == [b"vmw_vsock_virtio_transport_common", b"vsock", b"vsock_loopback"]
    assert run(guest, ["sh", "-c", LOADED]).stdout == b""


def test_overlayfs_works_the_same_isolated(guest):
    shown = run_every_way(guest, OVERLAY, modules=("overlay",))
    assert shown.startswith(b"low\nup\nlow\n")


def test_what_the_kernel_asks_for_is_loaded_only_if_that_was_asked_for(guest):
    loaded = run(guest, ["sh", "-c", OVERLAY + LOADED], RunOptions(modules=("auto",)))
    assert loaded.stdout.startswith(b"low\nup\nlow\n") and loaded.stdout.endswith(b"overlay\n")
    assert loaded.record.outside["module loaded: overlay"] == 1
    assert loaded.record.outside["program started by the kernel: /init"] == 1
    without = run(guest, ["sh", "-c", OVERLAY + LOADED])
    assert b"No such device" in without.stderr and without.stdout == b""


def test_by_need_works_under_every_policy(guest):
    run_every_way(guest, OVERLAY, modules=("auto",))


def test_tenants_apart_get_what_the_kernel_asks_for_and_cannot_load_anything_themselves(guest, tmp_path):
    library = ModuleLibrary(guest.kernel, guest.facts.release)
    (tmp_path / "loop.ko").write_bytes(next(library.load(["loop"])).data)
    script = "unshare -m sh -c 'mkdir /tmp/o; mount -t overlay o -o lowerdir=/tmp:/run /tmp/o; echo $?'"
    tried = "echo /bin/true > /proc/sys/kernel/modprobe; insmod /loop.ko; cat /proc/sys/kernel/modprobe"
    both = [
        TenantSpec("a", ("sh", "-c", f"{script}; {LOADED}"), modules=("auto",)),
        TenantSpec("b", ("sh", "-c", tried), stdin=b""),
    ]
    results = run_tenants(guest, both)
    assert results["a"].stdout.split()[0] == b"0" and b"overlay" in results["a"].stdout
    assert results["b"].stdout == b"/init\n" and b"ermission denied" in results["b"].stderr


def test_a_tenants_program_in_the_agents_place_is_isolated_and_its_calls_are_not_answered(guest):
    """Root of the guest may put a program where the kernel finds the agent: it is the tenant's, as any helper is."""
    script = """
    cat > /tmp/mine <<'END'
#!/bin/sh
id -u > /tmp/ran
END
    chmod 755 /tmp/mine; mv /tmp/mine /init; mkdir /tmp/o
    mount -t overlay o -o lowerdir=/tmp:/run /tmp/o; cat /tmp/ran; cat /proc/modules
    """
    result = run(guest, ["sh", "-c", script], RunOptions(modules=("auto",)))
    assert result.stdout == b"0\n"
    assert result.record.outside["program started by the kernel: /init"] >= 1
    assert not any(name.startswith("module loaded") for name in result.record.outside)
    assert result.record.totals["calls"] == result.record.totals["isolated"]


def test_an_unsigned_module_is_taken_where_the_kernel_takes_it(guest, tmp_path):
    library = ModuleLibrary(guest.kernel, guest.facts.release)
    data = next(library.load(["loop"])).data
    mark = data.rindex(b"~Module signature appended~\n")
    size = int.from_bytes(data[mark - 4 : mark], "big")
    (tmp_path / "loop.ko").write_bytes(data[: mark - 12 - size])
    result = run(guest, ["sh", "-c", LOADED], RunOptions(modules=("loop",), modules_from=tmp_path))
    assert result.stdout == b"loop\n"


def test_a_module_that_the_kernel_refuses_is_said_with_its_reason(guest, tmp_path):
    library = ModuleLibrary(guest.kernel, guest.facts.release)
    data = next(library.load(["vsock"])).data
    wrong = data.replace(b"sk_alloc\0", b"sk_allox\0")
    assert wrong != data
    (tmp_path / "vsock.ko").write_bytes(wrong)
    with pytest.raises(InputError, match=r"^the kernel does not take module vsock: .*\(E[A-Z]+\)"):
        run(guest, ["true"], RunOptions(modules=("vsock",), modules_from=tmp_path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"modules": ("overlai",)}, "did you mean 'overlay'"),
        ({"modules": "overlay"}, "modules is a list of names"),
        ({"modules_from": Path("/nowhere")}, "modules_from goes with modules"),
        ({"modules": ("loop",), "modules_from": Path("/nowhere")}, "cannot read"),
    ],
)
def test_what_cannot_be_meant_is_refused(guest, options, said):
    with pytest.raises(InputError, match=said):
        run(guest, ["true"], RunOptions(**options))
