"""Whose every page of the guest is, against an oracle nobody here wrote: the kernel's own /proc/kpageflags and
/proc/kpagecgroup (fs/proc/page.c), read by a process of the guest while nothing else runs."""

import struct
from dataclasses import dataclass

import numpy as np
import pytest

from thinbox import paging
from thinbox.address import PAGE_BYTES, to_signed
from thinbox.audit.case import Case
from thinbox.audit.case_runner import CaseRunner, make_checkpoint
from thinbox.audit.neighbour import NEIGHBOUR, TENANT
from thinbox.guest.cgroups import GROUPS
from thinbox.isolation import view_rules
from thinbox.isolation.page_ownership import PageKind
from thinbox.isolation.policies.sci import Sci

SLAB, BUDDY, ANON, HEAD, TAIL, PGTABLE, RESERVED = (1 << bit for bit in (7, 10, 12, 15, 16, 26, 32))
"""include/uapi/linux/kernel-page-flags.h, and KPF_RESERVED."""
STAT_BYTES, INODE_AT = 144, 8


@dataclass
class Seen:
    """What the kernel says of each page, and the inode number of each tenant's cgroup."""

    flags: np.ndarray
    cgroups: np.ndarray
    inodes: dict


@pytest.fixture(scope="module")
def looked(guest):
    """(runner, Seen), the machine as it stood right behind the kernel's answers."""
    runner = CaseRunner(guest, make_checkpoint(guest, tenants=True), Sci(), "oops", view="strict")
    memory, found = runner.machine.memory, {}
    count = memory.guest_bytes // PAGE_BYTES

    def take(place):
        data = memory.read_virtual(runner.view.kernel_root, place, 8 * count)
        return np.frombuffer(data, dtype=np.uint64).copy()

    def inode(process, name):
        place = process.buffer(STAT_BYTES)
        yield from process.must("stat", process.string(f"{GROUPS}/{name}"), place)
        return struct.unpack_from("<Q", process.read(place, STAT_BYTES), INODE_AT)[0]

    def body(process):
        yield from process.must("sync")
        inodes = {}
        for name in (TENANT, NEIGHBOUR):
            inodes[name] = yield from inode(process, name)
        # A few things of its own of each kind: memory, a large page perhaps, a pipe with something in it, a file.
        own = yield from process.must("mmap", 0, 64 * PAGE_BYTES, 3, 0x8022, -1, 0)
        ends = process.buffer(8)
        yield from process.must("pipe", ends)
        reader, writer = struct.unpack("<ii", process.read(ends, 8))
        yield from process.must("write", writer, own, PAGE_BYTES)
        file = yield from process.must("open", process.string("/tmp/own"), 0o102, 0o600)
        yield from process.must("write", file, own, 3 * PAGE_BYTES)
        handles = []
        for name in ("kpageflags", "kpagecgroup"):
            handle = yield from process.must("open", process.string(f"/proc/{name}"), 0, 0)
            handles.append(handle)
        places = []
        for _ in handles:
            place = yield from process.must("mmap", 0, 8 * count, 3, 0x8022, -1, 0)
            places.append(place)
        for handle, place in zip(handles, places, strict=True):
            # The first read warms up what it needs: the second one allocates nothing.
            for _ in range(2):
                done = yield from process.must("pread64", handle, place, 8 * count, 0)
                assert done == 8 * count
        flags, cgroups = take(places[0]), take(places[1])
        # A compound page is charged as a whole, by its head.
        for number in np.flatnonzero(flags & TAIL).tolist():
            cgroups[number] = cgroups[number - 1]
        found["seen"] = Seen(flags, cgroups, inodes)
        found["facts"] = Facts(runner, count)
        yield from process.measure()

    outcome = runner.run(Case("getpid", "look", True, body), isolated=True)
    assert outcome.killed is None and "facts" in found, outcome
    return found["seen"], found["facts"]


class Facts:
    """What thinbox makes of each page at one moment: its facts, and for each tenant whether it is plainly visible."""

    def __init__(self, runner, count):
        memory, cgroups, root = runner.machine.memory, runner.enforcer.views.cgroups, runner.view.kernel_root
        self.rows = [cgroups.facts(number * PAGE_BYTES, root) for number in range(count)]
        self.visible, self.mappable = {}, {}
        saved = cgroups.pages.words.copy()
        for memcg, name in cgroups.owners.items():
            cgroups.pages.words[view_rules.OWN] = to_signed(memcg)
            cgroups.pages.words[view_rules.RULE] = view_rules.STRICT
            ask = (memory.words, memory.guest_bytes, root, cgroups.pages.words.data)
            places = range(0, count * PAGE_BYTES, PAGE_BYTES)
            self.visible[name] = [view_rules.is_plainly_visible(*ask, paddr) for paddr in places]
            self.mappable[name] = [view_rules.is_plain_mapping(*ask, paddr) for paddr in places]
        cgroups.pages.words[:] = saved
        kernel = runner.view
        offsets, types = kernel.facts.types.offset_of, kernel.facts.types
        self.objects = []
        for task, owner in cgroups.census(root).items():
            for member in ("", "cred", "files", "fs", "signal", "mm"):
                place = task if not member else kernel.read_u64(task + offsets("task_struct", member), root)
                paddr = paging.translate(memory.words, memory.total_bytes, root, to_signed(place)) if place else -1
                if paddr >= 0 and types.has_type("task_struct"):
                    self.objects.append((member or "task_struct", owner, cgroups.facts(paddr, root)))


def test_each_page_charged_to_a_tenant_is_that_tenants_alone(looked):
    seen, facts = looked
    counted = dict.fromkeys(seen.inodes, 0)
    for name, inode in seen.inodes.items():
        other = NEIGHBOUR if name == TENANT else TENANT
        for number in np.flatnonzero((seen.cgroups == inode) & (seen.flags & SLAB == 0)).tolist():
            row = facts.rows[number]
            assert row.owners == {name}, (hex(number), hex(int(seen.flags[number])), row)
            assert not facts.visible[other][number] and not facts.mappable[other][number], (hex(number), row)
            counted[name] += 1
    assert counted[TENANT] > 64 and counted[NEIGHBOUR] > 8, counted


def test_a_page_charged_to_nobody_is_no_tenants(looked):
    seen, facts = looked
    plain = ~np.isin(seen.cgroups, list(seen.inodes.values())) & (seen.flags & SLAB == 0)
    assert plain.sum() > 1000
    for number in np.flatnonzero(plain).tolist():
        row = facts.rows[number]
        # But the second page of a tenant's top-level table: it is charged by its first.
        assert row.owners == {None} or row.kind is PageKind.TABLE, (hex(number), hex(int(seen.flags[number])), row)


def test_free_pages_slabs_and_page_tables_are_told_as_the_kernel_tells_them(looked):
    seen, facts = looked
    kinds = np.array([row.kind.name for row in facts.rows])
    free, slab = seen.flags & BUDDY != 0, seen.flags & SLAB != 0
    assert free.sum() > 1000 and slab.sum() > 500
    assert (kinds[free] == "FREE").all(), np.flatnonzero(free & (kinds != "FREE"))[:8]
    assert not (kinds[~free] == "FREE").any(), np.flatnonzero(~free & (kinds == "FREE"))[:8]
    static = seen.flags & RESERVED != 0
    assert (kinds[slab & ~static] == "SLAB").all() and not (kinds[~slab] == "SLAB").any()
    charged = np.isin(seen.cgroups, list(seen.inodes.values()))
    table = (seen.flags & PGTABLE != 0) & charged
    assert table.sum() > 4
    assert (kinds[table] == "TABLE").all(), np.flatnonzero(table & (kinds != "TABLE"))[:8]
    anonymous = (seen.flags & ANON != 0) & charged
    assert anonymous.sum() > 64 and (kinds[anonymous] == "MEMORY").all()
    for name in seen.inodes:
        visible = np.array(facts.visible[name])
        assert not visible[free].any(), f"a free page is plainly visible to {name}"


def test_objects_of_each_task_are_its_tenants(looked):
    _seen, facts = looked
    owned = [(member, owner, row) for member, owner, row in facts.objects if owner]
    assert {owner for _member, owner, _row in owned} == {TENANT, NEIGHBOUR}
    for member, owner, row in owned:
        # A signal_struct and its like are the tenant's from its first process on.
        assert row.kind is PageKind.SLAB and row.here == owner, (member, owner, row)
