"""Layers of every odd order come out as podman unpacks them."""

import os
import random
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
from tests.support.odd_images import OddImage
from tests.support.tar_writer import Member, directory, hard_link, member, symlink, tar_bytes
from thinbox.container.image import load_image
from thinbox.guest.rootfs_entry import EntryKind

NAMES = ("a", "b", "c", "d")
ENGINE = {"etc", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf", "proc", "sys", "dev", "tmp"}
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo"}


def some_layer(rng: random.Random, number: int) -> bytes:
    """One layer: files, links, whiteouts and nodes, on and below what lower ones brought.

    No name twice and nothing below what is no directory here: podman refuses those ("duplicates of file paths not
    supported"). Whiteouts come first, and are of nothing that the layer itself brings: behind it podman removes that, too,
    which image-spec forbids. Nothing is below a FIFO, on which podman waits for ever. A hard link's header says what its file's does, as tar writes it.
    """
    members: list[Member] = []
    files: list[Member] = []
    whiteouts: list[Member] = []
    taken: dict[str, bool] = {}  # whether it is a directory

    def is_free(path: str) -> bool:
        above = [path[:at] for at, char in enumerate(path) if char == "/"]
        return path not in taken and all(taken.get(folder, True) for folder in above)

    for step in range(rng.randint(0, 12)):
        path = "/".join(rng.choice(NAMES) for _ in range(rng.randint(1, 3)))
        folder = path.rpartition("/")[0]
        ids = {
            "uid": rng.choice((0, 1000)),
            "gid": rng.choice((0, 1000)),
            "mode": rng.choice((0o644, 0o755, 0o4755, 0o600)),
        }
        kind = rng.randrange(9)
        if not is_free(path) or (kind != 3 and any(name.startswith(f"{path}/") for name in taken)):
            continue
        taken |= {path[:at]: True for at, char in enumerate(path) if char == "/"}
        taken[path] = kind in (3, 7)
        if kind <= 2:
            members.append(member(path, f"{number}.{step}".encode() * rng.randint(0, 3), **ids))
            files.append(members[-1])
        elif kind == 3:
            members.append(member(path, kind=tarfile.DIRTYPE, **ids | {"mode": rng.choice((0o755, 0o1777, 0o2750))}))
        elif kind == 4:
            members.append(symlink(path, rng.choice(("a", "../b", "/c", "nowhere", "../../../../d"))))
        elif kind == 5 and files:
            info, _content = rng.choice(files)
            link = hard_link(path, info.name)
            link[0].mode, link[0].uid, link[0].gid = info.mode, info.uid, info.gid
            members.append(link)
        elif kind == 6:
            whiteouts.append(member(f"{folder}/.wh.{path.rpartition('/')[2]}".lstrip("/")))
        elif kind == 7:
            whiteouts.append(member(f"{path}/.wh..wh..opq"))
        elif kind == 8:
            members.append(member(f"{path}-pipe", kind=tarfile.FIFOTYPE, **ids))
    if rng.random() < 0.3:
        members += [directory("dev"), member("dev/sda", kind=tarfile.BLKTYPE, devmajor=8)]
    return tar_bytes(*whiteouts, *members) if whiteouts or members else b""


def as_read(path: Path) -> dict[str, tuple[object, ...]]:
    """What thinbox makes: kind, mode, owner and content or target by path; names of one file have one first name."""
    found: dict[str, tuple[object, ...]] = {}
    for entry in load_image(str(path)).entries():
        name = entry.path.decode()
        if entry.kind is EntryKind.HARDLINK:
            found[name] = ("link", (entry.link_target or b"").decode())
            continue
        what = (entry.link_target or b"").decode() if entry.kind is EntryKind.SYMLINK else b"".join(entry.read_chunks())
        mode = 0 if entry.kind is EntryKind.SYMLINK else entry.mode
        found[name] = (str(entry.kind), mode, entry.uid, entry.gid, what)
    return {name: value for name, value in found.items() if name not in ENGINE}


def as_unpacked(root: Path) -> dict[str, tuple[object, ...]]:
    """The same of a folder."""
    found: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    for path in sorted(root.rglob("*"), key=lambda path: os.fsencode(path.relative_to(root)).split(b"/")):
        name, status = str(path.relative_to(root)), path.lstat()
        if stat.S_IFMT(status.st_mode) not in KINDS:
            assert name.startswith("dev/")
            continue
        kind = KINDS[stat.S_IFMT(status.st_mode)]
        if kind != "directory" and first.setdefault(status.st_ino, name) != name:
            found[name] = ("link", first[status.st_ino])
            continue
        what: object = os.readlink(path) if kind == "symlink" else path.read_bytes() if kind == "file" else b""
        mode = 0 if kind == "symlink" else stat.S_IMODE(status.st_mode)
        found[name] = (kind, mode, status.st_uid, status.st_gid, what)
    return {name: value for name, value in found.items() if name not in ENGINE}


class Podman:
    """podman with a store of its own; only root unpacks owners and devices."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        places = [f"--{name}={self.folder / name}" for name in ("root", "runroot", "tmpdir")]
        options = ["--storage-driver=vfs", "--events-backend=none", "--cgroup-manager=cgroupfs"]
        return subprocess.run(
            ["podman", *places, *options, *words], capture_output=True, text=True, check=False, timeout=120
        )

    def unpack(self, layout: Path) -> Path | None:
        """Return the merged root of an image, None if podman refuses it."""
        pulled = self.run("pull", "-q", f"--signature-policy={self.folder / 'policy.json'}", f"oci:{layout}")
        if pulled.returncode:
            return None
        mounted = self.run("image", "mount", pulled.stdout.strip().splitlines()[-1])
        assert mounted.returncode == 0, mounted.stderr
        return Path(mounted.stdout.strip())


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Podman:
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed: apt install podman")
    if os.geteuid() != 0:
        pytest.skip("only root unpacks images with owners")
    made = Podman(tmp_path_factory.mktemp("podman"))
    layout = OddImage()
    if made.unpack(layout.write_layout(made.folder / "probe", layout.image([tar_bytes(member("f"))]))) is None:
        pytest.skip("podman cannot unpack an image here")
    return made


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*range(40), 51, 85, 111])
def test_random_layers_are_merged_as_podman_merges_them(tmp_path: Path, podman: Podman, seed: int) -> None:
    rng = random.Random(seed)
    made = OddImage()
    layers = [some_layer(rng, number) for number in range(rng.randint(1, 4))]
    layout = made.write_layout(tmp_path / "x", made.image(layers, packed=rng.random() < 0.5))
    root = podman.unpack(layout)
    if root is None:
        return  # what podman refuses need not be refused: a hard link onto itself, through a symlink
    assert as_read(layout) == as_unpacked(root)
