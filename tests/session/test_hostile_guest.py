"""Hostile programs on a real kernel: the host's process goes on, and the neighbour's output is right.

`THINBOX_FUZZ_PROGRAMS` says how many run (a tenth of it, for a guest takes longer; 20 without it), `THINBOX_FUZZ_FIRST` from which seed on.
"""

import os

import pytest
from tests.support.guest_fuzz import DONE, build_fuzzer
from thinbox.errors import ThinboxError
from thinbox.machine.memory import HIDDEN_BYTES
from thinbox.session.session import RunOptions, TenantSpec, run, run_tenants

PROGRAMS = max(20, int(os.environ.get("THINBOX_FUZZ_PROGRAMS", "200")) // 10)
FIRST = int(os.environ.get("THINBOX_FUZZ_FIRST", "0"))
BATCH = 100
NEIGHBOUR = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); done | md5sum; id -u; echo right"


@pytest.fixture
def fuzzer(tmp_path):
    def make(first, count):
        root = tmp_path / str(first)
        root.mkdir()
        (root / "fuzz").write_bytes(build_fuzzer(range(first, first + count)))
        (root / "fuzz").chmod(0o755)
        return root

    return make


@pytest.mark.parametrize(("policy", "view"), [("live+guard", "permissive"), ("live", "none")])
def test_the_neighbour_of_hostile_programs_prints_what_it_prints_alone(guest, fuzzer, policy, view):
    alone = run(guest, ["sh", "-c", NEIGHBOUR], RunOptions(policy=policy)).stdout
    for first in range(FIRST, FIRST + PROGRAMS, BATCH):
        count = min(BATCH, FIRST + PROGRAMS - first)
        root = fuzzer(first, count)
        hostile = TenantSpec("hostile", ("/fuzz",), policy=policy, view=view, rootfs=root)
        neighbour = TenantSpec("neighbour", ("sh", "-c", NEIGHBOUR), policy=policy, view=view)
        results = run_tenants(guest, [hostile, neighbour])
        assert results["neighbour"].stdout == alone and results["neighbour"].exit_code == 0, first
        assert results["hostile"].stdout.endswith(DONE) or results["hostile"].exit_code != 0, first


def test_hostile_programs_of_roots_end_the_run_at_most_by_an_error_of_thinboxs_own(guest, fuzzer):
    """Alone, a tenant is the guest's root: it may bring its guest down, and that is said in one line."""
    for first in range(FIRST + 1_000_000, FIRST + 1_000_000 + PROGRAMS, BATCH):
        root = fuzzer(first, min(BATCH, FIRST + 1_000_000 + PROGRAMS - first))
        try:
            result = run(guest, ["/fuzz"], RunOptions(policy="live", rootfs=root))
        except ThinboxError:
            continue
        assert result.stdout.endswith(DONE) or result.exit_code != 0, first


def test_root_finds_an_empty_bus_where_hidden_memory_lies(guest):
    """By /dev/mem, which the kernel lets root map beyond its own memory; what is stored there is nowhere."""
    first = guest.params.memory_mib << 20
    places = " ".join(hex(vaddr) for vaddr in (first, first + HIDDEN_BYTES // 2, first + HIDDEN_BYTES - 4096))
    script = f"for at in {places}; do devmem $at 64; devmem $at 64 0x4141414141414141; devmem $at 64; done; id -u"
    result = run(guest, ["sh", "-c", script], RunOptions(policy="live+guard", on_violation="undo"))
    assert result.stdout.decode().split() == ["0x" + "F" * 16] * 6 + ["0"]
    assert not result.record.kills and result.exit_code == 0
