"""The wall: what user code, the kernel on its behalf, and kernel code reach by physical page, whatever a table says."""

import struct

import pytest
from tests.support.call_program import CODE, Step, build_program, load_word, results

from thinbox import paging
from thinbox.kernel.user_pages import find_user_pages
from thinbox.address import to_signed
from thinbox.machine import slots
from thinbox.session.session import RunOptions, TenantSpec, run, run_tenants

PLACE, PAGE = 0x500000, 4096
MAP = Step("mmap", (PLACE, 2 * PAGE, 3, 0x32, -1, 0))
FORGE = Step("getppid")
MARK = 0x1122334455667788
VIEWS = ("permissive", "strict")


def store_word(vaddr: int, value: int = MARK) -> bytes:
    return b"\x48\xb8" + struct.pack("<Q", value) + b"\x48\x89\x04\x25" + struct.pack("<I", vaddr)


class Forged:
    """A program whose page at `PLACE` becomes another one while it is in getppid: its page table says so."""

    def __init__(self, guest, folder, *steps):
        (folder / "program").write_bytes(build_program(MAP, store_word(PLACE, 1), FORGE, *steps))
        (folder / "program").chmod(0o755)
        self.guest, self.folder, self.paddr, self.before, self.kept = guest, folder, -1, None, None

    def run(self, choose, view="permissive", on_violation="oops"):
        """`choose(kernel)` returns the address of what the page becomes."""

        def install(machine, enforcer):
            kernel, self.machine = enforcer.view, machine

            def forge():
                root, words = enforcer.kernel_root, machine.memory.words
                self.paddr = choose(machine, enforcer) & -PAGE
                at = paging.entry_index(words, machine.memory.guest_bytes, root, PLACE)
                assert at >= 0 and words[at] & paging.PRESENT, "the page was never touched"
                self.kept = at, int(words[at])
                words[at] = words[at] & ~paging.FRAME_MASK | self.paddr | paging.WRITABLE | paging.DIRTY
                machine.cpu.load_cr3(machine.cpu.cr3)
                self.before = machine.memory.read(self.paddr, PAGE)

            def mend():
                """The kernel is not to free what was never this process's."""
                if self.kept is not None:
                    machine.memory.words[self.kept[0]] = self.kept[1]

            machine.cpu.add_code_hook(kernel.symbols.address_of("__x64_sys_getppid"), forge)
            machine.cpu.add_code_hook(kernel.symbols.address_of("do_exit"), mend)

        self.result = run(
            self.guest,
            ["/program"],
            RunOptions(
                policy="live+guard",
                view=view,
                on_violation=on_violation,
                rootfs=self.folder,
                on_machine=install,
            ),
        )
        assert self.before is not None, "nothing was forged"
        return self.result.record.killed

    @property
    def is_unchanged(self):
        return self.machine.memory.read(self.paddr, PAGE) == self.before


def at_symbol(name):
    def find(machine, enforcer):
        vaddr = enforcer.view.symbols.address_of(name)
        return machine.memory.tables.translate(enforcer.kernel_root, to_signed(vaddr))

    return find


def own_task(machine, enforcer):
    return machine.memory.tables.translate(enforcer.kernel_root, to_signed(enforcer.view.current))


def own_table(machine, enforcer):
    words, end = machine.memory.words, machine.memory.guest_bytes
    return 8 * paging.entry_index(words, end, enforcer.kernel_root, PLACE)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["_text", "__start_rodata", "empty_zero_page"])
def test_user_code_writes_nothing_that_is_sealed(guest, tmp_path, name, view):
    forged = Forged(guest, tmp_path, store_word(PLACE + 64))
    killed = forged.run(at_symbol(name), view)
    assert (killed.call, killed.rule) == ("user code", "W1")
    assert forged.is_unchanged and forged.result.exit_code == 137


@pytest.mark.parametrize("on_violation", ["oops", "undo"])
@pytest.mark.parametrize("find", [at_symbol("init_task"), own_task, own_table], ids=["static", "slab", "table"])
@pytest.mark.parametrize("access", [load_word(PLACE), store_word(PLACE)], ids=["load", "store"])
def test_user_code_reaches_no_memory_of_the_kernels(guest, tmp_path, find, access, on_violation):
    forged = Forged(guest, tmp_path, access)
    killed = forged.run(find, on_violation=on_violation)
    assert (killed.call, killed.rule) == ("user code", "W3")
    assert forged.result.stdout == b"" and forged.result.exit_code == 137


@pytest.mark.parametrize("on_violation", ["oops", "undo"])
@pytest.mark.parametrize("name", ["write", "read"])
def test_nor_does_the_kernel_by_an_address_of_the_users(guest, tmp_path, name, on_violation):
    step = Step("write", (1, PLACE, 64)) if name == "write" else Step("getrandom", (PLACE, 64, 0))
    forged = Forged(guest, tmp_path, step)
    killed = forged.run(own_task, on_violation=on_violation)
    assert killed.rule == "W3" and killed.call == ("write" if name == "write" else "getrandom")
    assert killed.undone is (on_violation == "undo")
    assert forged.result.stdout == b""


def test_the_vdsos_data_is_written_by_no_address_of_the_users(guest, tmp_path):
    """The kernel writes it by an address of its own."""
    forged = Forged(guest, tmp_path, Step("getrandom", (PLACE, 64, 0)))

    def choose(machine, enforcer):
        kernel, root = enforcer.view, enforcer.kernel_root
        vaddr = next(find_user_pages(kernel.facts).written(lambda place: kernel.read_u64(place, root)))
        return machine.memory.tables.translate(root, to_signed(vaddr))

    killed = forged.run(choose)
    assert (killed.call, killed.rule) == ("getrandom", "W1")
    forged = Forged(guest, tmp_path, load_word(PLACE))
    assert forged.run(choose) is None


def test_zeros_may_be_read_by_all(guest, tmp_path):
    forged = Forged(guest, tmp_path, load_word(PLACE))
    assert forged.run(at_symbol("empty_zero_page")) is None
    assert results(forged.result.stdout)[-1] == 0


def test_without_a_view_there_is_no_wall(guest, tmp_path):
    """So it is the wall that refuses, and not the kernel."""
    forged = Forged(guest, tmp_path, load_word(PLACE))
    assert forged.run(at_symbol("_text"), view="none") is None
    assert results(forged.result.stdout)[-1] == struct.unpack_from("<q", forged.before)[0]


def test_a_neighbours_memory_is_out_of_reach(guest, tmp_path):
    """The other tenant's page, as user memory of the first one."""
    program = build_program(MAP, store_word(PLACE), Step("getpgid", (0,)), Step("poll", (0, 0, 2000)))
    spying = build_program(MAP, store_word(PLACE, 1), Step("poll", (0, 0, 500)), FORGE, load_word(PLACE))
    for name, code in (("neighbour", program), ("spy", spying)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "program").write_bytes(code)
        (tmp_path / name / "program").chmod(0o755)
    secret = []

    def install(machine, enforcer):
        words, end = machine.memory.words, machine.memory.guest_bytes

        def entry():
            return paging.entry_index(words, end, enforcer.kernel_root, PLACE)

        def keep():
            if enforcer.running.tenant.name == "neighbour":
                secret.append(int(words[entry()]) & paging.FRAME_MASK)

        kept = {}

        def mend():
            for at, word in kept.items():
                words[at] = word

        def forge():
            assert secret, "the neighbour came second"
            kept[entry()] = int(words[entry()])
            words[entry()] = words[entry()] & ~paging.FRAME_MASK | secret[0]
            machine.cpu.load_cr3(machine.cpu.cr3)

        machine.cpu.add_code_hook(enforcer.view.symbols.address_of("__x64_sys_getpgid"), keep)
        machine.cpu.add_code_hook(enforcer.view.symbols.address_of("__x64_sys_getppid"), forge)
        machine.cpu.add_code_hook(enforcer.view.symbols.address_of("do_exit"), mend)

    specs = [
        TenantSpec(name, ("/program",), policy="live+guard", view="permissive", rootfs=tmp_path / name)
        for name in ("neighbour", "spy")
    ]
    found = run_tenants(guest, specs, on_machine=install)
    killed = found["spy"].record.killed
    assert killed is not None, results(found["spy"].stdout)
    assert (killed.rule, killed.owner) == ("W3", "neighbour")
    assert found["spy"].stdout == b"" and not found["neighbour"].record.kills


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("owner", [0, 1000])
def test_a_file_that_is_mapped_to_be_written_is_written_without_its_descriptor(guest, tmp_path, view, owner):
    """Its mode lets nobody, and its owner is another by now: who has it mapped was let open it."""
    make = [Step("memfd_create", (CODE, 0)), Step("ftruncate", (3, PAGE)), Step("fchmod", (3, 0o400))]
    keep = [Step("mmap", (PLACE, PAGE, 3, 0x11, 3, 0)), Step("close", (3,))]
    leave = [Step("setresgid", (owner,) * 3), Step("setresuid", (owner,) * 3)]
    program = build_program(*make, *keep, *leave, store_word(PLACE), load_word(PLACE))
    (tmp_path / "program").write_bytes(program)
    (tmp_path / "program").chmod(0o755)
    result = run(guest, ["/program"], RunOptions(policy="live+guard", view=view, rootfs=tmp_path))
    assert not result.record.kills and result.exit_code == 0
    assert results(result.stdout)[-1] == MARK


@pytest.mark.parametrize(("find", "rule"), [(at_symbol("_text"), "W1"), (own_task, "W3")], ids=["text", "slab"])
def test_the_address_space_of_patching_is_a_way_in_only_while_text_is_patched(guest, tmp_path, find, rule):
    """Here it is the task's own, as if its `mm->pgd` had been forged."""
    forged = Forged(guest, tmp_path, Step("getrandom", (PLACE, 64, 0)))

    def choose(machine, enforcer):
        machine.slot[slots.WALL_POKING] = enforcer.kernel_root & paging.FRAME_MASK
        return find(machine, enforcer)

    killed = forged.run(choose)
    assert (killed.call, killed.rule) == ("getrandom", rule)
