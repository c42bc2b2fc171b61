"""A disk in memory: what a tmpfs has not works there, isolated and not, and each tenant has one of its own."""

import pytest
from tests.support.call_program import DATA, Step, build_program, results
from thinbox.errors import InputError
from thinbox.session.session import RunOptions, TenantSpec, run, run_tenants

WAYS = ({"isolate": "none"}, {"policy": "live"}, {"policy": "live+guard", "view": "strict"})
FILE, NAME, VALUE, ALIGNED = DATA + 512, DATA + 640, DATA + 768, DATA + 1536
TEXTS = {640: b"user.colour", 768: b"green"}
O_CREAT_RDWR, O_DIRECT = 0o102, 0o40000


def program(path: bytes) -> bytes:
    """Set and read an attribute, then write and read a sector past the page cache."""
    return build_program(
        Step("open", (FILE, O_CREAT_RDWR, 0o600)),
        Step("fsetxattr", (3, NAME, VALUE, 5, 0)),
        Step("fgetxattr", (3, NAME, DATA + 1024, 16)),
        Step("open", (FILE, O_CREAT_RDWR | O_DIRECT, 0o600)),
        Step("pwrite64", (4, ALIGNED, 512, 0)),
        Step("pread64", (4, ALIGNED, 512, 0)),
        Step("fsync", (4,)),
        data={512: path, **TEXTS},
    )


def test_a_tmpfs_has_neither_attributes_nor_direct_io(guest, tmp_path):
    (tmp_path / "program").write_bytes(program(b"/tmp/file"))
    (tmp_path / "program").chmod(0o755)
    found = results(run(guest, ["/program"], RunOptions(rootfs=tmp_path)).stdout)
    assert found[1:3] == [-95, -95]  # EOPNOTSUPP
    assert found[3] in (4, -22)  # EINVAL; since 6.6 a tmpfs takes O_DIRECT and does not do it


@pytest.mark.parametrize("kind", ["ext4", "ext2"])
def test_a_program_uses_its_disk_alike_isolated_or_not(guest, tmp_path, kind):
    (tmp_path / "program").write_bytes(program(b"/disk/file"))
    (tmp_path / "program").chmod(0o755)
    for way in WAYS:
        found = run(guest, ["/program"], RunOptions(rootfs=tmp_path, disk=f"16M:{kind}", **way))
        assert not found.record.kills, (way, found.record.kills)
        assert results(found.stdout) == [3, 0, 5, 4, 512, 512, 0], way


def test_a_disk_is_a_file_system_of_its_size_that_all_users_may_write(guest):
    script = "cut -d' ' -f2,3 /proc/mounts | grep disk; df -m /disk | tail -1; touch /disk/mine; ls -l /disk/mine"
    for way in WAYS:
        result = run(guest, ["sh", "-c", script], RunOptions(disk="64M", user="nobody", **way))
        mount, room, mine = result.stdout.decode().splitlines()
        assert mount == "/disk ext4" and not result.record.kills
        assert 55 <= int(room.split()[1]) <= 64
        assert "nobody" in mine


def test_each_tenant_has_a_disk_of_its_own(guest):
    script = "cat /disk/* 2>/dev/null; echo $(hostname) > /disk/name; cat /disk/name; df -m /disk | tail -1"
    specs = [
        TenantSpec("a", ("sh", "-c", script), disk="16M", view="strict"),
        TenantSpec("b", ("sh", "-c", script), disk="32M:ext2"),
        TenantSpec("c", ("sh", "-c", "ls -d /disk/*; mount | grep -c loop")),
    ]
    found = run_tenants(guest, specs)
    a, b = (found[name].stdout.decode().splitlines() for name in ("a", "b"))
    assert (a[0], b[0]) == ("a", "b") and not found["a"].record.kills and not found["b"].record.kills
    assert int(a[1].split()[1]) < 16 < int(b[1].split()[1]) <= 32
    assert found["c"].stdout == b"0\n"


def test_a_full_disk_says_so_and_takes_no_more_of_memory(guest):
    script = "dd if=/dev/zero of=/disk/a bs=64k 2>&1 | grep -c 'No space left'; df -m /disk | tail -1"
    result = run(guest, ["sh", "-c", script], RunOptions(disk="16M"))
    lines = result.stdout.decode().splitlines()
    assert lines[0] == "1" and lines[1].split()[4] == "100%"


def test_a_link_at_the_disks_place_is_not_followed(guest, tmp_path):
    (tmp_path / "disk").symlink_to("/proc")
    (tmp_path / "program").write_bytes(program(b"/x"))
    (tmp_path / "program").chmod(0o755)
    with pytest.raises(InputError, match="the disk cannot be mounted at /disk"):
        run(guest, ["/program"], RunOptions(rootfs=tmp_path, disk="16M"))


def test_disks_that_do_not_fit_are_refused_with_the_memory_to_give(guest):
    with pytest.raises(InputError, match=r"disks of 1024 MiB lie in the guest's memory, .* use --memory [0-9]+"):
        run(guest, ["true"], RunOptions(disk="1G"))
