"""The arena: a frozen machine with an attacker and a victim, in which exploits are tried one after the other.

Why it exists: an exploit proves nothing unless there is somebody to harm. The attacker is a process of uid 1000
without capabilities; the victim, of uid 2000, has a secret in its memory, one in a private file and one in a pipe.
All is prepared once; a try costs milliseconds.

Rules of this file:
- Every try starts from the same machine state, to the byte.
- Isolated are the calls that `Attacker.attack` makes, those with the bug and those that follow it up.
- A killed call ends the try.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.attacks.attacker import Attacker
from thinbox.attacks.bug import Bug
from thinbox.attacks.exploit import Exploit, ExploitFailedError
from thinbox.attacks.leak import Leak
from thinbox.attacks.payload import LiveText
from thinbox.attacks.stage import ATTACKER, VICTIM, Stage, Victim, check_victim
from thinbox.attacks.views import NO_VIEW
from thinbox.audit.case import CaseFailedError, Steps
from thinbox.errors import MachineError
from thinbox.guest.conversation import Conversation, Park
from thinbox.guest.kernel_view import KernelView
from thinbox.isolation.verdict import Violation
from thinbox.machine.machine import GuestResetError, Machine
from thinbox.session.enforcer import Enforcer
from thinbox.session.records import RunRecord
from thinbox.session.sites import Sites
from thinbox.session.tenants import Isolation

if TYPE_CHECKING:
    from thinbox.boot.ready import ReadyGuest
    from thinbox.isolation.policies import Policy

GUEST_DOWN = "the guest went down"
"""The problem of a try that ended in a panic: no goal of an exploit, but felt by everybody."""
_TRY_LIMIT_NS = 30 * 1_000_000_000
"""Virtual time a try may take; the slowest, which runs a shell as root, takes less than a second."""


@dataclass(frozen=True, slots=True)
class Try:
    """What came of one try: the goal reached or not, why not, and the violation if there was one."""

    reached: bool
    problem: str | None
    violation: Violation | None
    step: str


class Arena:
    """Tries exploits from one stage under one policy."""

    def __init__(
        self, guest: "ReadyGuest", stage: Stage, policy: "Policy", on_violation: str = "undo", view: str = NO_VIEW
    ) -> None:
        self._guest, self._stage, self._policy = guest, stage, policy
        self.machine = machine = Machine(guest.params.memory_mib)
        machine.memory.attach(stage.ram)
        self.talk = Conversation(machine)
        self._reset_machine()
        self.view = KernelView(machine, guest.facts)
        self.attacker_task = self.view.current
        sites = Sites.from_json(guest.snapshot.notes["sites"])
        isolation = Isolation(
            policy,
            self._isolates,
            isolates_compat=True,
            keep_faults=True,
            on_violation=on_violation,
            tenant=ATTACKER,
            view=view,
        )
        self.enforcer = Enforcer(machine, self.view, sites, isolation, self._new_record())
        self.text = stage.text
        self.names: dict[int, str] = {}
        self.seen: dict[str, bytes] = {}
        self.steps: list[str] = []
        self._isolating = self._attacking = False
        self._with_bugs = True
        self._result: bool | None = None
        self.on_death: Callable[[], bool] | None = None
        self._bug: Bug | None = None
        self._hooks: list[Callable[[], None]] = []

    @property
    def victim(self) -> Victim:
        """The other tenant."""
        return self._stage.victim

    @property
    def leak(self) -> Leak:
        """Addresses, as the kernel's own table maps them now."""
        return Leak(self.machine.memory, self.view, self.enforcer.kernel_root)

    def _new_record(self) -> RunRecord:
        return RunRecord(self._guest.facts.release, self._guest.facts.sha256, self._policy.name, ("attack",))

    def _reset_machine(self) -> None:
        machine = self.machine
        machine.memory.clear()
        machine.console.clear()
        machine.cpu.restore(self._stage.cpu)
        machine.restore_devices(self._stage.devices)

    # -- one try ----------------------------------------------------------------------------------
    def run(self, exploit: Exploit, *, isolated: bool, with_bugs: bool = True) -> Try:
        """Try `exploit` from the stage; without its bugs, it makes the same calls and does no harm.

        Raises:
            MachineError: the machine itself failed; the arena is of no use then.
        """
        self._reset_machine()
        record = self._new_record()
        self.enforcer.reset(record)
        self.talk.restore(self._stage.talk, self.view)
        self._isolating, self._attacking, self._result, self._bug = isolated, False, None, None
        self.names, self.seen, self.steps, self.on_death = {}, {}, [], None
        self._with_bugs = with_bugs
        self.enforcer.adopt_current()
        if self.enforcer.isolation.view != NO_VIEW:
            views = self.enforcer.views
            views.add(VICTIM, views.cgroups.memcg_of(self.victim.task, self.view.kernel_root))
        try:
            problem = self._drive(exploit, record)
        finally:
            for take_away in self._hooks:
                take_away()
            self._hooks.clear()
        violation = record.killed
        reached = bool(self._result) and violation is None
        if not reached and problem is None and violation is None:
            problem = "the goal was not reached"
        return Try(reached, problem, violation, self._name_step(violation))

    def _drive(self, exploit: Exploit, record: RunRecord) -> str | None:
        limit = self.machine.now_ns + _TRY_LIMIT_NS
        try:
            self.talk.resume(self._attack(exploit))
            self.talk.assign(self._stage.agent, _await_end())
            self.talk.assign(self.victim.task, check_victim(self))
            self.machine.run(lambda: self.talk.parked or bool(record.kills) or self.machine.now_ns > limit)
        except CaseFailedError as error:
            return str(error)
        except ExploitFailedError as error:
            return str(error)
        except GuestResetError:
            return GUEST_DOWN
        except MachineError as error:
            if "nothing to wake it" in str(error):
                return "every process waits for ever"
            raise
        if self._result is None and not record.kills:
            if self.talk.parked and self.on_death is not None:
                self._result = self.on_death()
                return None
            return "the attacker died" if self.talk.parked else "the try did not end in time"
        return None

    def _attack(self, exploit: Exploit) -> Steps:
        self._result = bool((yield from exploit.body(Attacker(self))))
        yield Park()

    def _name_step(self, violation: Violation | None) -> str:
        """Say how far the exploit came: its last call, and the part of its payload that was refused."""
        last = self.steps[-1] if self.steps else ""
        part = self.names.get(violation.vaddr) if violation else None
        return f"{last}: {part}" if part else last

    def _isolates(self, _nr: int) -> bool:
        """Asked by the enforcer at every call of the attacker's tasks."""
        if not self._attacking or self.view.current != self.attacker_task:
            return False
        self._attacking = False
        return self._isolating

    # -- what an exploit does -------------------------------------------------------------------------
    def begin_attack(self, name: str, bug: Bug | None) -> None:
        """The attacker's next call is part of the attack; `bug` happens in it."""
        self.steps.append(f"{len(self.steps) + 1} {name}")
        self._attacking = True
        if bug is not None and self._with_bugs:
            self._bug = bug
            for place in bug.places:
                self.watch(place, self._let_it_happen)

    def end_attack(self, name: str) -> None:
        """The call came back."""
        if self._bug is not None:
            raise ExploitFailedError(f"{name} did not come to the place of the bug; this kernel does it in another way")

    def _let_it_happen(self) -> None:
        bug = self._bug
        if bug is not None and self.view.current == self.attacker_task:
            self._bug = None
            bug.happen(self)

    def watch(self, vaddr: int, function: Callable[[], None]) -> None:
        """Call `function` whenever the instruction at `vaddr` is about to run, to the end of this try."""
        self._hooks.append(self.machine.cpu.add_code_hook(vaddr, function))

    def corrupt(self, vaddr: int, data: bytes) -> None:
        """Write kernel memory as the bug would have: a write of the running call, which undo takes back, too."""
        memory = self.machine.memory
        done = 0
        for paddr, count in memory.spans(self.enforcer.kernel_root, vaddr, len(data)):
            if self.enforcer.undo:
                self.enforcer.undo.save(paddr)
            memory.write(paddr, data[done : done + count])
            done += count


def _await_end() -> Steps:
    """The agent waits for the attacker; when that is gone, so is the try."""
    yield
    yield Park()


__all__ = ["Arena", "LiveText", "Try"]
