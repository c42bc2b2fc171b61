"""A corrupted call gains nothing by the places where thinbox itself acts for it: deferred work, and the charge of sockets."""

import struct
from contextlib import suppress

import pytest
from tests.support.hijack import TALK, Hijack

from thinbox.address import U64, to_signed
from thinbox.audit.case_runner import make_checkpoint
from thinbox.audit.neighbour import NEIGHBOUR
from thinbox.guest.charged_sockets import ChargedSockets
from thinbox.isolation import view_rules
from thinbox.isolation.page_ownership import PageKind
from thinbox.machine import cpu as registers
from thinbox.machine import slots
from thinbox.machine.machine import GuestResetError
from thinbox.session.session import TenantSpec, run_tenants
from thinbox.enforcement.call_switch import CallSwitch

CONTROLLED = b"BBBBAAAA"


@pytest.fixture(scope="module")
def hijack(guest):
    return Hijack(guest, make_checkpoint(guest, tenants=True))


def victim_page(hijack):
    """Physical address of a page of the neighbour's memory."""
    views, root = hijack.runner.enforcer.views, hijack.runner.enforcer.kernel_root
    for paddr in range(0, hijack.runner.machine.memory.guest_bytes, 4096):
        facts = views.cgroups.facts(paddr, root)
        if facts.kind is PageKind.MEMORY and facts.owners == {NEIGHBOUR}:
            return paddr
    raise AssertionError


def direct(hijack, paddr):
    return to_signed((hijack.word(hijack.symbols.address_of("page_offset_base")) + paddr) & U64)


def node(hijack, member):
    return hijack.word(hijack.symbols.address_of("node_data")) + hijack.runner.view.facts.types.offset_of(
        "pglist_data", member
    )


def test_an_errand_on_a_stack_elsewhere_is_none(hijack, steps_aside):
    """RSP at the start of a page: what the deferred work pushes would go to the page before it, the neighbour's."""
    seen = {}

    def prepare():
        memory, regs = hijack.runner.machine.memory, hijack.runner.machine.cpu.regs
        seen["victim"] = victim_page(hijack)
        memory.write(seen["victim"] + 4096, struct.pack("<Q", hijack.call_in_text("__do_softirq") & U64))
        regs[registers.RSP] = direct(hijack, seen["victim"] + 4096)
        regs[5] = int.from_bytes(CONTROLLED, "little")  # RBP
        return hijack.symbols.address_of("__do_softirq")

    def look():
        if seen:
            seen["after"] = hijack.runner.machine.memory.read(seen["victim"], 4096)

    hijack.runner.machine.cpu.add_code_hook(hijack.call_in_text("__do_softirq"), look)
    outcome = hijack.run(prepare)
    assert CONTROLLED not in seen.get("after", b"") and steps_aside == [0]
    assert outcome.killed and f"tenant {NEIGHBOUR}" in outcome.killed


def test_an_errand_with_a_mask_of_nodes_elsewhere_is_none(hijack, steps_aside):
    """A bit of it decides whether anything is freed: it could be read so."""

    def prepare():
        regs = hijack.runner.machine.cpu.regs
        regs[registers.RDI], regs[registers.RSI], regs[registers.RDX] = node(hijack, "node_zonelists"), 0, 0xCC0
        regs[registers.RCX] = direct(hijack, victim_page(hijack))
        hijack.push(hijack.call_in_text("try_to_free_pages"))
        return hijack.symbols.address_of("try_to_free_pages")

    hijack.run(prepare)
    assert steps_aside == [0]


@pytest.mark.parametrize(("order", "index"), [(3, 100_000), (-100_000, 0), (3, -100_000)])
def test_an_errand_with_an_index_out_of_its_zone_is_none(hijack, steps_aside, order, index):
    """The word it chooses is compared with the free pages: it could be read so."""

    def prepare():
        regs = hijack.runner.machine.cpu.regs
        regs[registers.RDI], regs[registers.RSI], regs[registers.RDX] = node(hijack, "node_zones"), order, 0xCC0
        regs[registers.RCX], regs[registers.R8], regs[registers.R9] = 1, 0, index
        hijack.push(regs[registers.RSP] - 64, hijack.call_in_text("compact_zone_order"))
        return hijack.symbols.address_of("compact_zone_order")

    hijack.run(prepare)
    assert steps_aside == [0]


def test_an_errand_on_no_stack_is_the_guests_own_fault(hijack, steps_aside):
    def prepare():
        hijack.runner.machine.cpu.regs[registers.RSP] = 0x10
        return hijack.symbols.address_of("__do_softirq")

    with pytest.raises(GuestResetError):
        hijack.run(prepare)
    assert steps_aside == [0]


def test_what_a_call_was_granted_lately_is_looked_at_behind_an_errand(guest, monkeypatch):
    left, back = [], CallSwitch.end_deferred_work

    def counted(self, call):
        left.append(self._slot[slots.LOG_COUNT])
        back(self, call)

    monkeypatch.setattr(CallSwitch, "end_deferred_work", counted)
    run_tenants(guest, [TenantSpec(name, ("sh", "-c", TALK), view="permissive") for name in ("one", "two")])
    assert len(left) > 20 and not any(left)


def test_the_charge_of_a_socket_writes_nothing_of_others(hijack):
    """`security_socket_post_create` called with a socket whose sock would lie in the neighbour's memory."""
    seen = {}

    def prepare():
        memory, regs, types = (
            hijack.runner.machine.memory,
            hijack.runner.machine.cpu.regs,
            hijack.runner.view.facts.types,
        )
        seen["at"] = victim_page(hijack) + 64
        seen["before"] = memory.read(seen["at"], 4)
        sock, root = regs[registers.RSP] - 256, hijack.runner.enforcer.kernel_root
        sk = direct(hijack, seen["at"]) - types.offset_of("sock", "sk_allocation")
        memory.write_virtual(root, to_signed((sock + types.offset_of("socket", "sk")) & U64), struct.pack("<q", sk))
        regs[registers.RDI], regs[registers.R8] = sock, 0
        hijack.push(hijack.call_in_text("security_socket_post_create"))
        return hijack.symbols.address_of("security_socket_post_create")

    def look():
        if seen:
            seen["after"] = hijack.runner.machine.memory.read(seen["at"], 4)

    hijack.runner.machine.cpu.add_code_hook(hijack.symbols.address_of("apparmor_socket_post_create"), look)
    outcome = hijack.run(prepare)
    assert seen["after"] == seen["before"]
    assert outcome.killed and f"tenant {NEIGHBOUR}" in outcome.killed


@pytest.fixture
def charged(hijack, monkeypatch):
    """Places of words that the charge of a socket looked for, and where they lie (None: it wrote nothing)."""
    asked, paddr_of = [], ChargedSockets._paddr

    def kept(self, vaddr, root, size):
        found = paddr_of(self, vaddr, root, size)
        asked.append((to_signed(vaddr & U64), found))
        return found

    monkeypatch.setattr(ChargedSockets, "_paddr", kept)
    return asked


@pytest.mark.parametrize("forged", [0, 0x1000, 0xFFFF_8000_0000_0000])
def test_a_forged_socket_is_no_error_of_the_machine(hijack, charged, forged):
    """What the socket's word says is nowhere, so nothing is written, and the guest's own oops ends the process."""
    flags_at = hijack.runner.view.facts.types.offset_of("sock", "sk_allocation")

    def prepare():
        regs = hijack.runner.machine.cpu.regs
        regs[registers.RDI], regs[registers.R8] = to_signed(forged), 0
        hijack.push(hijack.call_in_text("security_socket_post_create"))
        return hijack.symbols.address_of("security_socket_post_create")

    outcome = hijack.run(prepare)
    assert charged == [(flags_at, None)], "the charge was asked, and found nothing"
    assert outcome.killed is None and "wait status 0x9" in outcome.problem


@pytest.mark.parametrize("forged", [0, 0x1000, 0xFFFF_8000_0000_0000])
def test_a_task_of_forged_cgroups_is_no_error_of_the_machine(hijack, charged, forged, monkeypatch):
    """`security_socket_post_create` called while `task->cgroups` leads nowhere: some kernels panic of themselves, later."""
    types, memory = hijack.runner.view.facts.types, hijack.runner.machine.memory
    below = forged + types.offset_of("css_set", "subsys") + 8 * types.enum_value("memory_cgrp_id")
    asked, word_at = [], type(memory).word_at

    def prepare():
        runner, regs = hijack.runner, hijack.runner.machine.cpu.regs
        at = to_signed(runner.view.current + types.offset_of("task_struct", "cgroups"))
        memory.write_virtual(runner.enforcer.kernel_root, at, struct.pack("<Q", forged))
        regs[registers.RDI], regs[registers.R8] = regs[registers.RSP] - 256, 0
        hijack.push(hijack.call_in_text("security_socket_post_create"))
        kept = lambda self, root, vaddr: asked.append(vaddr & U64) or word_at(self, root, vaddr)
        monkeypatch.setattr(type(memory), "word_at", kept)
        return hijack.symbols.address_of("security_socket_post_create")

    with suppress(GuestResetError):
        hijack.run(prepare)
    assert below in asked, "the charge followed the forged word"
    assert not charged, "a task of no cgroup is charged nothing"


def test_a_page_whose_head_is_forged_to_be_a_later_slab_is_no_error_of_the_machine(hijack):
    """Then the object touched would be one before the slab's first."""
    seen = {}

    def prepare():
        runner, pages = hijack.runner, hijack.runner.enforcer.views.cgroups.pages
        memory, root, words = runner.machine.memory, runner.enforcer.kernel_root, pages.words.tolist()
        owner_of = lambda memcg: runner.enforcer.views.cgroups.owner_of(memcg, root)
        page = lambda paddr: words[view_rules.VMEMMAP] + (paddr >> 12) * words[view_rules.PAGE_BYTES]
        slab = next(
            paddr
            for paddr in range(memory.guest_bytes - 4096, 0, -4096)
            if (facts := pages.facts(paddr, root, owner_of)).kind is PageKind.SLAB and NEIGHBOUR in facts.owners
        )
        touched = 64 << 20
        # Only a head says that it is a slab's; which page that is, a tail's word says in each kernel's way.
        at = memory.tables.translate(root, page(slab))
        head = view_rules.head_of(memory.words, words, page(slab), at)
        memory.write_virtual(root, page(touched) + words[view_rules.HEAD_AT], struct.pack("<q", head | 1))
        regs = runner.machine.cpu.regs
        regs[registers.RDI], regs[registers.RSI] = regs[registers.RSP] - 2048, direct(hijack, touched)
        regs[registers.RDX] = 8
        seen["facts"] = pages.facts(touched, root, owner_of)
        return hijack.symbols.address_of("memcpy")

    hijack.run(prepare)
    assert seen["facts"].kind is PageKind.SLAB and seen["facts"].here is None
