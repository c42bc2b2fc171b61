"""A snapshot comes back as it was, or is refused with one exception type."""

import random
import struct
from dataclasses import replace

import numpy as np
import pytest
import zstandard

from tests.support.bare_machine import STI, BareMachine
from thinbox.machine.machine import Machine
from thinbox.machine.snapshot import (
    MAGIC,
    Snapshot,
    SnapshotError,
    pack_snapshot,
    restore_snapshot,
    take_snapshot,
    unpack_snapshot,
)

NOTES = {"talk": [1, 2, 3], "console": "héllo\n", "nothing": None}


def running() -> BareMachine:
    """A machine interrupted by a timer for 20 ms."""
    bare = BareMachine(STI + b"\x0f\x31\xff\xc3\x89\x1c\x25\x00\x00\x08\x00\xeb\xf3")
    # rdtsc / inc ebx / mov [0x80000], ebx / jmp back
    bare.init_pics()
    bare.set_handler(0x20, b"\xb0\x20\xe6\x20\xff\xc1\x48\xcf")  # mov al,0x20 / out 0x20,al / inc ecx / iretq
    for port, value in ((0x43, 0x34), (0x40, 0x00), (0x40, 0x10)):
        bare.machine.pit.write(port, value, 0)
    bare.machine.serial.receive(b"waiting")
    run_to(bare.machine, 20_000_000)
    return bare


def run_to(machine: Machine, time_ns: int) -> None:
    machine.run(lambda: machine.now_ns >= time_ns)


def same_snapshot(first: Snapshot, second: Snapshot) -> bool:
    return (
        (first.memory_mib, first.cpu, first.devices, first.notes)
        == (second.memory_mib, second.cpu, second.devices, second.notes)
        and np.array_equal(first.numbers, second.numbers)
        and np.array_equal(first.pages, second.pages)
    )


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    return take_snapshot(running().machine, NOTES)


@pytest.fixture(scope="module")
def packed(snapshot: Snapshot) -> bytes:
    return pack_snapshot(snapshot)


def test_a_file_gives_back_the_snapshot(snapshot: Snapshot, packed: bytes) -> None:
    assert same_snapshot(unpack_snapshot(packed), snapshot)


def test_the_file_is_the_same_for_the_same_machine(packed: bytes) -> None:
    assert pack_snapshot(take_snapshot(running().machine, NOTES)) == packed


def test_only_pages_that_hold_something_are_kept(snapshot: Snapshot) -> None:
    assert 0 < len(snapshot.numbers) < 40
    assert all(page.any() for page in snapshot.pages)
    assert list(snapshot.numbers) == sorted(set(snapshot.numbers))


def test_the_snapshot_is_a_copy_not_a_view() -> None:
    bare = running()
    taken = take_snapshot(bare.machine, NOTES)
    before = pack_snapshot(taken)
    run_to(bare.machine, 40_000_000)
    assert pack_snapshot(taken) == before


def test_a_second_machine_is_equal_and_goes_on_the_same(packed: bytes) -> None:
    first = running().machine
    second = Machine(96)
    second.memory.write(0x300000, b"left over")
    second.memory.words[second.memory.guest_bytes // 8] = 0x1234  # left over in the hidden part
    restore_snapshot(second, unpack_snapshot(packed))
    assert second.memory.map[:] == first.memory.map[:]
    assert same_snapshot(take_snapshot(second, NOTES), take_snapshot(first, NOTES))
    for machine in (first, second):
        run_to(machine, 50_000_000)
    assert second.now_ns == first.now_ns
    assert bytes(second.cpu.regs) == bytes(first.cpu.regs)
    one, other = take_snapshot(first, NOTES), take_snapshot(second, NOTES)
    # The engine keeps a host address of its own in the CPU state (where its code returns to): one word.
    words = [struct.unpack(f"<{len(taken.cpu) // 8}Q", taken.cpu[: len(taken.cpu) & ~7]) for taken in (one, other)]
    assert sum(a != b for a, b in zip(*words, strict=True)) <= 1
    assert same_snapshot(replace(one, cpu=b""), replace(other, cpu=b""))


def test_a_machine_can_go_back(packed: bytes) -> None:
    machine = running().machine
    run_to(machine, 60_000_000)
    restore_snapshot(machine, unpack_snapshot(packed))
    assert same_snapshot(take_snapshot(machine, NOTES), unpack_snapshot(packed))


def refused(data: bytes) -> bool:
    """Whether `data` is refused; any other exception escapes."""
    try:
        unpack_snapshot(data)
    except SnapshotError as error:
        assert str(error)
        return True
    return False


def test_every_truncation_is_refused(packed: bytes) -> None:
    for size in range(len(packed)):
        assert refused(packed[:size]), size
    assert refused(packed + b"\0")


def test_every_flipped_bit_is_refused_or_harmless(snapshot: Snapshot, packed: bytes) -> None:
    for bit in range(len(packed) * 8):
        data = bytearray(packed)
        data[bit >> 3] ^= 1 << (bit & 7)
        if not refused(bytes(data)):
            # Zstandard has bits that mean nothing (RFC 8878: unused bits of the frame header, padding).
            assert same_snapshot(unpack_snapshot(bytes(data)), snapshot), bit


def test_random_bytes_are_refused() -> None:
    source = random.Random(1)
    for size in [*range(64), 1000, 5000]:
        noise = source.randbytes(size)
        assert refused(noise)
        assert refused(MAGIC + noise)


@pytest.mark.parametrize("sizes", [(2**63, 0, 0, 0), (0, 0, 0, 2**63), (2**64 - 1,) * 4, (0, 0, 0, 0)])
def test_sizes_that_are_lies_are_refused(sizes: tuple[int, int, int, int]) -> None:
    assert refused(MAGIC + struct.pack("<QQQQ", *sizes))


def forge(header: bytes, numbers: bytes, pages: bytes, count: int) -> bytes:
    parts = [zstandard.compress(part) for part in (header, numbers, pages)]
    return MAGIC + struct.pack("<QQQQ", *(len(part) for part in parts), count) + b"".join(parts)


def test_the_forger_can_make_a_good_one() -> None:
    header = b'{"memory_mib": 96, "cpu": "00", "devices": {}, "notes": {}}'
    assert not refused(forge(header, struct.pack("<q", 5), bytes(4096), 1))


@pytest.mark.parametrize(
    ("header", "number"),
    [
        (b'{"memory_mib": 96, "cpu": "00", "devices": {}, "notes": {}}', 96 << 8),
        (b'{"memory_mib": 96, "cpu": "00", "devices": {}, "notes": {}}', -1),
        (b'{"memory_mib": "96", "cpu": "00", "devices": {}, "notes": {}}', 1),
        (b'{"memory_mib": 96, "cpu": 7, "devices": {}, "notes": {}}', 1),
        (b'{"memory_mib": 96, "cpu": "xy", "devices": {}, "notes": {}}', 1),
        (b'{"memory_mib": 96}', 1),
        (b"[1, 2]", 1),
        (b"null", 1),
        (b"{", 1),
        (b"\xff\xfe", 1),
        (b"[" * 100_000, 1),
    ],
)
def test_contents_that_do_not_fit_together_are_refused(header: bytes, number: int) -> None:
    assert refused(forge(header, struct.pack("<q", number), bytes(4096), 1))


def test_a_decompression_bomb_is_refused() -> None:
    header = b'{"memory_mib": 96, "cpu": "00", "devices": {}, "notes": {}}'
    assert refused(forge(header, struct.pack("<q", 5), bytes(64 << 20), 1))
    assert refused(forge(header, bytes(1 << 20), bytes(4096), 1))
