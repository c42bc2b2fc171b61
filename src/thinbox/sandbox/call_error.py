"""How a handler says that a call fails, that it is not its own, or that it must wait for a page.

Why it exists: what a handler uses (files, memory) raises these, too, and knows no handler.
"""

import errno

from thinbox.address import page_start


class CallError(Exception):
    """The call fails with `errno`."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, str(number)))
        self.errno = number


class NotOursError(Exception):
    """The handler does not serve this call; the rule's `otherwise` decides, or the plan's default."""


class PageWantedError(Exception):
    """A page of the tenant's must be brought in by the kernel first. Raised by memory access, never by handlers."""

    def __init__(self, vaddr: int, *, write: bool) -> None:
        super().__init__(hex(vaddr))
        self.vaddr, self.write = page_start(vaddr), write
