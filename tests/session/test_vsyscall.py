"""The legacy page of three calls at 0xffffffffff600000: as the kernel emulates it, in its page fault handler.

Debian's kernels are built without it (CONFIG_LEGACY_VSYSCALL_NONE); the words `vsyscall=xonly` and `=emulate` switch it
on. Source: arch/x86/entry/vsyscall/vsyscall_64.c (`emulate_vsyscall`).
"""

import os
import struct

import pytest
from tests.support.call_program import Step, build_program, results
from thinbox.boot.params import BootParams
from thinbox.boot.ready import prepare
from thinbox.session.session import RunOptions, run

pytestmark = pytest.mark.guest

PAGE, TIME = 0xFFFFFFFFFF600000, 0x400
SIGSEGV_STATUS = 128 + 11
CALL_IT = b"\x31\xff\x48\xb8" + struct.pack("<Q", PAGE + TIME) + b"\xff\xd0"
"""xor edi, edi; mov rax, the address; call rax"""
READ_IT = b"\x48\xa1" + struct.pack("<Q", PAGE)
"""mov rax, [the address]"""


def run_on(vsyscall: str, code: bytes, tmp_path, isolate: str = "all"):
    guest = prepare(os.environ.get("THINBOX_TEST_KERNEL"), BootParams(append=f"vsyscall={vsyscall}"))
    (tmp_path / "program").write_bytes(build_program(code, Step("time", (0,))))
    (tmp_path / "program").chmod(0o755)
    return run(guest, ["/program"], RunOptions(rootfs=tmp_path, isolate=isolate))


@pytest.mark.parametrize("vsyscall", ["xonly", "emulate"])
@pytest.mark.parametrize("isolate", ["all", "none"])
def test_time_is_what_the_call_says(vsyscall, isolate, tmp_path):
    result = run_on(vsyscall, CALL_IT, tmp_path, isolate)
    assert result.exit_code == 0 and not result.record.kills
    by_page, by_call = results(result.stdout)
    assert by_page == by_call > 1_000_000_000


def test_without_the_page_it_faults_as_on_hardware(tmp_path):
    assert run_on("none", CALL_IT, tmp_path).exit_code == SIGSEGV_STATUS


@pytest.mark.parametrize(("vsyscall", "status"), [("xonly", SIGSEGV_STATUS), ("emulate", 0)])
def test_it_is_read_only_where_the_kernel_maps_it_so(vsyscall, status, tmp_path):
    assert run_on(vsyscall, READ_IT, tmp_path).exit_code == status
