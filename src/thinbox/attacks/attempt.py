"""One attempt of an exploit: how far it came, what it noted, and the bug that is still to happen.

Why it exists: an exploit is tried under many policies on one machine, and nothing of one attempt may reach the next.
So each has one of these, made for it.

Rules of this file:
- Isolated are the calls that `Attacker.attack` makes, those with the bug and those that follow it up.
- A bug whose place is not reached fails the attempt when its call returns. `Try.bugs_reached` says so also of calls
  that never return, and of attempts without the bugs: one that was never tried proves nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.attacks.corruption import Corruption
from thinbox.attacks.payload import ExploitFailedError
from thinbox.isolation.verdict import Violation

if TYPE_CHECKING:
    from thinbox.attacks.bug import Bug
    from thinbox.enforcement.enforcer import Enforcer


@dataclass(frozen=True, slots=True)
class Try:
    """What came of one attempt: the goal reached or not, why not, and the violation if there was one. `bugs_reached`:
    there was a bug, and the place of each was reached, whether it happened there or was left out."""

    reached: bool
    problem: str | None
    violation: Violation | None
    step: str
    bugs_reached: bool = False


class Attempt:
    """An attempt by the process `attacker_task`, whose attacking calls are isolated or not; without its bugs it makes
    the same calls."""

    def __init__(
        self, enforcer: "Enforcer", attacker_task: int, *, isolated: bool, with_bugs: bool, candidate: object = None
    ) -> None:
        self._machine, self._view, self._attacker_task = enforcer.machine, enforcer.view, attacker_task
        self._isolated, self._with_bugs = isolated, with_bugs
        self.corruption = Corruption(enforcer)
        self.candidate = candidate
        self.names: dict[int, str] = {}
        """What the parts of the payload are called, by address."""
        self.seen: dict[str, bytes] = {}
        """What the victim found when it was asked."""
        self.on_death: Callable[[], bool] | None = None
        """Whether the goal was reached, for an exploit that ends its own process."""
        self._steps: list[str] = []
        self._attacking = False
        self._bug: Bug | None = None
        self._given = self._reached = 0
        self._hooks: list[Callable[[], None]] = []

    def isolates(self, _nr: int) -> bool:
        """Asked at every call of the attacker's tasks."""
        if not self._attacking or self._view.current != self._attacker_task:
            return False
        self._attacking = False
        return self._isolated

    @property
    def bugs_reached(self) -> bool:
        """Whether the place of every bug given so far was reached; False if there was none."""
        return 0 < self._given == self._reached

    # -- what an exploit does -------------------------------------------------------------------------
    def begin_attack(self, name: str, bug: "Bug | None") -> None:
        """The attacker's next call is part of the attack; `bug` happens in it."""
        self._steps.append(f"{len(self._steps) + 1} {name}")
        self._attacking = True
        if bug is not None:
            self._bug = bug
            self._given += 1
            for place in bug.places:
                self.watch(place, self._let_it_happen)

    def end_attack(self, name: str) -> None:
        """The call came back.

        Raises:
            ExploitFailedError: without having reached the place of its bug.
        """
        if self._bug is not None and self._with_bugs:
            raise ExploitFailedError(f"{name} did not come to the place of the bug; this kernel does it in another way")

    def _let_it_happen(self) -> None:
        bug = self._bug
        if bug is not None and self._view.current == self._attacker_task:
            self._bug = None
            self._reached += 1
            if self._with_bugs:
                bug.happen(self.corruption)

    def watch(self, vaddr: int, function: Callable[[], None]) -> None:
        """Call `function` whenever the instruction at `vaddr` is about to run, to the end of this attempt."""
        self._hooks.append(self._machine.cpu.add_code_hook(vaddr, function))

    # -- the end --------------------------------------------------------------------------------------
    def close(self) -> None:
        """Take the hooks away."""
        for take_away in self._hooks:
            take_away()
        self._hooks.clear()

    def step(self, violation: Violation | None) -> str:
        """Say how far the exploit came: its last call, and the part of its payload that was refused."""
        last = self._steps[-1] if self._steps else ""
        part = self.names.get(violation.vaddr) if violation else None
        return f"{last}: {part}" if part else last
