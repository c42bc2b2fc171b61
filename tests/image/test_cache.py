"""The cache never shows half a file, and says in one line when it cannot be written."""

import multiprocessing
import os
from pathlib import Path

import pytest

from thinbox.errors import CacheError
from thinbox.image import cache
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


TURNS = 200


def _count_up(count: Path, both_are_there: object) -> None:
    both_are_there.wait()  # type: ignore[attr-defined]
    for _turn in range(TURNS):
        with lock("shared"):
            number = int(count.read_text())
            os.sched_yield()
            count.write_text(str(number + 1))


def test_two_processes_take_turns(own_cache: Path, tmp_path: Path) -> None:
    """Each adds to a number in a file what it read there before: without turns one's addition is lost."""
    count = tmp_path / "count"
    count.write_text("0")
    context = multiprocessing.get_context("spawn")
    both_are_there = context.Barrier(2)
    workers = [context.Process(target=_count_up, args=(count, both_are_there)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert int(count.read_text()) == 2 * TURNS


def test_a_lock_that_is_held_is_not_given_twice(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_LOCK_WAIT_S", 0)
    with lock("shared"):
        with pytest.raises(CacheError, match="another process has held"), lock("shared"):
            raise AssertionError("given twice")
        with lock("other"):
            pass
    with lock("shared"):
        pass
