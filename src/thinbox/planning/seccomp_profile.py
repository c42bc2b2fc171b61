"""A seccomp profile as engines read it: entries, and what they answer a call with such arguments in such a container.

Why it exists: a profile is a list without an order, and means what libseccomp makes of it; that stands here once.

Rules of this file:
- No I/O. Entries are alternatives; the comparisons of one entry must all hold; an entry that compares one argument
  twice is read as runc reads it, each comparison for itself.
- What is not certain is not said: where entries disagree on the same arguments, or where libseccomp is known not to
  keep to what was written, the answer is open.

Source: opencontainers/runc libcontainer/seccomp/seccomp_linux.go (`matchCall`); seccomp/libseccomp src/db.c
(`db_rule_add`: the first entry without comparisons wins over all others; `_db_arg_cmp_need_lo`, `_db_node_mask_fixup`).
"""

import errno as errnos
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

ALLOW = 0x7FFF0000
ERRNO = 0x00050000
ACTIONS: Mapping[str, int] = {
    "SCMP_ACT_KILL": 0x00000000, "SCMP_ACT_KILL_THREAD": 0x00000000, "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000, "SCMP_ACT_ERRNO": ERRNO, "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_NOTIFY": 0x7FC00000, "SCMP_ACT_LOG": 0x7FFC0000, "SCMP_ACT_ALLOW": ALLOW,
}  # fmt: skip
"""Of the names that runc knows, what libseccomp calls them (seccomp.h)."""
OPERATORS: Mapping[str, int] = {
    "SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4, "SCMP_CMP_GE": 5, "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}  # fmt: skip
"""enum scmp_compare."""
NE, LT, LE, EQ, GE, GT, MASKED_EQ = range(1, 8)
_WITH_DATA = (ERRNO, 0x7FF00000)
_SHOWN = {
    0x00000000: "its thread killed", 0x80000000: "killed", 0x00030000: "SIGSYS", 0x7FC00000: "left to a supervisor",
    0x7FFC0000: "allowed and logged", ALLOW: "allowed",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Action:
    """What becomes of a call: libseccomp's 32 bits, which are the kernel's (SECCOMP_RET_*) but for `ALLOW`'s name."""

    code: int

    @property
    def allows(self) -> bool:
        """Whether the kernel runs the call. `TRACE` and `NOTIFY` ask somebody, and fail with ENOSYS where nobody is."""
        return self.code in (ALLOW, ACTIONS["SCMP_ACT_LOG"])

    @property
    def errno(self) -> int | None:
        """The errno a call gets, 0 for a success that never ran; None if it gets none, or nobody can know."""
        return self.code & 0xFFFF if self.code & 0xFFFF0000 == ERRNO else None

    def show(self) -> str:
        """Return it in a word or three."""
        if self.errno == 0:
            return "answered 0 without running"
        if self.errno is not None:
            return errnos.errorcode.get(self.errno, f"errno {self.errno}")
        return _SHOWN.get(self.code, "left to a tracer")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One element of `args`: position, operator (`EQ`, …), `value` and `valueTwo`, unsigned."""

    index: int
    op: int
    value: int
    value_two: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether libseccomp leaves it out: a mask of no bits, whatever is asked of them."""
        return self.op == MASKED_EQ and self.value == 0

    def holds(self, args: tuple[int, ...]) -> bool:
        """Tell whether it holds for six registers."""
        given = args[self.index]
        if self.op == MASKED_EQ:
            return given & self.value == self.value_two & self.value
        return {
            NE: given != self.value, LT: given < self.value, LE: given <= self.value, EQ: given == self.value,
            GE: given >= self.value, GT: given > self.value,
        }[self.op]  # fmt: skip


Clause = tuple[Comparison, ...]
"""Comparisons that must all hold; none is always."""


@dataclass(frozen=True, slots=True)
class Container:
    """What an entry may ask of the container and its host: capabilities in the bounding set, the kernel's version."""

    capabilities: frozenset[str] = frozenset()
    kernel: tuple[int, int] = (1 << 30, 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """One element of `syscalls` that is for x86-64; `number` counts from 1. `clauses` are alternatives."""

    number: int
    names: tuple[str, ...]
    action: Action
    clauses: tuple[Clause, ...] = ((),)
    with_all: frozenset[str] = frozenset()
    without_any: frozenset[str] = frozenset()
    from_kernel: tuple[int, int] | None = None
    before_kernel: tuple[int, int] | None = None

    def is_in(self, container: Container) -> bool:
        """Whether engines put it into the filter of this container."""
        return (
            self.with_all <= container.capabilities
            and not self.without_any & container.capabilities
            and (self.from_kernel is None or container.kernel >= self.from_kernel)
            and (self.before_kernel is None or container.kernel < self.before_kernel)
        )


@dataclass(frozen=True, slots=True)
class Law:
    """What one filter says of one call: `rules` in the order of the file, those of the default left out."""

    default: Action
    rules: tuple[tuple[Clause, Action], ...] = ()

    @property
    def fixed(self) -> Action | None:
        """The one answer whatever the arguments are, or None."""
        if not self.rules:
            return self.default
        return next((action for clause, action in self.rules if not clause), None)

    def candidates(self, args: tuple[int, ...]) -> frozenset[Action]:
        """Return the answers that the entries, as they are written, give for six registers; several: they disagree."""
        if self.fixed is not None:
            return frozenset((self.fixed,))
        found = {action for clause, action in self.rules if all(c.holds(args) for c in clause)}
        return frozenset(found or {self.default})

    @property
    def is_plain(self) -> bool:
        """Whether libseccomp is known to keep to what is written, but where entries disagree.

        Of several entries that look at several arguments with anything but EQ and MASKED_EQ, or compare sizes, its
        tree loses some (tests/planning/test_profile_meaning.py shows both).
        """
        if self.fixed is not None or len(self.rules) == 1:
            return True
        used = {comparison.op for clause, _action in self.rules for comparison in clause}
        return used <= {EQ, MASKED_EQ} or (
            used <= {EQ, MASKED_EQ, NE} and all(len(clause) == 1 for clause, _action in self.rules)
        )

    def decide(self, args: tuple[int, ...]) -> Action | None:
        """Return the answer for six registers, None where it is open."""
        found = self.candidates(args)
        return next(iter(found)) if self.is_plain and len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class Profile:
    """A whole profile. `unknown` are names of no x86-64 call, `notes` one line each on how engines read it."""

    default: Action
    entries: tuple[Entry, ...] = ()
    compat: bool = False
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    by_name: Mapping[str, tuple[Entry, ...]] = field(default_factory=dict, compare=False)

    def law(self, name: str, container: Container) -> Law:
        """Return what the filter of `container` says of the call `name`."""
        return Law(self.default, tuple(self._rules(name, container)))

    def _rules(self, name: str, container: Container) -> Iterator[tuple[Clause, Action]]:
        for entry in self.by_name.get(name, ()):
            if entry.is_in(container) and entry.action != self.default:
                for clause in entry.clauses:
                    yield tuple(c for c in clause if not c.is_empty), entry.action

    def capabilities(self, name: str) -> tuple[str, ...]:
        """Return the capabilities that decide which entries for `name` count."""
        found: set[str] = set()
        for entry in self.by_name.get(name, ()):
            found |= entry.with_all | entry.without_any
        return tuple(sorted(found))


def index_entries(entries: tuple[Entry, ...]) -> dict[str, tuple[Entry, ...]]:
    """Return the entries of each name, in order."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        for name in dict.fromkeys(entry.names):
            found.setdefault(name, []).append(entry)
    return {name: tuple(mine) for name, mine in found.items()}
