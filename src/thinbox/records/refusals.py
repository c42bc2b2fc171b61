"""What a plan refused in a run: all of it counted, what is alike kept once, and no more than fits a page or two.

Why it exists: a tenant chooses what it asks for and how often; a loop over an argument's values would otherwise fill
the record, and the user's terminal, at the host's expense.

Rules of this file: every refusal is counted, and the first of each call is always kept. Where something is left out,
`truncated` says so, and whoever shows the list shows that.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

MOST_FORMS = 32
"""Different refusals kept of one call: more than a person reads, or a rule lists (`planning.make_plan.MOST_VALUES`)."""
MOST_KEPT = 1024
"""Different refusals kept of all calls, the first of each call not counted: some 300 KB of sentences."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call that a plan refused. `arguments` names the argument that no rule allows, empty if it is the call
    itself."""

    call: str
    pid: int
    disposition: str
    errno: int
    plan: str
    line: int
    arguments: str
    reason: str

    def sentence(self) -> str:
        """Name call, argument, plan and line in one sentence."""
        what = f"{self.call}({self.arguments})" if self.arguments else self.call
        return f"{what} was refused by {self.plan}, line {self.line} ({self.disposition}): {self.reason}"


@dataclass(slots=True)
class Refusals:
    """The refusals of one run. Iterating gives those kept, each different one once, in the order they came."""

    count: int = 0
    """All of them."""
    truncated: bool = False
    """Some were not like any that is kept."""
    _kept: dict[str, Refusal] = field(default_factory=dict)
    _times: Counter[str] = field(default_factory=Counter)
    _forms: Counter[str] = field(default_factory=Counter)

    def add(self, refusal: Refusal) -> None:
        """Count a refusal, and keep it if it is a new one and there is room."""
        self.count += 1
        sentence = refusal.sentence()
        if sentence not in self._kept:
            # Numbers without a call are chosen freely, so they are one call here: `#1234`, `i386#1234`.
            forms = refusal.call.partition("#")[0] or "#"
            if self._forms[forms] and (self._forms[forms] >= MOST_FORMS or len(self._kept) >= MOST_KEPT):
                self.truncated = True
                return
            self._forms[forms] += 1
            self._kept[sentence] = refusal
        self._times[sentence] += 1

    def __iter__(self) -> Iterator[Refusal]:
        return iter(self._kept.values())

    def __bool__(self) -> bool:
        return self.count > 0

    def sentences(self) -> tuple[str, ...]:
        """Return those kept, in words."""
        return tuple(self._kept)

    def headline(self) -> str:
        """Return how many there were, and whether all are kept."""
        return f"{self.count:,} refused" + (f", {len(self._kept):,} kinds of it listed, others not" * self.truncated)

    def to_json(self) -> list[dict[str, Any]]:
        """Return those kept, each with how often it came; `pid` is whose was the first."""
        return [asdict(refusal) | {"times": self._times[key]} for key, refusal in self._kept.items()]
