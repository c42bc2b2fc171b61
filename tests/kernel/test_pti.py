"""Page-table isolation is measured at the tables, not read off a bit that may be chance."""

import pytest
from thinbox.boot.params import BootParams
from thinbox.boot.ready import prepare
from thinbox.errors import MissingFactError
from thinbox.kernel.pti import measure_pti
from thinbox.session.session import run

DATA = 0xFFFF_FFFF_8260_0000


def measure(cr3, *kernels):
    return measure_pti(cr3, DATA, lambda root, vaddr: vaddr == DATA and root in kernels)


@pytest.mark.parametrize(("cr3", "kernels", "isolated"), [
    (0x5001 | 0x800, (0x5000,), False),  # an odd page, the kernel's own: no PTI, where a PGD is one page
    (0x4003, (0x4000,), False),
    (0x5000 | 1 << 63 | 0x801, (0x4000,), True),
])  # fmt: skip
def test_the_table_that_maps_the_kernels_data_is_the_kernels(cr3, kernels, isolated):
    assert measure(cr3, *kernels) is isolated


@pytest.mark.parametrize("cr3", [0x4000, 0x5000])
def test_what_maps_it_in_neither_is_refused(cr3):
    with pytest.raises(MissingFactError, match="page table"):
        measure(cr3, 0x9000)


@pytest.mark.parametrize("append", ["pti=off", "pti=on"])
@pytest.mark.guest
def test_a_kernel_told_so_runs_a_tenant(append):
    guest = prepare(params=BootParams(append=append))
    assert guest.snapshot.notes["pti"] is (append == "pti=on")
    assert run(guest, ["echo", "hello"]).stdout == b"hello\n"
