"""A call that a corrupted kernel takes over, beside another tenant; and two tenants' talk on loopback."""

import struct

from thinbox.address import U64, to_signed
from thinbox.audit.case import Case
from thinbox.audit.expect import Expect
from thinbox.audit.case_runner import CaseRunner
from thinbox.isolation.policies.live import Live
from thinbox.machine import cpu as registers
from thinbox.machine import slots

ANYTHING = Expect(lambda _result: True, "anything")
TALK = """
dd if=/dev/zero of=/tmp/big bs=4096 count=40 2>/dev/null
for port in 9001 9002; do (nc -l -p $port </tmp/big >/tmp/in$port) & done
sleep 0.1
for port in 9001 9002; do (cat /tmp/big; sleep 0.05) | nc 127.0.0.1 $port >/tmp/out$port & done
wait
cat /tmp/in* /tmp/out* | wc -c
"""


class Hijack:
    """A lab whose isolated getpid goes to a kernel function instead, with the arguments a test gives."""

    def __init__(self, guest, template):
        self.runner = CaseRunner(guest, template, Live(), view="permissive")
        self.symbols = self.runner.view.symbols
        self.prepare = None
        self.runner.machine.cpu.add_code_hook(self.symbols.address_of("__x64_sys_getpid"), self._go)

    def word(self, vaddr):
        return self.runner.view.read_u64(vaddr, self.runner.enforcer.kernel_root)

    def push(self, *words):
        """Put words on the stack, the last of them on top."""
        regs, root = self.runner.machine.cpu.regs, self.runner.enforcer.kernel_root
        for word in words:
            regs[registers.RSP] -= 8
            self.runner.machine.memory.write_virtual(
                root, to_signed(regs[registers.RSP]), struct.pack("<Q", word & U64)
            )

    def _go(self):
        if self.prepare is not None and self.runner.machine.slot[slots.ACTIVE]:
            prepare, self.prepare = self.prepare, None
            self.runner.machine.cpu.jump(prepare())

    def run(self, prepare):
        def body(process):
            self.prepare = prepare
            yield from process.measure(expect=ANYTHING)

        outcome = self.runner.run(Case("getpid", "test", True, body), isolated=True)
        assert self.prepare is None, "the call was never taken over"
        return outcome

    def call_in_text(self, name):
        """The address behind a direct call of function `name` in the kernel's text."""
        start, end = self.symbols.text_start, self.symbols.text_end
        code = self.runner.machine.memory.read_virtual(self.runner.enforcer.kernel_root, start, end - start)
        target, at = self.symbols.address_of(name) - start, code.find(b"\xe8")
        while at + 5 + int.from_bytes(code[at + 1 : at + 5], "little", signed=True) != target:
            at = code.index(b"\xe8", at + 1)
        return start + at + 5
