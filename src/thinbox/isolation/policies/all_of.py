"""Combinations: granted only if every policy grants (`--policy sci+transfer`).

Cannot see: what none of its parts sees. Its cost is that of its slowest part; a verdict is remembered as
narrowly as the narrowest part allows.
"""

from typing import TYPE_CHECKING, Any

from thinbox.errors import InputError
from thinbox.isolation.policy import CallView, Policy
from thinbox.isolation.verdict import Access, AccessKind, Verdict

if TYPE_CHECKING:
    from thinbox.isolation.policies.guard import ProtectedObject


class _Part:
    """The call as one part sees it: with notes of its own."""

    def __init__(self, call: CallView, notes: dict[str, Any]) -> None:
        self._call, self.notes = call, notes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


class AllOf:
    """Grants what all of `parts` grant; the first refusal is the verdict, with its policy's name."""

    def __init__(self, parts: tuple[Policy, ...]) -> None:
        if not parts:
            raise InputError("a combination needs at least one policy")
        self.parts = parts
        self.name = "+".join(part.name for part in parts)
        self.grants_all_data = all(getattr(part, "grants_all_data", False) for part in parts)
        self.judges_stack = any(getattr(part, "judges_stack", False) for part in parts)
        self.guards_end = any(getattr(part, "guards_end", False) for part in parts)
        self.needs_graph = any(getattr(part, "needs_graph", False) for part in parts)

    def check_access(self, access: Access, call: CallView) -> Verdict:
        """Judge one access by each part in order."""
        granted = []
        for index, part in enumerate(self.parts):
            if access.kind is not AccessKind.FETCH and getattr(part, "grants_all_data", False):
                continue
            view: Any = _Part(call, call.notes.setdefault(f"part {index}", {}))
            verdict = part.check_access(access, view)
            if not verdict.granted:
                return Verdict(granted=False, rule=f"{verdict.rule} of {part.name}", reason=verdict.reason)
            granted.append(verdict)
        if not granted:
            return Verdict(granted=True, rule="6", reason="kernel data", cacheable=True)
        return Verdict(
            granted=True,
            rule=" and ".join(verdict.rule for verdict in granted),
            reason="; ".join(verdict.reason for verdict in granted),
            cacheable=all(verdict.cacheable for verdict in granted),
            per_source=any(verdict.per_source for verdict in granted),
            per_syscall=any(verdict.per_syscall for verdict in granted),
            while_mapped=tuple(sorted({vaddr for verdict in granted for vaddr in verdict.while_mapped})),
        )

    def check_end(
        self, name: str, before: "tuple[ProtectedObject, ...]", after: "tuple[ProtectedObject, ...]"
    ) -> tuple[Verdict, int] | None:
        """Let each part that guards the end of calls compare; return the first refusal."""
        return self._guards_say("check_end", name, before, after)

    def check_between(self, before: "ProtectedObject", now: "ProtectedObject") -> tuple[Verdict, int] | None:
        """As `check_end`, for what may not change between calls."""
        return self._guards_say("check_between", before, now)

    def check_program(
        self, path: bytes, before: "tuple[ProtectedObject, ...]", place: int
    ) -> tuple[Verdict, int] | None:
        """As `check_end`, for a program the kernel is about to start."""
        return self._guards_say("check_program", path, before, place)

    def _guards_say(self, question: str, *arguments: Any) -> tuple[Verdict, int] | None:
        for part in self.parts:
            if getattr(part, "guards_end", False):
                found: tuple[Verdict, int] | None = getattr(part, question)(*arguments)
                if found is not None:
                    verdict, vaddr = found
                    rule = f"{verdict.rule} of {part.name}"
                    return Verdict(granted=False, rule=rule, reason=verdict.reason), vaddr
        return None
