"""With KASLR left on the kernel is somewhere else, and everything that goes by symbols finds it there."""

import dataclasses

import pytest
from thinbox.attacks.hijack import TARGET_FUNCTION, TARGET_OFFSET, HijackedCall
from thinbox.boot import layout
from thinbox.boot.params import BootParams, load_guest
from thinbox.boot.payload import compressed_payload
from thinbox.boot.ready import prepare
from thinbox.boot.sequence import boot
from thinbox.cli import group
from thinbox.errors import InputError, MachineError
from thinbox.guest.initramfs import build_initramfs, fetch_busybox
from thinbox.guest.kernel_view import KernelView
from thinbox.session.session import TenantSpec, run_tenants
from thinbox.cli.results import tenants_json
from thinbox.image.facts import load_facts
from thinbox.image.kernel import parse_kernel_image
from thinbox.image.source import resolve_kernel
from thinbox.machine.machine import Machine
from thinbox.machine.snapshot import restore_snapshot
from thinbox.session.session import RunOptions, run

PIPELINE = ["sh", "-c", "echo hello | wc -c; ls -l / | head -4; grep ^Cpus_allowed: /proc/self/status; uname -a"]
NAMES = ("_stext", "do_syscall_64", "sys_call_table", "init_task", "_end")
OWN_SYMBOLS = ["grep", "-E", f" ({'|'.join(NAMES)})$", "/proc/kallsyms"]
STEP = 2 << 20
KASLR = BootParams(kaslr=True)


@pytest.fixture(scope="module")
def slid():
    return prepare(params=KASLR)


@pytest.fixture(scope="module")
def default_kernel():
    return load_facts(resolve_kernel(None))


def test_the_guests_own_kallsyms_are_where_the_slide_puts_them(guest, slid):
    assert guest.facts.slide == 0
    assert slid.facts.slide > 0 and slid.facts.slide % STEP == 0
    rows = [line.split() for line in run(slid, OWN_SYMBOLS, RunOptions(isolate="none")).stdout.decode().splitlines()]
    assert {name: int(vaddr, 16) for vaddr, _kind, name in rows} == {
        name: slid.facts.symbols.address_of(name) for name in NAMES
    }
    for name in NAMES:
        assert slid.facts.symbols.address_of(name) == guest.facts.symbols.address_of(name) + slid.facts.slide


@pytest.mark.parametrize("policy", ["sci", "transfer+callgraph"])
def test_with_kaslr_the_pipeline_prints_the_same_isolated_and_not(slid, policy):
    isolated = run(slid, PIPELINE, RunOptions(policy=policy))
    plain = run(slid, PIPELINE, RunOptions(isolate="none"))
    assert isolated.stdout == plain.stdout and isolated.stdout.count(b"\n") == 7
    assert (isolated.stderr, isolated.exit_code) == (plain.stderr, plain.exit_code) == (b"", 0)
    totals = isolated.record.totals
    assert totals["isolated"] == totals["calls"] == plain.record.totals["calls"]
    assert totals["killed"] == 0
    assert totals["table_pages_made"] == totals["table_pages_freed"]
    assert isolated.record.to_json()["kernel"]["slide"] == slid.facts.slide


def test_with_kaslr_the_hijacked_call_is_killed_at_the_right_symbol(guest, slid):
    killed = [run(one, ["id"], RunOptions(on_machine=HijackedCall().install)).record.killed for one in (guest, slid)]
    for violation in killed:
        assert (violation.call, violation.symbol, violation.offset) == ("getuid", TARGET_FUNCTION, TARGET_OFFSET)
    assert killed[1].vaddr - killed[0].vaddr == slid.facts.slide


def test_two_boots_put_the_kernel_in_the_same_place_and_a_seed_elsewhere(slid, default_kernel):
    image, facts = default_kernel
    initramfs = build_initramfs(fetch_busybox(lambda _line: None))

    def boot_once(params):
        machine = Machine(params.memory_mib)
        view = boot(machine, image, facts, initramfs, params).require_view()
        return view.facts.slide, machine.now_ns, bytes(machine.console)

    first = boot_once(KASLR)
    assert first[0] == slid.facts.slide
    assert first[1] == slid.snapshot.devices["clock"]
    assert first[2].decode() == slid.console
    other = boot_once(BootParams(kaslr=True, kaslr_seed=1))
    assert other[0] != first[0] and other[0] % STEP == 0


def test_what_lies_at_random_besides_the_text_is_found_too(guest, slid):
    """CONFIG_RANDOMIZE_MEMORY moves the direct map: tasks are elsewhere, by another distance than the text."""

    def view_of(one):
        machine = Machine(one.params.memory_mib)
        restore_snapshot(machine, one.snapshot)
        return KernelView(machine, one.facts)

    plain, moved = view_of(guest), view_of(slid)
    for view in (plain, moved):
        assert view.pid_of(view.current, view.kernel_root) == 1
        base = view.read_u64(view.symbols.address_of("page_offset_base"), view.kernel_root)
        assert base <= view.current < base + (1 << 46)
    assert plain.current >> 30 != moved.current >> 30
    assert plain.entry_areas == moved.entry_areas, "before commit 97e3d26b5e5f it does not move"


def test_a_kernel_that_is_not_where_its_facts_say_is_refused(slid):
    machine = Machine(slid.params.memory_mib)
    restore_snapshot(machine, slid.snapshot)
    with pytest.raises(MachineError, match="entry for system calls"):
        KernelView(machine, slid.facts.slid(0x1000))
    with pytest.raises(MachineError, match="banner"):
        KernelView(machine, dataclasses.replace(slid.facts, release="6.1.0-0"))


def test_a_vmlinux_and_a_kernel_without_relocations_are_refused(default_kernel):
    image, _facts = default_kernel
    machine = Machine(96)
    with pytest.raises(InputError, match="a vmlinux has none"):
        load_guest(machine.memory, parse_kernel_image(image.vmlinux), b"", KASLR)
    with pytest.raises(InputError, match="built without KASLR"):
        load_guest(machine.memory, dataclasses.replace(image, relocs=b""), b"", KASLR)
    with pytest.raises(InputError, match="larger --memory"):
        load_guest(machine.memory, image, b"", BootParams(96, kaslr=True))
    assert not machine.memory.used_pages().size


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (layout.HEADER_KERNEL_ALIGNMENT, bytes(4)),
        (layout.HEADER_PREFERRED_ADDRESS, bytes(8)),
        (layout.HEADER_PREFERRED_ADDRESS, b"\1" + bytes(7)),
        (layout.HEADER_INIT_BYTES, bytes(4)),
    ],
)
def test_a_setup_header_that_makes_no_sense_is_refused(default_kernel, offset, value):
    image, _facts = default_kernel
    header = bytearray(image.setup_header)
    at = offset - layout.ZERO_PAGE_HEADER
    header[at : at + len(value)] = value
    with pytest.raises(InputError, match="makes no sense"):
        compressed_payload(dataclasses.replace(image, setup_header=bytes(header)))
    with pytest.raises(InputError, match="cut short"):
        compressed_payload(dataclasses.replace(image, setup_header=image.setup_header[:at]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kaslr", "--append", "quiet nokaslr"], "contradict"),
        (["--kaslr-seed", "3"], "without --kaslr"),
        (["--kaslr", "--kaslr-seed", "-1"], "0 to 2"),
    ],
)
def test_contradictory_options_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        group.main(["boot", *arguments], standalone_mode=False)


def test_only_with_kaslr_the_kernel_is_not_told_to_stay():
    assert "nokaslr" in BootParams().full_command_line.split()
    assert "nokaslr" not in KASLR.full_command_line.split()
    assert BootParams().full_command_line.split() != KASLR.full_command_line.split()
    assert set(BootParams().full_command_line.split()) - {"nokaslr"} == set(KASLR.full_command_line.split())


def test_several_tenants_run_with_kaslr_and_their_records_say_where_the_kernel_was(slid):
    """Under a view, with what a view reads of the kernel: owners, deferred work, sockets."""
    script = "(nc -l -p 9001 >/tmp/in) & sleep 0.1; echo $0 | nc 127.0.0.1 9001; wait; cat /tmp/in"
    found = run_tenants(slid, [TenantSpec(name, ("sh", "-c", script, name), view="strict") for name in ("a", "b")])
    assert [(r.exit_code, r.stdout, r.record.kills) for r in found.values()] == [(0, b"a\n", []), (0, b"b\n", [])]
    assert tenants_json(found)["kernel"]["slide"] == slid.facts.slide
    assert {result.record.kernel_slide for result in found.values()} == {slid.facts.slide}
