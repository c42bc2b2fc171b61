"""The RFC's own bad call: an indirect call goes to the middle of a function, `hugetlb_reserve_pages+0xc5`.

Why it exists: it is the smallest exploit there is (one corrupted function pointer), and the one the
proposal showed. The bug is presumed: at the entry of a system call's handler, the CPU is sent elsewhere.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.errors import InputError

if TYPE_CHECKING:
    from thinbox.enforcement.enforcer import Enforcer
    from thinbox.machine.machine import Machine

TARGET_FUNCTION = "hugetlb_reserve_pages"
TARGET_OFFSET = 0xC5
HIJACKED_HANDLER = "__x64_sys_getuid"


@dataclass(slots=True)
class HijackedCall:
    """Redirects one of the tenant's calls of `handler`, the first after `skip`, to `target + offset`.

    Give its `install` to `RunOptions.on_machine`.
    """

    handler: str = HIJACKED_HANDLER
    target: str = TARGET_FUNCTION
    offset: int = TARGET_OFFSET
    skip: int = 0
    seen: int = 0

    def install(self, machine: "Machine", enforcer: "Enforcer") -> None:
        """Watch the handler; raises `InputError` if this kernel lacks one of the two functions."""
        symbols = enforcer.view.symbols
        handler, target = symbols.find(self.handler), symbols.find(self.target)
        if handler is None or target is None:
            raise InputError(f"this kernel has no {self.handler if handler is None else self.target}")

        def hijack() -> None:
            if enforcer.view.current in enforcer.tasks:
                self.seen += 1
                if self.seen == self.skip + 1:
                    machine.cpu.jump(target + self.offset)

        machine.cpu.add_code_hook(handler, hijack)
