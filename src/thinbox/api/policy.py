"""The class a policy of the user's begins from.

    class StartsOnly(thinbox.Policy):
        def check_access(self, access, call):
            if access.kind is not thinbox.AccessKind.FETCH or (access.symbol and access.offset == 0):
                return self.grant("a function's start, or data", cacheable=True)
            return self.refuse("not the start of a function")

Why it exists: any object with the attributes of the protocol is a policy; this has those that are nearly always the
same, and words for the two answers.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from thinbox.isolation.verdict import Verdict

if TYPE_CHECKING:
    from thinbox.isolation.policies import CallView
    from thinbox.isolation.verdict import Access


class Policy(ABC):
    """Decides accesses. `name` stands in records; left out, it is the class's name.

    `grants_all_data`: data is granted without asking. `judges_stack` and `needs_graph`: see docs/policies.md.
    """

    name: str = ""
    grants_all_data: bool = False
    judges_stack: ClassVar[bool] = False
    needs_graph: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not cls.name:
            cls.name = cls.__name__

    @abstractmethod
    def check_access(self, access: "Access", call: "CallView") -> Verdict:
        """Judge one access of one call."""

    def grant(
        self,
        reason: str = "allowed",
        *,
        rule: str = "",
        cacheable: bool = False,
        per_source: bool = False,
        per_syscall: bool = False,
        while_mapped: tuple[int, ...] = (),
    ) -> Verdict:
        """Return a verdict that grants; `cacheable` and its qualifications as in `Verdict`."""
        return Verdict(True, rule or self.name, reason, cacheable, per_source, per_syscall, while_mapped)

    def refuse(self, reason: str, *, rule: str = "") -> Verdict:
        """Return a verdict that refuses, which kills; `reason` ends the sentence about the kill."""
        return Verdict(granted=False, rule=rule or self.name, reason=reason)


__all__ = ["Policy"]
