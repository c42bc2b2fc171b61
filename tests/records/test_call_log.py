"""Calls in flat memory: what is packed reads back as it was, what is open stays an object, sums are exact."""

import random
import tempfile
from collections.abc import Iterator

import pytest

from thinbox.records import chunk_file
from thinbox.records.call_log import CallLog
from thinbox.records.coverage import CallCounts
from thinbox.records.fault_log import FaultLog, FaultRecord
from thinbox.records.row_store import CHUNK_ROWS, Bounds
from thinbox.records.run import CallRecord
from thinbox.records.tally import MOST_NAMES, Tally

MANY = 5 * CHUNK_ROWS


def any_call(number: int, draw: random.Random) -> CallRecord:
    """A call with the extremes of what each field can hold."""
    call = CallRecord(
        number,
        draw.choice(("tenant", "a", "zwölf")),
        draw.randrange(1 << 22),
        draw.choice((0, 39, 400, -1, -(1 << 63), (1 << 31) - 1)),
        draw.choice(("getpid", "read", f"#{number % 1000}", f"i386#{number % 7}", "")),
        tuple(draw.choice((0, (1 << 64) - 1, 1 << 63, draw.getrandbits(64))) for _ in range(draw.choice((6, 6, 0, 3)))),
        draw.choice((None, 0, -38, (1 << 63) - 1, -(1 << 63))),
        isolated=draw.random() < 0.5,
        verdict=draw.choice(("pass", "granted", "killed", "denied")),
        code_faults=draw.randrange(300),
        data_faults=draw.randrange(300),
        prefaulted=draw.randrange(3),
        code_bytes=draw.getrandbits(50),
        virtual_ns=draw.getrandbits(62),
        disposition=draw.choice(("", "isolate", "emulate", "deny", "kill", "populate")),
        plan_line=draw.randrange(100),
    )
    kind = draw.randrange(6)
    if kind < 2:
        pages = (0, draw.randrange(99)) if kind else (None, None)
        call.coverage = CallCounts(draw.randrange(999), draw.randrange(999), draw.randrange(999), *pages)
    return call


def made(seed: int, count: int = MANY) -> Iterator[CallRecord]:
    """Calls one by one, held by nobody."""
    draw = random.Random(seed)
    return (any_call(number, draw) for number in range(count))


def copies(seed: int, count: int = MANY) -> list[CallRecord]:
    return list(made(seed, count))


def sums(calls: list[CallRecord]) -> Tally:
    tally = Tally()
    for call in calls:
        tally.add(call)
    return tally


def test_what_is_packed_reads_back_as_it_was() -> None:
    wanted = copies(1)
    log = CallLog(made(1))
    assert len(log._live) <= 2 * CHUNK_ROWS, "nothing was packed"
    assert len(log) == MANY and list(log) == wanted
    assert list(reversed(log)) == wanted[::-1]
    assert [log[at] for at in (0, 1, CHUNK_ROWS, MANY - 1, -1, -MANY)] == [
        wanted[at] for at in (0, 1, CHUNK_ROWS, MANY - 1, -1, -MANY)
    ]
    assert log[10:5000:7] == wanted[10:5000:7] and log[-3:] == wanted[-3:]
    assert log.tally == sums(wanted) and not log.left_out
    for wrong in (MANY, -MANY - 1):
        with pytest.raises(IndexError):
            log[wrong]


def test_a_call_that_somebody_holds_stays_an_object_and_what_becomes_of_it_is_kept() -> None:
    log, open_calls, wanted = CallLog(), {}, copies(2)
    draw = random.Random(3)
    for number, call in enumerate(made(2)):
        log.append(call)
        if draw.random() < 0.4:
            open_calls[number] = call
        del call
        # Calls end in any order, long after younger ones.
        while len(open_calls) > 3000:
            ended = draw.choice(list(open_calls))
            open_calls.pop(ended).virtual_ns = wanted[ended].virtual_ns = draw.getrandbits(60)
    held = list(open_calls)
    assert min(held) < MANY - 3 * CHUNK_ROWS, "no call was open for long"
    for number, call in open_calls.items():
        assert log[number] is call, "an open call is not the object its task writes to"
        call.verdict = wanted[number].verdict = "killed"
    assert list(log) == wanted
    assert log.tally == sums(wanted)
    assert len(log._live) + len(log._late) <= 4 * CHUNK_ROWS + len(held)


def test_many_calls_that_end_late_are_packed_too() -> None:
    log, wanted = CallLog(), copies(4, 12 * CHUNK_ROWS)
    waiting: list[CallRecord] = []
    for call in made(4, 12 * CHUNK_ROWS):
        log.append(call)
        waiting.append(call)
        del call
        if len(waiting) > 3 * CHUNK_ROWS:  # each call ends only after 12,288 younger ones
            waiting.pop(0).code_bytes = 5
            wanted[len(log) - 1 - 3 * CHUNK_ROWS].code_bytes = 5
    assert len(log._live) + len(log._late) < 8 * CHUNK_ROWS
    assert list(log) == wanted and log.tally == sums(wanted)
    assert [log[at] for at in range(0, len(wanted), 997)] == wanted[::997]


def test_past_its_bound_calls_are_left_out_and_sums_are_of_all() -> None:
    wanted = copies(5)
    log = CallLog(made(5), Bounds(2 * CHUNK_ROWS, 1 << 30))
    assert log.left_out == 2 * CHUNK_ROWS and "8,192" in log.why_left_out
    kept = list(log)
    assert len(kept) == MANY - log.left_out and len(log) == MANY
    assert kept == wanted[: 2 * CHUNK_ROWS] + wanted[2 * CHUNK_ROWS + log.left_out :]
    assert log.tally == sums(wanted)
    assert log[-1] == wanted[-1]
    assert log[2 * CHUNK_ROWS - 1 : 2 * CHUNK_ROWS + 5] == [wanted[2 * CHUNK_ROWS - 1]]
    with pytest.raises(IndexError, match="not in the record"):
        log[2 * CHUNK_ROWS]
    assert list(reversed(log)) == kept[::-1]


def test_past_its_bytes_calls_are_left_out() -> None:
    log = CallLog(made(6), Bounds(1 << 40, 600_000))
    assert 0 < log.left_out < MANY and len(list(log)) == MANY - log.left_out
    assert log.tally == sums(copies(6)) and "MiB" in log.why_left_out


def no_folder() -> None:
    raise FileNotFoundError(2, "No usable temporary directory found")


class FullDisk:
    """Takes so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = min(self.room, len(data), 100_000)
        self.room -= taken
        return self.real(descriptor, data[:taken], offset)


def test_without_a_temporary_folder_what_fits_into_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_file, "MEMORY_BYTES", 700_000)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_options: no_folder())
    log = CallLog(made(7))
    assert 0 < log.left_out < MANY and "temporary folder" in log.why_left_out
    assert log.tally == sums(copies(7)) and len(list(log)) == MANY - log.left_out


def test_a_disk_that_fills_up_leaves_calls_out_and_loses_none_written_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_file, "MEMORY_BYTES", 0)
    disk = FullDisk(400_000)
    disk.real = chunk_file.os.pwrite
    monkeypatch.setattr(chunk_file.os, "pwrite", disk.pwrite)
    wanted, log = copies(8), CallLog(made(8))
    assert log.left_out and "No space left" in log.why_left_out
    kept = list(log)
    assert kept == [wanted[call.seq] for call in kept] and len(kept) == MANY - log.left_out
    assert log.tally == sums(wanted)


def test_the_disk_is_never_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_file, "MEMORY_BYTES", 0)
    monkeypatch.setattr(chunk_file, "FREE_BYTES", 1 << 62)
    log = CallLog(made(9))
    assert log.left_out and "are free there" in log.why_left_out


def test_on_disk_calls_read_back_as_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_file, "MEMORY_BYTES", 0)
    assert list(CallLog(made(10))) == copies(10)


def test_names_made_up_do_not_grow_the_sums() -> None:
    log = CallLog(CallRecord(n, "t", 1, n, ("#", "i386#")[n % 2] + str(n), (0,) * 6) for n in range(3 * MOST_NAMES))
    log.append(CallRecord(0, "t", 1, 39, "getpid", (0,) * 6))
    names = log.tally.names
    assert len(names) <= MOST_NAMES + 3 and names["getpid"].times == 1
    assert names["#…"].times + names["i386#…"].times == 2 * MOST_NAMES
    assert sum(part.times for part in names.values()) == len(log)


def test_coverage_is_set_on_packed_and_open_calls() -> None:
    log = CallLog(CallRecord(n, "t", 1, 39, "getpid", (0,) * 6) for n in range(MANY))
    wanted = [CallCounts(n % 7, 1, 2, *((None, None) if n % 2 else (3, n % 3))) for n in range(MANY)]
    for number in reversed(range(MANY)):
        log.cover(number, wanted[number])
    assert [call.coverage for call in log] == wanted and log[5].coverage == wanted[5]


def some_faults(count: int) -> list[FaultRecord]:
    draw = random.Random(11)
    kinds = ("fetch", "read", "write")
    return [
        FaultRecord(
            max(0, n // 20 - draw.choice((0, 0, 0, 500))), draw.getrandbits(64), (1 << 64) - 1 - n, kinds[n % 3], f"f+{n:#x}",
            n % 2 == 0,
        )
        for n in range(count)
    ]  # fmt: skip


def test_faults_read_back_whole_and_by_call() -> None:
    wanted, log = some_faults(MANY), FaultLog(some_faults(MANY))
    assert len(log._newest) < 2 * CHUNK_ROWS
    assert list(log) == wanted and len(log) == MANY and log[7] == wanted[7] and log[-1] == wanted[-1]
    assert log[5:9000:1000] == wanted[5:9000:1000]
    for first, end in ((0, 10), (300, 700), (900, 5000), (5000, 6000)):
        assert list(log.of_calls(first, end)) == [fault for fault in wanted if first <= fault.seq < end]


def test_faults_past_their_bound_are_counted() -> None:
    log = FaultLog(some_faults(MANY), Bounds(CHUNK_ROWS, 1 << 30))
    assert log.left_out == 3 * CHUNK_ROWS and len(log) == MANY
    assert len(list(log)) == MANY - log.left_out and log[-1] == some_faults(MANY)[-1]
    with pytest.raises(IndexError):
        log[CHUNK_ROWS]


def test_logs_of_the_same_are_equal_and_a_list_is_one() -> None:
    log = CallLog(made(12))
    assert log == CallLog(made(12)) and log == copies(12) and log != copies(13) and log != copies(12)[:-1]
    assert log != CallLog(made(12), Bounds(CHUNK_ROWS, 1 << 30))
    assert FaultLog(some_faults(MANY)) == some_faults(MANY) and CallLog() == [] == FaultLog()
