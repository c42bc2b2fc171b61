"""Run a loaded kernel until its user space waits for a tenant.

Ordered procedure: 1. RAM is loaded (`params.load_guest`), 2. the CPU enters `startup_64`, the kernel's or (with
KASLR) its decompressor's, in long mode with interrupts off and RSI at the zero page
(Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"), 3. the agent prepares the guest and parks. A kernel
entered before its tables and GDT are in place triple-faults.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from unicorn import x86_const

from thinbox.boot import layout
from thinbox.boot.params import BootParams, load_guest
from thinbox.errors import BootError, MachineError
from thinbox.guest.agent_channel import AgentChannel
from thinbox.guest.kernel_view import KernelView
from thinbox.guest.setup import prepare_guest
from thinbox.machine import cpu as registers

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts
    from thinbox.image.kernel import KernelImage
    from thinbox.machine.machine import Machine

BOOT_LIMIT_NS = 120 * 1_000_000_000
"""Virtual time a boot may take; Debian's kernels take 2 to 6 s."""
_EFER_LME_LMA = 0x500
_CR0 = 0x80050033
_CR4_PAE = 0x20
_MILESTONES = re.compile(rb"Linux version|Memory:|clocksource: Switched|NET: Registered PF_INET |Run /init")
_LAST_LINES = 3


def boot(
    machine: "Machine",
    image: "KernelImage",
    facts: "KernelFacts",
    initramfs: bytes,
    params: BootParams,
    progress: Callable[[str], None] | None = None,
) -> AgentChannel:
    """Boot to the parked agent; return the conversation with it.

    Raises `BootError` with the last lines the kernel printed if it does not get there.
    """
    enter_kernel(machine, load_guest(machine.memory, image, initramfs, params))
    agent = AgentChannel(machine)
    agent.start(prepare_guest(agent), lambda: KernelView(machine, facts))
    if progress:
        machine.on_console = lambda line: _report(line, progress)
    try:
        machine.run(lambda: agent.parked or machine.now_ns > BOOT_LIMIT_NS)
    except (MachineError, RuntimeError) as error:
        raise BootError(f"the kernel did not reach user space: {error}; {last_words(machine)}") from error
    finally:
        machine.on_console = None
    if not agent.parked:
        raise BootError(f"the kernel did not reach user space in {BOOT_LIMIT_NS // 10**9} s; {last_words(machine)}")
    return agent


def enter_kernel(machine: "Machine", entry_paddr: int) -> None:
    """Put the CPU at the 64-bit entry point."""
    uc = machine.cpu.uc
    uc.msr_write(0xC0000080, _EFER_LME_LMA)
    uc.reg_write(x86_const.UC_X86_REG_CR4, _CR4_PAE)
    uc.reg_write(x86_const.UC_X86_REG_CR3, layout.TABLES)
    uc.reg_write(x86_const.UC_X86_REG_CR0, _CR0)
    uc.reg_write(x86_const.UC_X86_REG_GDTR, (0, layout.GDT, 31, 0))
    machine.cpu.regs[registers.RSI] = layout.ZERO_PAGE
    machine.cpu.flags = 2
    machine.cpu.set_rip(entry_paddr)


def _report(line: bytes, progress: Callable[[str], None]) -> None:
    if _MILESTONES.search(line):
        progress(line.decode(errors="replace").strip())


def last_words(machine: "Machine") -> str:
    """Return the kernel's last console lines as one line."""
    lines = [line.strip() for line in machine.console.decode(errors="replace").splitlines() if line.strip()]
    return "it printed last: " + " | ".join(lines[-_LAST_LINES:]) if lines else "it printed nothing"
