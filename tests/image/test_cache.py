"""The cache never shows half a file, and says in one line when it cannot be written."""

import multiprocessing
import time
from pathlib import Path

import pytest

from thinbox.errors import CacheError
from thinbox.image.cache import cache_dir, lock, store_bytes


def test_the_variable_names_the_folder(own_cache: Path) -> None:
    assert cache_dir() == own_cache


def test_without_the_variable_it_is_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THINBOX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_dir() == Path("/somewhere/thinbox")


def test_pieces_are_joined_and_the_old_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    store_bytes(path, b"old")
    store_bytes(path, (piece for piece in (b"a", b"b")))
    assert path.read_bytes() == b"ab"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_full_disk_is_one_line_and_leaves_nothing() -> None:
    with pytest.raises(CacheError) as caught:
        store_bytes(Path("/dev/full/x"), b"data")
    assert "\n" not in str(caught.value)


def test_an_error_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    def failing() -> object:
        yield b"new"
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    store_bytes(path, b"old")
    with pytest.raises(CacheError, match="No space left"):
        store_bytes(path, failing())  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_interrupt_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    def interrupted() -> object:
        yield b"new"
        raise KeyboardInterrupt

    path = tmp_path / "file"
    store_bytes(path, b"old")
    with pytest.raises(KeyboardInterrupt):
        store_bytes(path, interrupted())  # type: ignore[arg-type]
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_file_in_the_way_of_a_folder_is_a_cache_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheError):
        store_bytes(tmp_path / "file" / "x", b"")


def _hold(log: Path, name: str) -> None:
    with lock("shared"):
        with log.open("a") as stream:
            stream.write(f"{name}+ ")
        time.sleep(0.1)
        with log.open("a") as stream:
            stream.write(f"{name}- ")


def test_two_processes_take_turns(own_cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_hold, args=(log, name)) for name in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert log.read_text().split() in (["a+", "a-", "b+", "b-"], ["b+", "b-", "a+", "a-"])
