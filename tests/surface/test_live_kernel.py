"""What a kernel may execute and write, read from its page table."""

import random

from thinbox import paging
from thinbox.address import PAGE_BYTES, to_signed
from thinbox.guest.kernel_view import KernelView
from thinbox.machine.machine import Machine
from thinbox.machine.memory import MIB, Memory
from thinbox.machine.snapshot import restore_snapshot
from thinbox.surface.live_kernel import read_live_kernel

ROOT, PUD, PMD, PTE, SHARED = (n << 12 for n in range(1, 6))
P, W, L, NX = paging.PRESENT, paging.WRITABLE, paging.LARGE, paging.NO_EXECUTE


def put(memory, table, slot, entry):
    memory.words[(table >> 3) + slot] = entry


def test_every_page_size_and_every_levels_protection_counts():
    memory = Memory(8 * MIB)
    put(memory, ROOT, 0, PUD | P | W)  # the user half does not count
    put(memory, ROOT, 511, PUD | P | W)
    put(memory, PUD, 0, 1 << 30 | P | W | L | NX)  # 1 GiB, writable
    put(memory, PUD, 1, PMD | P | W)
    put(memory, PUD, 2, SHARED | P | NX)  # read-only and NX from here down
    put(memory, PMD, 0, 0x20_0000 | P | L)  # 2 MiB, executable
    put(memory, PMD, 1, PTE | P | W)
    put(memory, PMD, 2, PTE | P)  # the same pages again, not writable
    put(memory, PTE, 0, 0x1000 | P)  # adjoins the 2 MiB page
    put(memory, PTE, 1, 0x2000 | P | W | NX)
    put(memory, PTE, 3, 0x3000 | P)
    put(memory, SHARED, 0, PTE | P | W)
    memory.write(0x20_0000, b"large")
    memory.write(0x1000, memory.read(ROOT, 8))  # the root maps itself as text: harmless
    kernel = read_live_kernel(memory, ROOT)
    first = 0xFFFF_FF80_4000_0000
    spans = [(region.start, region.end) for region in kernel.regions]
    assert spans == [
        (first, first + 0x20_1000),
        (first + 0x20_3000, first + 0x20_4000),
        (first + 0x40_0000, first + 0x40_1000),
        (first + 0x40_3000, first + 0x40_4000),
    ]
    assert kernel.regions[0].data.startswith(b"large")
    assert kernel.mapped_pages == (1 << 18) + 512 + 3 + 3 + 3
    assert kernel.writable_pages == (1 << 18) + 1


def test_the_hash_follows_place_and_content():
    memory = Memory(8 * MIB)
    put(memory, ROOT, 511, PUD | P)
    put(memory, PUD, 511, PMD | P)
    put(memory, PMD, 0, 0x20_0000 | P | L)
    before = read_live_kernel(memory, ROOT).text_hash
    assert read_live_kernel(memory, ROOT).text_hash == before
    memory.write(0x20_0005, b"\xcc")
    changed = read_live_kernel(memory, ROOT).text_hash
    put(memory, PMD, 1, memory.words[PMD >> 3])
    put(memory, PMD, 0, 0)
    assert len({before, changed, read_live_kernel(memory, ROOT).text_hash}) == 3


def test_the_booted_kernel_as_its_walk_shows_it(guest):
    machine = Machine(guest.params.memory_mib)
    restore_snapshot(machine, guest.snapshot)
    view = KernelView(machine, guest.facts)
    memory, root = machine.memory, view.kernel_root
    kernel = read_live_kernel(memory, root)
    symbols = view.symbols
    assert any(r.start <= symbols.text_start and symbols.text_end <= r.end for r in kernel.regions)
    assert guest.params.memory_mib * 256 * 0.9 < kernel.writable_pages < kernel.mapped_pages
    rng = random.Random(4)
    tried = [rng.randrange(symbols.text_start - 64 * MIB, symbols.text_end + 64 * MIB) for _ in range(2000)]
    tried += [r.start - 1 for r in kernel.regions] + [r.end for r in kernel.regions]
    tried += [r.start for r in kernel.regions] + [r.end - 1 for r in kernel.regions]
    inside = 0
    for vaddr in tried:
        leaf = paging.walk_leaf(memory.words, memory.guest_bytes, root, to_signed(vaddr))
        executable = bool(leaf) and not leaf & paging.NO_EXECUTE
        assert executable == any(r.start <= vaddr < r.end for r in kernel.regions), hex(vaddr)
        inside += executable
    assert inside > 100
    assert all(r.start % PAGE_BYTES == 0 == len(r.data) % PAGE_BYTES for r in kernel.regions)
