"""Modules of a session: loaded before its tenants start, and, if that was asked for, when the kernel asks.

Why it exists: a distribution's kernel has most of itself in modules. They are in its package; the guest has none.

Rules of this file:
- Nothing is loaded that is not among the modules of the kernel's package, or of the folder the user named.
- The kernel's requests are answered only if a tenant's options say "auto". The default is that of a guest without
  modules: the kernel starts what its root file system has as /sbin/modprobe.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from thinbox.enforcement.outside_work import count_outside
from thinbox.errors import InputError
from thinbox.guest.agent_channel import GuestScript
from thinbox.guest.modules import AGENT, answer_request, answer_requests, load_modules, refusal
from thinbox.image.modules import LoadOrder, Module, ModuleLibrary
from thinbox.kernel.watched import find_watched
from thinbox.machine import cpu as registers

if TYPE_CHECKING:
    from thinbox.boot.ready import ReadyGuest
    from thinbox.enforcement.tenants import Tenant
    from thinbox.session.opened import OpenedGuest
    from thinbox.session.options import Confinement

AUTO = "auto"
_NAME_AT = 3
"""modprobe's words: path, -q, --, name (kernel/module/kmod.c, `call_modprobe`)."""
_NAME_BYTES = 256


class SessionModules:
    """What the options of a session's tenants want loaded, and who answers the kernel."""

    def __init__(
        self, guest: "ReadyGuest", wanted: "list[Confinement]", opened: "OpenedGuest", say: Callable[[str], None]
    ) -> None:
        """InputError if the options name several folders of modules."""
        folders = {options.modules_from for options in wanted if options.modules_from is not None}
        if len(folders) > 1:
            raise InputError("modules_from names several folders; the guest has one kernel, and one set of modules")
        names = dict.fromkeys(name for options in wanted for name in options.modules)
        if folders and not names:
            raise InputError("modules_from goes with modules: say which to load, or auto")
        self._names = tuple(name for name in names if name != AUTO)
        self._answers = AUTO in names
        self._opened, self._say = opened, say
        folder = Path(next(iter(folders))) if folders else None
        self.library = ModuleLibrary(guest.kernel, guest.facts.release, folder, say)
        types = opened.view.facts.types
        if self._answers:
            self._path_at = types.offset_of("subprocess_info", "path")
            self._words_at = types.offset_of("subprocess_info", "argv")
            self._modprobe_at = opened.view.symbols.address_of("modprobe_path")
            # Behind the enforcer's own hook, which makes the process the tenant's.
            for vaddr in find_watched(opened.view.facts).programs_run:
                opened.machine.cpu.add_code_hook(vaddr, self._helper_runs)

    def load(self, names: tuple[str, ...], parameters: dict[str, str] | None = None) -> GuestScript:
        """Load these modules and what they need; `parameters` are those of some, by name.

        Raises:
            InputError: there is no such module, or the kernel does not take it.
        """
        order = self.library.require(names)
        yield from load_modules(self._opened.agent, order, self.library.load(order.names), self._said, parameters)

    def start(self) -> GuestScript:
        """Load what is named, and answer the kernel from here on if that is wanted; raises as `load`."""
        if self._names:
            yield from self.load(self._names)
        if self._answers:
            yield from answer_requests()

    def _said(self, name: str) -> str:
        """Return the last line that the kernel printed of a module, as the end of a sentence."""
        lines = self._opened.machine.console.decode(errors="replace").splitlines()
        said = next((line for line in reversed(lines) if f"{name}:" in line), "")
        return f"; it printed: {said.strip()}" if said else ""

    # -- what the kernel asks for -----------------------------------------------------------------------
    def _helper_runs(self) -> None:
        """`call_usermodehelper_exec_async(info)`: a process is about to become a program. If that is to be modprobe,
        and the agent stands for it, the process is answered when it calls."""
        view, memory = self._opened.view, self._opened.machine.memory
        root, info = view.kernel_root, self._opened.machine.cpu.regs[registers.RDI]
        place = memory.word_at(root, info + self._path_at)
        if place != self._modprobe_at & ((1 << 64) - 1) or self._text(place) != AGENT:
            return
        words = memory.word_at(root, info + self._words_at)
        name = self._text(memory.word_at(root, words + 8 * _NAME_AT))
        state = self._opened.enforcer.tasks.get(view.current)
        tenant = None if state is None else state.tenant
        self._opened.agent.expect(view.current, lambda: self._answer(name, tenant))

    def _text(self, vaddr: int) -> str:
        view, memory = self._opened.view, self._opened.machine.memory
        out = bytearray()
        while len(out) < _NAME_BYTES:
            try:
                byte = memory.read_virtual(view.kernel_root, vaddr - (1 << 64) if vaddr >> 63 else vaddr, 1)
            except LookupError:
                return ""
            if byte == b"\0":
                break
            out += byte
            vaddr += 1
        return out.decode("utf-8", "replace")

    def _answer(self, name: str, tenant: "Tenant | None") -> GuestScript:
        """The process the kernel started, in the agent's program: thinbox's own from here on."""
        if self._opened.view.current in self._opened.enforcer.tasks:
            self._opened.enforcer.disown_current()
        found = self.library.find(name)
        order = LoadOrder((), frozenset()) if not found else self.library.order([found])
        if not found and tenant is not None:
            count_outside(tenant.record, "module the kernel asked for, none there", 1)

        def report(module: str, error: int) -> None:
            self._say(f"module {module} " + (f"refused: {refusal(error)}" if error else f"loaded for {name}"))
            if tenant is not None:
                count_outside(tenant.record, f"module {'refused' if error else 'loaded'}: {module}", 1)

        def modules() -> Iterator[Module]:
            return self.library.load(order.names)

        yield from answer_request(self._opened.agent, modules, report)


__all__ = ["AUTO", "SessionModules"]
