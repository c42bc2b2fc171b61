"""What engines take and hardly anybody writes comes out as engines unpack it; so says skopeo, where it is installed."""

import gzip
import json
import os
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from tests.container.test_image import contents, refuse
from tests.support.container_image import layer_with, write_docker_archive
from tests.support.odd_images import OddImage, digest_of, some_odd_image
from tests.support.tar_writer import directory, hard_link, member, tar_bytes
from thinbox.container.image import load_image
from thinbox.container.platform import level_of, normal_architecture
from thinbox.errors import RootfsError
from thinbox.machine.cpu_model import MODELS

ONE = [layer_with({"one": b"1"})]
AMD64 = {"os": "linux", "architecture": "amd64"}


def files(path: object, **options: object) -> dict[str, bytes]:
    return {name: data for name, (_entry, data) in contents(load_image(str(path), **options)).items()}


# -- devices ------------------------------------------------------------------------------------------------
def test_device_nodes_below_dev_are_left_out_whatever_they_are(tmp_path: Path) -> None:
    """The guest's /dev is mounted over them."""
    layer = tar_bytes(
        directory("dev"), member("dev/sda", kind=tarfile.BLKTYPE, devmajor=8), directory("dev/mapper"),
        member("dev/mapper/x", kind=tarfile.BLKTYPE, devmajor=253), hard_link("dev/sdb", "dev/sda"),
        member("dev/null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3), member("dev/f", b"1"), member("f", b"2"),
    )  # fmt: skip
    image = load_image(str(write_docker_archive(tmp_path / "i", [layer])))
    assert {entry.path for entry in image.entries()} >= {b"dev/mapper", b"dev/f", b"f"}
    assert not [entry.path for entry in image.entries() if entry.device is not None]
    (tmp_path / "t.tar").write_bytes(layer)
    assert files(tmp_path / "t.tar") == {"dev/mapper": b"", "dev/f": b"1", "f": b"2"}


def test_a_device_elsewhere_is_refused_by_whatever_name_and_not_where_an_upper_layer_removes_it(tmp_path: Path) -> None:
    sda = member("dev/sda", kind=tarfile.BLKTYPE, devmajor=8)
    refuse(
        write_docker_archive(tmp_path / "i", [tar_bytes(directory("dev"), sda, hard_link("x", "dev/sda"))]),
        "x: block device 8:0",
    )
    refuse(
        write_docker_archive(tmp_path / "j", [tar_bytes(member("development", kind=tarfile.BLKTYPE, devmajor=8))]),
        "block device 8:0",
    )
    low, high = tar_bytes(member("sda", kind=tarfile.BLKTYPE, devmajor=8)), layer_with({".wh.sda": b""})
    assert files(write_docker_archive(tmp_path / "k", [low, high])) == {}
    (tmp_path / "root.tar").write_bytes(tar_bytes(member("dev/sda", kind=tarfile.BLKTYPE, devmajor=8)))
    with pytest.raises(RootfsError, match="block device 8:0"):  # --rootfs mounts nothing over it
        from thinbox.guest.rootfs import open_rootfs

        list(open_rootfs(tmp_path / "root.tar"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
def test_a_folder_s_devices_are_judged_alike(tmp_path: Path) -> None:
    (tmp_path / "root/dev").mkdir(parents=True)
    try:
        os.mknod(tmp_path / "root/dev/mem", 0o60600, os.makedev(1, 1))
    except PermissionError:
        pytest.skip("no device nodes may be made here")
    assert not [entry for entry in load_image(str(tmp_path / "root")).entries() if entry.device]


# -- platforms ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("word", "normal"),
    [
        ("x86_64", "amd64"),
        ("X86-64", "amd64"),
        ("", "amd64"),
        (None, "amd64"),
        ("aarch64", "arm64"),
        ("i386", "386"),
        ("s390x", "s390x"),
    ],
)
def test_architectures_have_the_names_that_engines_give_them(word: object, normal: str) -> None:
    assert normal_architecture(word) == normal


def test_an_image_for_x86_64_by_its_other_name_is_ours(tmp_path: Path) -> None:
    made = OddImage()
    entry = made.image(ONE, architecture="x86_64", os="Linux") | {"platform": {"os": "linux", "architecture": "x86_64"}}
    assert files(made.write_layout(tmp_path / "a", entry)) == {"one": b"1"}
    refuse(
        made.write_layout(tmp_path / "b", made.image(ONE, architecture="aarch64")),
        "for linux/arm64; thinbox runs linux/amd64",
    )


def variants(made: OddImage, *names: str | None) -> list[dict[str, object]]:
    found = []
    for name in names:
        platform = AMD64 | ({} if name is None else {"variant": name})
        found.append(made.image([layer_with({f"{name}": b""})]) | {"platform": platform})
    return found


@pytest.mark.parametrize("where", ["index", "inner", "dir"])
@pytest.mark.parametrize(
    ("names", "level", "taken"),
    [
        (("v3", "v2", None), 2, "v2"), (("v3", "v2", "v1"), 1, "v1"), ((None, "v2"), 2, "v2"), ((None, "v2"), 1, "None"),
        (("v1", "v4"), 3, "v1"), (("v3", "V2"), 2, "V2"), (("v2", "v3"), 3, "v3"), (("bulldozer", "v1"), 2, "v1"),
    ],
)  # fmt: skip
def test_of_variants_the_strongest_that_the_cpu_runs_is_taken(
    tmp_path: Path, where: str, names: tuple[str | None, ...], level: int, taken: str
) -> None:
    made = OddImage()
    entries = variants(made, *names)
    if where == "index":
        path = made.write_layout(tmp_path / "x", *entries)
    elif where == "inner":
        path = made.write_layout(tmp_path / "x", made.index(entries))
    else:
        path = made.write_dir(tmp_path / "x", made.index(entries))
    assert set(files(path, level=level)) == {taken}


def test_variants_that_are_all_too_strong_are_named(tmp_path: Path) -> None:
    made = OddImage()
    path = made.write_layout(tmp_path / "x", made.index(variants(made, "v3", "v4")))
    refuse(path, r"only of v3, v4; the CPU is v1")
    assert set(files(path, level=4)) == {"v4"}
    assert [MODELS[name].level for name in ("v1", "v2")] == [1, 2] and level_of({"variant": 3}) is None


def test_what_says_nothing_of_platforms_is_taken_last_and_two_such_are_two_images(tmp_path: Path) -> None:
    made = OddImage()
    plain, other = made.image(ONE), made.image([layer_with({"other": b""})])
    (v1,) = variants(made, "v1")
    assert set(files(made.write_layout(tmp_path / "a", made.index([plain, v1])))) == {"v1"}
    assert set(files(made.write_layout(tmp_path / "b", made.index([plain, other])))) == {"one"}
    refuse(made.write_layout(tmp_path / "c", plain, other), "holds 2 images")
    refuse(
        made.write_layout(tmp_path / "d", plain | {"platform": AMD64}, other | {"platform": AMD64}), "holds 2 images"
    )


# -- digests, layouts, layers -------------------------------------------------------------------------------
@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("diff", ["sha256", "sha512"])
def test_digests_of_every_registered_length_are_followed_and_checked(tmp_path: Path, algorithm: str, diff: str) -> None:
    made = OddImage(algorithm=algorithm)
    entry = made.image(ONE, diff=diff)
    assert (
        files(made.write_layout(tmp_path / "x", entry)) == files(made.write_dir(tmp_path / "y", entry)) == {"one": b"1"}
    )
    layer = gzip.compress(ONE[0], 1, mtime=0)
    digits = digest_of(layer, algorithm).partition(":")[2]
    (tmp_path / "x/blobs" / algorithm / digits).write_bytes(gzip.compress(layer_with({"two": b"1"}), 1, mtime=0))
    refuse(tmp_path / "x", f"does not have the {diff.upper().replace('SHA', 'SHA-')}")
    config = next(digest for digest, data in made.blobs.items() if b"rootfs" in data).partition(":")[2]
    (tmp_path / "y" / config).write_bytes(b"{}")
    refuse(tmp_path / "y", f"does not have the {algorithm.upper().replace('SHA', 'SHA-')} it is named after")


@pytest.mark.parametrize(
    "digest", ["sha512:" + "0" * 64, "sha256:" + "0" * 128, "md5:" + "0" * 32, "sha256:" + "A" * 64, 5]
)
def test_a_digest_of_another_shape_is_refused(tmp_path: Path, digest: object) -> None:
    made = OddImage()
    refuse(made.write_layout(tmp_path / "x", made.image(ONE) | {"digest": digest}), "a digest is")


def test_a_dir_layout_of_skopeo_s_is_read(tmp_path: Path) -> None:
    made = OddImage()
    path = made.write_dir(tmp_path / "x", made.image([*ONE, layer_with({"two": b"2"})], config={"Cmd": ["x"]}))
    assert files(path) == {"one": b"1", "two": b"2"} and load_image(str(path)).launch().command == ("x",)
    refuse(f"{path}:name", "without a name")
    (path / "manifest.json").write_text(json.dumps({"schemaVersion": 1, "fsLayers": []}))
    refuse(path, "schema 1, which engines no longer take")
    (path / "manifest.json").write_text(
        json.dumps({"schemaVersion": 2, "config": {"digest": "sha256:../../../etc/passwd"}})
    )
    refuse(path, "a digest is")


@pytest.mark.parametrize("packed", [True, False])
def test_a_layer_of_no_bytes_is_an_empty_one(tmp_path: Path, *, packed: bool) -> None:
    made = OddImage()
    path = made.write_layout(tmp_path / "x", made.image([b"", *ONE, b""], packed=packed))
    assert files(path) == {"one": b"1"}
    assert files(write_docker_archive(tmp_path / "i", [b"", *ONE])) == {"one": b"1"}
    assert files(made.write_layout(tmp_path / "y", made.image([b""]))) == {}
    (tmp_path / "empty.tar").write_bytes(b"")
    refuse(tmp_path / "empty.tar", "not a tar archive")  # no hash says that it is whole


def test_a_layer_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    made = OddImage()
    entry = made.image(ONE, packed=False)
    path = made.write_layout(tmp_path / "x", entry)
    (path / "blobs/sha256" / digest_of(ONE[0]).partition(":")[2]).write_bytes(b"")
    refuse(path, "does not have the SHA-256")


def test_a_directory_that_no_layer_names_has_the_group_of_a_setgid_one_above(tmp_path: Path) -> None:
    """As mkdir(2) makes it for an engine; so does what lies below that."""
    above = member("d", kind=tarfile.DIRTYPE)
    above[0].mode, above[0].gid = 0o2750, 7
    found = contents(
        load_image(str(write_docker_archive(tmp_path / "i", [tar_bytes(above, member("d/e/f/g"), member("x/y"))])))
    )
    assert {name: (found[name][0].mode, found[name][0].gid) for name in ("d", "d/e", "d/e/f", "x")} == {
        "d": (0o2750, 7), "d/e": (0o2755, 7), "d/e/f": (0o2755, 7), "x": (0o755, 0),
    }  # fmt: skip


def test_only_the_specification_s_name_is_an_opaque_whiteout(tmp_path: Path) -> None:
    for name, left in (
        (".wh..wh..opq", {"d", "d/b"}),
        (".wh..wh.opq", {"d", "d/a", "d/b"}),
        (".wh..wh.plnk", {"d", "d/a", "d/b"}),
    ):
        layers = [layer_with({"d/a": b""}), layer_with({f"d/{name}": b"", "d/b": b""})]
        assert set(files(write_docker_archive(tmp_path / "i", layers))) == left


# -- as skopeo reads them -----------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", ["layout", "dir"])
def test_odd_images_come_out_as_they_were_made(tmp_path: Path, seed: int, kind: str) -> None:
    path, wanted = some_odd_image(random.Random(seed), tmp_path / "x", kind)
    if wanted:
        assert files(path, level=2) == wanted
    else:
        refuse(path, "the CPU is v1")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["layout", "dir"])
def test_skopeo_s_copy_of_an_odd_image_is_the_same_image(tmp_path: Path, seed: int, kind: str) -> None:
    """It chooses the variant, follows the digests, and writes another layout.

    Of amd64 it knows no order: v2 is v2 or none (containers/image, internal/pkg/platform). v1 alone is asked for.
    """
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("skopeo is not installed: apt install skopeo")
    path, wanted = some_odd_image(random.Random(seed), tmp_path / "x", kind)
    source = f"oci:{path}" if kind == "layout" else f"dir:{path}"
    variant = "v1" if "d/level-v1" in wanted else "v2"
    words = [
        skopeo,
        "--insecure-policy",
        "--override-os=linux",
        "--override-arch=amd64",
        f"--override-variant={variant}",
    ]
    for transport, out in (
        ("oci-archive", "oci.tar:t"),
        ("dir", "dir"),
        ("docker-archive", "docker.tar:t"),
        ("oci", "o:t"),
    ):
        place = f"{transport}:{tmp_path / out}"
        done = subprocess.run([*words, "copy", source, place], capture_output=True, text=True, check=False)
        if not wanted:
            assert done.returncode
            continue
        assert done.returncode == 0, done.stderr
        assert files(tmp_path / out.partition(":")[0]) == files(path, level=2) == wanted, transport
