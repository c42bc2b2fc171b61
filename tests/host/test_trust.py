"""What is executed or believed is in nobody's hands but ours and root's, and what is opened is what was judged."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from thinbox.errors import InputError, TrustError
from thinbox.host import trust
from thinbox.host.trust import open_private_file, open_private_folder, read_trusted

STRANGER = 12345
ADVICE = "choose another"
GiveAway = Callable[[Path], None]


@pytest.fixture
def give_away(monkeypatch: pytest.MonkeyPatch) -> GiveAway:
    """Make a file or folder another user's: as root in truth, otherwise by being another user ourselves."""

    def give(path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, STRANGER, -1, follow_symlinks=False)
        else:
            own = os.geteuid()
            monkeypatch.setattr(os, "geteuid", lambda: own + 1)

    return give


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "outer" / "root"
    (folder / "inner").mkdir(parents=True)
    for each in (folder.parent, folder, folder / "inner"):
        each.chmod(0o755)
    (folder / "inner" / "file").write_bytes(b"data")
    (folder / "inner" / "file").chmod(0o644)
    return folder


def read(root: Path, name: str = "inner/file") -> bytes:
    folder = open_private_folder((root / name).parent, root, ADVICE)
    try:
        with open_private_file(folder, root / name, ADVICE) as file:
            return file.read()
    finally:
        os.close(folder)


def refusal(root: Path, name: str = "inner/file") -> str:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TrustError) as caught:
        read(root, name)
    assert len(os.listdir("/proc/self/fd")) == before, "no descriptor is left open"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_only_we_may_write_is_read(root: Path) -> None:
    assert read(root) == b"data"


@pytest.mark.parametrize("place", ["..", ".", "inner", "inner/file"])
@pytest.mark.parametrize(("bits", "whom"), [(0o020, "its group"), (0o002, "everybody")])
def test_what_others_may_write_is_refused_and_so_is_every_folder_above(
    root: Path, place: str, bits: int, whom: str
) -> None:
    path = root / place
    path.chmod(path.stat().st_mode | bits)
    said = refusal(root)
    assert whom in said and "chmod go-w" in said and ADVICE in said


@pytest.mark.parametrize("place", ["..", ".", "inner", "inner/file"])
def test_what_another_owns_is_refused_and_so_is_every_folder_above(root: Path, place: str, give_away: GiveAway) -> None:
    give_away(root / place)
    assert "belongs to uid" in refusal(root)


def test_a_sticky_folder_may_be_above_but_not_be_the_place_itself(root: Path) -> None:
    root.parent.chmod(0o1777)
    assert read(root) == b"data"
    root.chmod(0o1777)
    assert "everybody" in refusal(root)


def test_a_sticky_folder_of_a_strangers_is_refused(root: Path, give_away: GiveAway) -> None:
    root.parent.chmod(0o1777)
    give_away(root.parent)
    assert "belongs to uid" in refusal(root)


@pytest.mark.parametrize("link", ["inner", "inner/file"])
def test_no_link_is_followed_below_the_root(root: Path, link: str) -> None:
    (root / link).rename(root / "moved")
    (root / link).symlink_to(root / "moved")
    assert "is a link" in refusal(root)


@pytest.mark.parametrize("target", ["{outer}/root", "root", "../outer/root"])
def test_the_root_itself_may_be_a_link_of_ours(root: Path, target: str) -> None:
    link = root.parent / "link"
    link.symlink_to(target.format(outer=root.parent))
    assert read(link) == b"data"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a link away")
def test_the_root_may_not_be_a_link_of_a_strangers(root: Path, give_away: GiveAway) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    give_away(link)
    assert "belongs to uid" in refusal(link)


def test_what_a_link_on_the_way_leads_through_is_judged_too(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    root.parent.chmod(0o777)
    assert "everybody" in refusal(tmp_path / "link")


def test_a_loop_of_links_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        open_private_folder(tmp_path / "a", tmp_path / "a", ADVICE)


def test_a_folder_swapped_for_a_link_while_we_go_down_is_not_followed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seam: right after `inner` was opened, its name leads elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"theirs")
    opened = trust._Walk._open

    def then_swapped(walk: trust._Walk, name: str) -> int:
        handle = opened(walk, name)
        if name == "inner":
            (root / "inner").rename(root / "before")
            (root / "inner").symlink_to(elsewhere)
        return handle

    monkeypatch.setattr(trust._Walk, "_open", then_swapped)
    assert read(root) == b"data"


def test_a_fifo_is_refused_and_not_waited_for(root: Path) -> None:
    (root / "inner/file").unlink()
    os.mkfifo(root / "inner/file")
    assert "not a regular file" in refusal(root)


def test_what_is_made_is_for_us_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "a" / "b" / "c"
    os.close(open_private_folder(path, tmp_path / "a", ADVICE, make=True))
    assert {each.stat().st_mode & 0o777 for each in (path, path.parent, path.parent.parent)} == {0o700}


def test_under_sudo_a_users_cache_is_not_roots(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(root, STRANGER, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "not to root, as whom thinbox runs" in refusal(root)


def test_a_file_of_the_users_that_decides_is_judged_with_its_folder(root: Path, give_away: GiveAway) -> None:
    path = root / "inner/file"
    assert read_trusted(path, 4) == b"data"
    with pytest.raises(InputError, match="larger than"):
        read_trusted(path, 3)
    for place, mode in ((path, 0o664), (path.parent, 0o775), (path.parent, 0o1777)):
        before = place.stat().st_mode & 0o7777
        place.chmod(mode)
        with pytest.raises(TrustError, match="chmod go-w"):
            read_trusted(path, 4)
        place.chmod(before)
    give_away(path)
    with pytest.raises(TrustError, match="belongs to uid"):
        read_trusted(path, 4)
    with pytest.raises(InputError, match="No such file"):
        read_trusted(root / "none", 4)
