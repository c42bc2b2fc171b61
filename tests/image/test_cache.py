"""The cache never shows half a file, and says in one line when it cannot be written."""

import multiprocessing
import os
from pathlib import Path

import pytest

from thinbox.errors import CacheError, TrustError
from thinbox.image import cache, source
from thinbox.image.cache import (
    cache_dir,
    create_cached,
    lock,
    make_folder,
    read_cached,
    read_sealed,
    require_unseen,
    sha256_of_cached,
    store_bytes,
    store_sealed,
)


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


def test_files_and_folders_are_made_for_their_user_alone(own_cache: Path) -> None:
    store_sealed(own_cache / "native" / "x.o", b"code")
    create_cached(own_cache / "audits" / "x.jsonl").close()
    with lock("x"):
        pass
    modes = {str(path.relative_to(own_cache)): path.stat().st_mode & 0o777 for path in own_cache.rglob("*")}
    assert modes == {
        "native": 0o700, "native/x.o": 0o600, "audits": 0o700, "audits/x.jsonl": 0o600, "locks": 0o700, "locks/x.lock": 0o600
    }  # fmt: skip


@pytest.mark.parametrize("place", [".", "native", "native/x.o"])
def test_machine_code_that_others_may_write_is_refused_behind_a_right_hash(own_cache: Path, place: str) -> None:
    path = own_cache / "native" / "x.o"
    store_sealed(path, b"code")
    assert read_sealed(path) == b"code"
    (own_cache / place).chmod(0o777)
    for use in (read_sealed, read_cached, sha256_of_cached):
        with pytest.raises(TrustError, match="THINBOX_CACHE") as caught:
            use(path)
        assert "\n" not in str(caught.value)


def test_nothing_is_written_into_a_folder_of_others_or_through_a_link(own_cache: Path, tmp_path: Path) -> None:
    make_folder(own_cache / "native")
    (own_cache / "facts").symlink_to(tmp_path)
    (own_cache / "native" / "x").symlink_to(tmp_path / "x")
    for write in (lambda path: store_bytes(path, b""), create_cached, lambda path: make_folder(path.parent)):
        with pytest.raises(TrustError, match="link"):
            write(own_cache / "facts" / "x")
    with pytest.raises(CacheError):
        create_cached(own_cache / "native" / "x")
    store_bytes(own_cache / "native" / "x", b"new")
    assert not (own_cache / "native" / "x").is_symlink() and not (tmp_path / "x").exists()
    (own_cache / "native").chmod(0o770)
    for write in (lambda path: store_bytes(path, b""), create_cached, lambda path: make_folder(path.parent)):
        with pytest.raises(TrustError, match="group"):
            write(own_cache / "native" / "y")


def test_a_folder_for_what_numba_keeps_is_closed_to_all_others(own_cache: Path) -> None:
    folder = make_folder(own_cache / "numba" / "x")
    require_unseen(folder)
    folder.chmod(0o755)
    with pytest.raises(TrustError, match="executed"):
        require_unseen(folder)


def test_numba_is_not_given_a_cache_that_others_may_enter(own_cache: Path) -> None:
    from thinbox.machine import compiled

    folder = make_folder(own_cache / "numba")
    folder.chmod(0o777)
    with pytest.raises(TrustError):
        compiled._choose_cache.__wrapped__()


def test_kernels_and_what_is_remembered_of_packages_are_refused_too(own_cache: Path) -> None:
    kernel = make_folder(own_cache / "kernels" / "x") / "vmlinuz-6.1"
    source._store_hashed(kernel, b"kernel")
    store_bytes(own_cache / "packages" / "busybox-static.json", b"{}")
    assert kernel in [found.path for found in source.list_kernels()]
    kernel.chmod(0o666)
    (own_cache / "packages").chmod(0o777)
    with pytest.raises(TrustError):
        source.list_kernels()
    with pytest.raises(TrustError):
        source.fetch_package("busybox-static")
