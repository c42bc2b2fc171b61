"""An image comes out as an engine would unpack it, whatever its format; a hostile or damaged one is refused with one line."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.support.container_image import (
    GZIP,
    PLAIN,
    ZSTD,
    layer_with,
    oci_files,
    write_docker_archive,
    write_oci_archive,
    write_oci_layout,
)
from tests.support.tar_writer import Member, directory, hard_link, member, require_one_line, symlink, tar_bytes
from thinbox.container import store, tree
from thinbox.container.config import Overrides
from thinbox.container.image import ContainerImage, load_image
from thinbox.errors import RootfsError
from thinbox.guest.rootfs import EntryKind, RootfsEntry

ENGINE = {"dev", "etc", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf", "proc", "sys", "tmp"}


def contents(image: ContainerImage) -> dict[str, tuple[RootfsEntry, bytes]]:
    """Everything the image makes, by path, but for what engines add; parents must have come first."""
    found: dict[str, tuple[RootfsEntry, bytes]] = {}
    for entry in image.entries():
        path = entry.path.decode()
        parent = path.rpartition("/")[0]
        assert not parent or found[parent][0].kind is EntryKind.DIRECTORY
        if entry.kind is EntryKind.HARDLINK:
            assert (entry.link_target or b"").decode() in found
        assert path not in found
        found[path] = (entry, b"".join(entry.read_chunks()))
    return {path: value for path, value in found.items() if path not in ENGINE}


def merge(folder: Path, *layers: Sequence[Member]) -> dict[str, tuple[RootfsEntry, bytes]]:
    path = write_docker_archive(folder / "image.tar", [tar_bytes(*layer) for layer in layers])
    return contents(load_image(str(path)))


def refuse(spec: object, match: str) -> None:
    with pytest.raises(RootfsError, match=match) as caught:
        for entry in load_image(str(spec)).entries():
            list(entry.read_chunks())
    require_one_line(caught.value)


# -- formats ------------------------------------------------------------------------------------------------
LAYERS = [layer_with({"a/": b"", "a/one": b"1", "gone": b"x"}), layer_with({".wh.gone": b"", "a/two": b"22"})]


def written(folder: Path, kind: str) -> Path:
    path = folder / "image"
    if kind == "docker":
        write_docker_archive(path, LAYERS, Cmd=["x"])
    elif kind == "docker.gz":
        path.write_bytes(gzip.compress(write_docker_archive(path, LAYERS, Cmd=["x"]).read_bytes()))
    elif kind == "docker folder":
        archive = write_docker_archive(folder / "t", LAYERS, Cmd=["x"])
        path.mkdir()
        # tarfile's own filters are of Python 3.11.4, Debian 12 has 3.11.2.
        subprocess.run(["tar", "-xf", archive, "-C", path], check=True)
    elif kind.startswith("layout"):
        write_oci_layout(path, LAYERS, Cmd=["x"], compression=kind.split()[1])
    else:
        write_oci_archive(path, LAYERS, Cmd=["x"], compression=kind.split()[1])
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "docker",
        "docker.gz",
        "docker folder",
        *(f"{form} {c}" for form in ("layout", "oci") for c in (GZIP, ZSTD, PLAIN)),
    ],
)
def test_every_format_gives_the_same_files_and_command(tmp_path: Path, kind: str) -> None:
    image = load_image(str(written(tmp_path, kind)))
    found = contents(image)
    assert {path: data for path, (_entry, data) in found.items()} == {"a": b"", "a/one": b"1", "a/two": b"22"}
    assert image.launch().command == ("x",)


def test_a_plain_root_file_system_is_an_image_without_a_command(tmp_path: Path) -> None:
    (tmp_path / "root/usr").mkdir(parents=True)
    (tmp_path / "root/usr/f").write_text("1")
    os.link(tmp_path / "root/usr/f", tmp_path / "root/usr/g")
    (tmp_path / "t.tar").write_bytes(tar_bytes(directory("usr"), member("usr/f", b"1"), hard_link("usr/g", "usr/f")))
    for path in (tmp_path / "root", tmp_path / "t.tar"):
        image = load_image(str(path))
        found = contents(image)
        assert {name: data for name, (_entry, data) in found.items()} == {"usr": b"", "usr/f": b"1", "usr/g": b""}
        with pytest.raises(RootfsError, match="names no program"):
            image.launch()
        assert image.launch(("sh",)).command == ("sh",)


def test_one_of_several_images_is_named(tmp_path: Path) -> None:
    first, second = (oci_files([layer_with({name: b""})], tag=name) for name in ("one", "two"))
    index = json.loads(first["index.json"])
    index["manifests"] += json.loads(second["index.json"])["manifests"]
    for name, data in (first | second | {"index.json": json.dumps(index).encode()}).items():
        (tmp_path / "oci" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "oci" / name).write_bytes(data)
    assert set(contents(load_image(f"{tmp_path / 'oci'}:two"))) == {"two"}
    refuse(tmp_path / "oci", "holds 2 images; name one, as in --image FILE:NAME: one, two")
    refuse(f"{tmp_path / 'oci'}:three", "no image 'three'; it has: one, two")


def test_the_variant_for_our_platform_is_taken(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    manifests = []
    for machine in ("arm64", "amd64"):
        made = oci_files([layer_with({machine: b""})], architecture=machine)
        (entry,) = json.loads(made["index.json"])["manifests"]
        manifests.append(entry | {"platform": {"os": "linux", "architecture": machine}})
        files |= made
    inner = json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()
    digest = hashlib.sha256(inner).hexdigest()
    files[f"blobs/sha256/{digest}"] = inner
    outer = {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": f"sha256:{digest}", "size": len(inner)}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [outer]}).encode()
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert set(contents(load_image(str(tmp_path)))) == {"amd64"}


def test_an_image_for_another_platform_is_refused(tmp_path: Path) -> None:
    refuse(
        write_docker_archive(tmp_path / "i", [], architecture="arm64"), "is for linux/arm64; thinbox runs linux/amd64"
    )


# -- launch -------------------------------------------------------------------------------------------------
def test_arguments_and_overrides_count_as_in_docker(tmp_path: Path) -> None:
    path = write_docker_archive(
        tmp_path / "i", [], Entrypoint=["/e"], Cmd=["c"], Env=["A=1", "PATH=/x"], User="u:g", WorkingDir="/w"
    )
    image = load_image(str(path))
    launch = image.launch()
    assert (launch.command, launch.environment) == (("/e", "c"), ("PATH=/x", "A=1"))
    assert (launch.user, launch.workdir) == ("u:g", "/w")
    assert image.launch(("a", "b")).command == ("/e", "a", "b")
    assert image.launch((), Overrides(entrypoint=("/f",))).command == ("/f",)
    assert image.launch(("a",), Overrides(entrypoint=())).command == ("a",)
    other = image.launch((), Overrides(environment=("A=2", "B=3"), user="", workdir="/v"))
    assert (other.environment, other.user, other.workdir) == (("PATH=/x", "A=2", "B=3"), "", "/v")


# -- layers -------------------------------------------------------------------------------------------------
def test_a_whiteout_removes_what_lower_layers_brought(tmp_path: Path) -> None:
    lower = [directory("d"), member("d/f", b"1"), member("d/g", b"2"), directory("e"), member("e/f", b"3")]
    found = merge(tmp_path, lower, [member("d/.wh.f"), member(".wh.e"), member(".wh.never")])
    assert set(found) == {"d", "d/g"}


@pytest.mark.parametrize("order", [0, 1])
def test_a_whiteout_spares_its_own_layer_in_either_order(tmp_path: Path, order: int) -> None:
    lower = [directory("d"), directory("d/s"), member("d/s/old", b"1"), member("d/old", b"2"), member("o", b"3")]
    new = [member("d/s/new", b"4"), member("d/new", b"5"), hard_link("d/kept", "o")]
    marks = [member("d/.wh..wh..opq")]
    found = merge(tmp_path, lower, [*marks, *new] if order else [*new, *marks])
    assert set(found) == {"d", "d/kept", "d/new", "d/s", "d/s/new", "o"}
    again = [member(".wh.d"), *new] if order else [*new, member(".wh.d")]
    assert set(merge(tmp_path, lower, again)) == set(found)


def test_an_upper_layer_replaces_kinds_and_keeps_directories(tmp_path: Path) -> None:
    lower = [
        directory("a"),
        member("a/x", b"1"),
        symlink("b", "a"),
        directory("c"),
        member("c/x", b"2"),
        member("d", b"3"),
    ]
    upper = [member("a", b"now a file"), directory("b"), directory("c"), directory("d"), member("d/x", b"4")]
    upper[2][0].mode, upper[2][0].uid = 0o711, 9
    found = merge(tmp_path, lower, upper)
    assert {path: entry.kind.value for path, (entry, _data) in found.items()} == {
        "a": "file", "b": "directory", "c": "directory", "c/x": "file", "d": "directory", "d/x": "file",
    }  # fmt: skip
    assert found["a"][1] == b"now a file"
    assert (found["c"][0].mode, found["c"][0].uid) == (0o711, 9)


def test_names_below_a_lower_layers_symlink_go_where_it_leads(tmp_path: Path) -> None:
    lower = [directory("usr"), directory("usr/bin"), symlink("bin", "usr/bin"), symlink("abs", "/usr/../../usr")]
    found = merge(tmp_path, lower, [member("bin/sh", b"1"), member("abs/f", b"2"), member("usr/bin/old", b"3")])
    assert {path for path, (entry, _d) in found.items() if entry.kind is EntryKind.FILE} == {
        "usr/bin/sh", "usr/f", "usr/bin/old",
    }  # fmt: skip


def test_a_hard_link_outlives_the_name_it_was_made_from(tmp_path: Path) -> None:
    lower = [member("a", b"content", uid=3, mode=0o4755)]
    found = merge(tmp_path, lower, [hard_link("b", "a"), hard_link("c", "/a")], [member(".wh.a")])
    (entry, data), (link, _nothing) = found["b"], found["c"]
    assert (entry.kind, entry.uid, entry.mode, data) == (EntryKind.FILE, 3, 0o4755, b"content")
    assert (link.kind, link.link_target) == (EntryKind.HARDLINK, b"b")


def test_file_capabilities_survive(tmp_path: Path) -> None:
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    info, data = member("ping", b"1")
    info.pax_headers = {"SCHILY.xattr.security.capability": capability.decode("utf-8", "surrogateescape")}
    layer = tar_bytes((info, data), tar_format=tarfile.PAX_FORMAT)
    found = contents(load_image(str(write_docker_archive(tmp_path / "i", [layer]))))
    assert found["ping"][0].capability == capability


def test_engine_files_replace_the_images_and_mount_points_are_made(tmp_path: Path) -> None:
    layer = tar_bytes(directory("etc"), symlink("etc/resolv.conf", "../run/stub"), member("etc/mtab", b"own"))
    image = load_image(str(write_docker_archive(tmp_path / "i", [layer], WorkingDir="/w/x", Volumes={"/v": {}})))
    found = {entry.path.decode(): entry.kind for entry in image.entries()}
    assert found["etc/resolv.conf"] is found["etc/mtab"] is EntryKind.FILE
    assert {"proc", "sys", "dev", "tmp", "w", "w/x", "v", *ENGINE} <= set(found)


# -- hostile ones ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("members", "match"),
    [
        ([member("../x")], "would leave the root"),
        ([member("/x")], "absolute name"),
        ([hard_link("x", "../../etc/shadow")], "would leave the root"),
        ([hard_link("x", "etc/shadow")], "no earlier file"),
        ([symlink("a", "b"), symlink("b", "a"), member("a/x")], "loop"),
        ([member("a"), member("a/x")], "above it is a file"),
        ([member("sda", kind=tarfile.BLKTYPE, devmajor=8)], "block device 8:0 is not one of"),
        ([member("mem", kind=tarfile.CHRTYPE, devmajor=1, devminor=1)], "character device 1:1 is not one of"),
        ([member("d/.wh.")], "whiteout of no name"),
        ([member("d/.wh...")], "whiteout of no name"),
        ([symlink("proc", "/")], "proc: is a symlink, and must be a directory"),
        ([symlink("dev", "../../..")], "dev: is a symlink, and must be a directory"),
        ([member("sys", b"x")], "sys: is a file, and must be a directory"),
    ],
)
def test_a_hostile_layer_is_refused(tmp_path: Path, members: list[Member], match: str) -> None:
    refuse(write_docker_archive(tmp_path / "i", [tar_bytes(*members)]), match)


def test_a_link_out_of_the_tree_is_only_a_text(tmp_path: Path) -> None:
    found = merge(tmp_path, [symlink("out", "../../../../tmp"), member("out/x", b"1")])
    assert found["out"][0].link_target == b"../../../../tmp"
    assert set(found) == {"out", "tmp/x"}


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    info = tarfile.TarInfo("zeros")
    info.size = store.MAX_UNPACKED_BYTES + 1
    path = write_docker_archive(tmp_path / "i", [info.tobuf() + bytes(1024)])
    refuse(path, "unpacks to more than 4096 MiB")


def test_layers_share_one_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thinbox.container.image.MAX_UNPACKED_BYTES", 1 << 20)
    layer = layer_with({"f": bytes(300_000)})
    assert contents(load_image(str(write_docker_archive(tmp_path / "i", [layer] * 3))))
    refuse(write_docker_archive(tmp_path / "j", [layer] * 4), "unpacks to more than 1 MiB")


def test_too_many_files_names_and_levels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_docker_archive(tmp_path / "i", [tar_bytes(*(member(f"f{n}") for n in range(200)))])
    monkeypatch.setattr(tree, "_MAX_NAME_BYTES", 500)
    refuse(path, "names are longer than")
    monkeypatch.setattr(tree, "_MAX_STEPS", 300)
    refuse(path, "more than 300 files")
    monkeypatch.setattr(tree, "_MAX_STEPS", 100_000)
    deep = "/".join("d" * 1500)
    layer = tar_bytes(directory(deep), symlink("s", deep), directory(f"s/{deep}"))
    refuse(write_docker_archive(tmp_path / "j", [layer]), "directories deep")


def test_a_changed_layer_or_document_is_refused(tmp_path: Path) -> None:
    for name in oci_files(LAYERS):
        if not name.startswith("blobs/"):
            continue
        folder = tmp_path / name.rpartition("/")[2]
        write_oci_layout(folder, LAYERS)
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        refuse(folder, "SHA-256|damaged")


def test_every_truncation_of_an_archive_is_refused(tmp_path: Path) -> None:
    data = write_docker_archive(tmp_path / "i", LAYERS).read_bytes()
    end = len(data.rstrip(b"\0"))
    for size in range(0, end, 512):
        (tmp_path / "short").write_bytes(data[:size])
        refuse(tmp_path / "short", "short: ")


@pytest.mark.parametrize("document", ["[]", "{}", "3", "[3]", '[{"Config": 1, "Layers": 2}]', "[" * 100_000, "\xff"])
def test_a_manifest_of_another_shape_is_refused(tmp_path: Path, document: str) -> None:
    out = io.BytesIO(tar_bytes(member("manifest.json", document.encode("latin-1"))))
    (tmp_path / "i").write_bytes(out.getvalue())
    refuse(tmp_path / "i", "manifest.json|no image")


def test_a_folders_symlink_leads_nowhere_else(tmp_path: Path) -> None:
    folder = write_oci_layout(tmp_path / "oci", LAYERS)
    (tmp_path / "secret").write_bytes((folder / "index.json").read_bytes())
    (folder / "index.json").unlink()
    (folder / "index.json").symlink_to(tmp_path / "secret")
    refuse(folder, "leads out of its folder")


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "no such file or folder")
    (tmp_path / "text").write_text("text\n" * 500)
    refuse(tmp_path / "text", "not a tar archive")
