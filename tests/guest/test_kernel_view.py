"""The kernel's own table is known at all times, whatever table the CPU is on."""

import pytest
from thinbox.isolation import pagetable
from thinbox.machine import slots
from thinbox.session.session import RunOptions, run

INTERRUPTED = "i=0; while [ $i -lt 6 ]; do sh -c 'trap : USR1; (sleep 0.02; kill -USR1 $$) & wait'; i=$((i+1)); done"


def results(guest, isolate, skipped_frames):
    """What every call of the guest's shells returned; SCI roots begin `skipped_frames` pages further on."""

    def skip(_machine, enforcer):
        for _ in range(skipped_frames):
            assert pagetable.take_frame(enforcer.memory.words, enforcer.tables._pool)

    options = RunOptions(policy="live", isolate=isolate, on_machine=skip)
    return [(call.pid, call.name, call.ret) for call in run(guest, ["sh", "-c", INTERRUPTED], options).record.calls]


@pytest.mark.parametrize("skipped_frames", [0, 1])
def test_a_call_interrupted_by_a_signal_has_the_same_result_isolated(guest, skipped_frames):
    """Its result stands in the signal's frame, on the user's stack. With PTI a root in an odd frame was masked, so that
    the frame was not found, and the result was 0."""
    plain = results(guest, "none", 0)
    assert any(name == "rt_sigsuspend" or ret == -4 for _pid, name, ret in plain), "no call was interrupted"
    assert results(guest, "all", skipped_frames) == plain


def test_the_kernels_root_is_right_while_an_sci_table_is_active(guest):
    seen = []

    def watch(machine, enforcer):
        def look():
            if machine.slot[slots.ACTIVE]:
                seen.append((enforcer.view.kernel_root, machine.slot[slots.KERNEL_ROOT], machine.cpu.cr3))

        machine.cpu.add_code_hook(enforcer.view.symbols.address_of("__x64_sys_getuid"), look)

    run(guest, ["id", "-u"], RunOptions(policy="live", on_machine=watch))
    assert seen
    for root, kernels, loaded in seen:
        assert root == kernels
        assert root != loaded


def test_the_size_of_a_kernel_stack_is_that_of_the_first_tasks(guest):
    """Whose place and end the linker says (include/asm-generic/vmlinux.lds.h, INIT_TASK_DATA)."""
    seen = []
    run(guest, ["true"], RunOptions(policy="live", on_machine=lambda _machine, enforcer: seen.append(enforcer.view)))
    (view,) = seen
    find = view.symbols.find
    assert view.stack_bytes == (find("__end_init_stack") or find("__end_init_task")) - find("init_stack")
