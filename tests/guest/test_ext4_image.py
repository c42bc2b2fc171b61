"""An empty ext4 is one that e2fsck takes, for every size; what is not written is zero."""

import shutil
import subprocess

import pytest
from thinbox.errors import InputError
from thinbox.guest.disks import Disk, parse_disk
from thinbox.guest.ext4_image import BLOCK_BYTES, GROUP_BLOCKS, build_ext4, has_super, plan_ext4

GROUP_BYTES = GROUP_BLOCKS * BLOCK_BYTES
SIZES = (8 << 20, 9 << 20, 64 << 20, GROUP_BYTES - 4096, GROUP_BYTES, GROUP_BYTES + 4096 * 600, 1 << 30, 2 << 30)


def write_image(path, size, **options):
    with path.open("wb") as file:
        file.truncate(size)
        for offset, block in build_ext4(size, "a disk", 100_000, **options):
            assert len(block) == BLOCK_BYTES and offset % BLOCK_BYTES == 0 and offset < size
            file.seek(offset)
            file.write(block)


@pytest.mark.skipif(shutil.which("e2fsck") is None, reason="e2fsck is not installed")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ext2", [False, True])
def test_e2fsck_finds_nothing(size, ext2, tmp_path):
    write_image(tmp_path / "image", size, ext2=ext2)
    found = subprocess.run(["e2fsck", "-f", "-n", tmp_path / "image"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "11/" in found.stdout


def test_the_same_size_and_name_make_the_same_bytes():
    assert list(build_ext4(16 << 20, "one")) == list(build_ext4(16 << 20, "one"))
    assert list(build_ext4(16 << 20, "one")) != list(build_ext4(16 << 20, "two"))


def test_no_two_blocks_are_one_and_few_are_written():
    for size in SIZES:
        places = [offset for offset, _block in build_ext4(size, "x")]
        assert len(places) == len(set(places)) < 60


def test_a_last_group_too_small_for_its_tables_is_left_out():
    assert plan_ext4(GROUP_BYTES + 4096 * 100, journal=True).groups == 1
    assert plan_ext4(GROUP_BYTES + 4096 * 600, journal=True).groups == 2


def test_copies_of_the_superblock_are_where_sparse_super_has_them():
    assert [group for group in range(130) if has_super(group)] == [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]


def test_a_disk_is_a_size_and_a_file_system():
    assert parse_disk("64M") == Disk(64 << 20, "ext4")
    assert parse_disk("1G:ext2") == Disk(1 << 30, "ext2")
    assert parse_disk("8193K") == Disk(8 << 20, "ext4")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("64", "disk is SIZE or SIZE:FS"),
        ("64M:", "disk is SIZE or SIZE:FS"),
        ("0M", "disk is SIZE or SIZE:FS"),
        (64, "disk is SIZE or SIZE:FS"),
        ("64M:xfs", "disk has one of ext4, ext2, not 'xfs'"),
        ("7M", "disk is 8M to 2048M, not 7M"),
        ("3G", "disk is 8M to 2048M, not 3G"),
    ],
)
def test_what_is_no_disk_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        parse_disk(text)
