"""What a profile says of one call, in words: in which containers, with which arguments, and what else happens.

Why it exists: "certain arguments" helps nobody, and a condition told wrong is as bad as a call allowed in silence. So
the words are made from the filters of every container that differs, and set beside libseccomp's own.

Rules of this file:
- An answer is libseccomp's where entries are not plain (`Law.is_plain`), and open where libseccomp cannot be asked.
- Containers differ in the capabilities that entries for this call name, with and without each, and in their kernels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product

from thinbox.errors import InputError
from thinbox.planning.boolean_cover import cover
from thinbox.planning.classic_bpf import Instruction, call_words, filter_answers, parse_program
from thinbox.planning.libseccomp import LibraryRule, compile_apart
from thinbox.planning.seccomp_profile import (
    EQ,
    GE,
    GT,
    LE,
    LT,
    MASKED_EQ,
    NE,
    Action,
    Clause,
    Comparison,
    Container,
    Law,
    Profile,
)
from thinbox.sandbox.arguments import WORD, show_value
from thinbox.syscalls.table import MAX_ARGUMENTS, call_info, call_number

MOST_CAPABILITIES = 6
"""That one call may hang on: 64 containers. The containers' default profile has one."""
_MOST_TRIES = 4096
_SIGNS = {NE: "!=", LT: "<", LE: "<=", EQ: "==", GE: ">=", GT: ">"}
Kernel = tuple[int, int]


@dataclass(slots=True)
class Library:
    """libseccomp's programs, each compiled once; where one cannot be made, why."""

    programs: dict[tuple[str, Law], tuple[Instruction, ...] | str] = field(default_factory=dict)

    def program(self, name: str, law: Law) -> tuple[Instruction, ...] | str:
        """Return the program of `law` for the call `name`, or one line that says why there is none."""
        key = (name, law)
        if key not in self.programs:
            nr = call_number(name)
            rules = [
                LibraryRule(name, nr, action.code, tuple((c.index, c.op, c.value, c.value_two) for c in clause))
                for clause, action in law.rules
            ]
            try:
                self.programs[key] = parse_program(compile_apart(law.default.code, rules))
            except InputError as error:
                self.programs[key] = str(error)
        return self.programs[key]

    def answer(self, name: str, law: Law, args: tuple[int, ...]) -> Action | None:
        """Return what becomes of a call with six registers, None if that is open."""
        action = law.decide(args)
        if action is not None:
            return action
        program = self.program(name, law)
        if isinstance(program, str):
            return None
        (code,) = filter_answers(program, call_words(call_number(name), args))
        return Action(code)


@dataclass(frozen=True, slots=True)
class Situation:
    """One kernel, and containers on it (by capabilities) that get the same law."""

    kernel: Kernel
    containers: tuple[frozenset[str], ...]
    law: Law


@dataclass(frozen=True, slots=True)
class CallLaw:
    """All that a profile says of one call. `capabilities` decide; too many of them leave `situations` empty."""

    name: str
    capabilities: tuple[str, ...]
    situations: tuple[Situation, ...]

    @property
    def fixed(self) -> Action | None:
        """The answer that holds whatever the container and the arguments are, or None."""
        found = {situation.law.fixed for situation in self.situations}
        return next(iter(found)) if len(found) == 1 else None

    @property
    def never_allows(self) -> bool:
        """Whether no container and no arguments get the call allowed."""
        laws = [situation.law for situation in self.situations]
        return bool(laws) and not any(
            action.allows for law in laws for action in ([law.fixed] if law.fixed else _actions(law))
        )


def call_law(profile: Profile, name: str, kernels: Sequence[Kernel] = ()) -> CallLaw:
    """Return what `profile` says of the call `name` on these kernels; without one, on the newest."""
    capabilities = profile.capabilities(name)
    if len(capabilities) > MOST_CAPABILITIES:
        return CallLaw(name, capabilities, ())
    situations = []
    for kernel in kernels or (Container().kernel,):
        by_law: dict[Law, list[frozenset[str]]] = {}
        for chosen in product((False, True), repeat=len(capabilities)):
            held = frozenset(name for name, has in zip(capabilities, chosen, strict=True) if has)
            law = profile.law(name, Container(held, kernel))
            by_law.setdefault(law if law.fixed is None else Law(law.fixed), []).append(held)
        situations += [Situation(kernel, tuple(held), law) for law, held in by_law.items()]
    return CallLaw(name, capabilities, tuple(situations))


def describe_law(found: CallLaw, library: Library) -> str:
    """Return the whole law of a call as one line."""
    if not found.situations:
        return f"hangs on {len(found.capabilities)} capabilities: {', '.join(found.capabilities)}"
    texts: dict[Kernel, str] = {}
    for kernel in dict.fromkeys(situation.kernel for situation in found.situations):
        mine = [situation for situation in found.situations if situation.kernel == kernel]
        mine.sort(key=lambda s: (s.law.fixed is not None, -len(s.containers), _allows_all(s.law)))
        parts = [
            f"{show_containers(found.capabilities, s.containers)}: {_bracketed(found.name, s.law, library)}"
            for s in mine[1:]
        ]
        rest = show_law(found.name, mine[0].law, library)
        texts[kernel] = "; ".join([*parts, f"otherwise {rest}" if parts else rest])
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"on Linux {kernel[0]}.{kernel[1]}: {text}" for kernel, text in texts.items())


def show_containers(capabilities: Sequence[str], containers: Iterable[frozenset[str]]) -> str:
    """Return in which containers: `with CAP_A, or without CAP_B`."""
    wanted = [tuple(name in held for name in capabilities) for held in containers]
    ways = []
    for way in cover(wanted, len(capabilities)):
        words = [
            f"{'with' if has else 'without'} {n}" for n, has in zip(capabilities, way, strict=True) if has is not None
        ]
        ways.append(" and ".join(words) or "always")
    return ", or ".join(ways)


def show_law(name: str, law: Law, library: Library) -> str:
    """Return what one filter says of a call: `if A, or if B; EINVAL if C; otherwise EPERM`."""
    if law.fixed is not None:
        return law.fixed.show()
    by_action: dict[Action, list[str]] = {}
    for clause, action in law.rules:
        texts = by_action.setdefault(action, [])
        text = " and ".join(_show_comparison(name, comparison) for comparison in clause)
        if text not in texts:
            texts.append(text)
    ordered = sorted(by_action, key=lambda action: not action.allows)
    parts = [f"{action.show()} if {', or if '.join(by_action[action])}" for action in ordered]
    return "; ".join([*parts, f"otherwise {law.default.show()}"]) + _differences(name, law, library)


def _bracketed(name: str, law: Law, library: Library) -> str:
    text = show_law(name, law, library)
    return text if law.fixed is not None else f"[{text}]"


def _actions(law: Law) -> list[Action]:
    return [law.default, *(action for _clause, action in law.rules)]


def _allows_all(law: Law) -> bool:
    return law.fixed is not None and law.fixed.allows


def _show_comparison(name: str, comparison: Comparison) -> str:
    info = call_info(call_number(name))
    index, value = comparison.index, comparison.value
    known = info is not None and index < len(info.args)
    word = info.args[index].name if info is not None and known else f"argument {index}"
    if comparison.op == MASKED_EQ:
        wanted = comparison.value_two & value
        return f"{word} & {_number(name, index, value)} == {_number(name, index, wanted)}"
    return f"{word} {_SIGNS[comparison.op]} {_number(name, index, value)}"


def _number(name: str, index: int, value: int) -> str:
    return show_value(name, index, value) if value else "0"


def _differences(name: str, law: Law, library: Library) -> str:
    """Return "", or a warning: libseccomp answers some arguments otherwise than the entries say."""
    tries = list(islice(edge_arguments([clause for clause, _action in law.rules]), _MOST_TRIES))
    disputed = next((args for args in tries if len(law.candidates(args)) > 1), None)
    if law.is_plain and disputed is None:
        return ""
    program = library.program(name, law)
    if isinstance(program, str):
        return f" (open: {program})"
    nr = call_number(name)
    for args in tries:
        (code,) = filter_answers(program, call_words(nr, args))
        if Action(code) not in law.candidates(args):
            said = f"{Action(code).show()} for {_show_args(name, law, args)}"
            return f" (not as it is written: libseccomp's filter answers {said})"
    if disputed is not None:
        (code,) = filter_answers(program, call_words(nr, disputed))
        return (
            f" (entries disagree, and libseccomp's own order decides: {Action(code).show()} for "
            f"{_show_args(name, law, disputed)})"
        )
    return ""


def _show_args(name: str, law: Law, args: tuple[int, ...]) -> str:
    used = sorted({comparison.index for clause, _action in law.rules for comparison in clause})
    info = call_info(call_number(name))
    words = [a.name for a in info.args] if info else []
    return ", ".join(f"{words[i] if i < len(words) else f'argument {i}'}={_number(name, i, args[i])}" for i in used)


def used_arguments(found: CallLaw) -> tuple[int, ...]:
    """Return the positions that any of the laws looks at."""
    rules = [rule for situation in found.situations for rule in situation.law.rules]
    return tuple(sorted({comparison.index for clause, _action in rules for comparison in clause}))


def edge_arguments(clauses: Sequence[Clause]) -> Iterable[tuple[int, ...]]:
    """Yield registers around every value that is compared, in every combination."""
    values: Mapping[int, set[int]] = {index: {0} for index in range(MAX_ARGUMENTS)}
    for clause in clauses:
        for comparison in clause:
            edges = values[comparison.index]
            for base in (comparison.value, comparison.value_two & comparison.value):
                edges |= {base, base - 1 & WORD, base + 1 & WORD, base ^ 1 << 32, base & WORD >> 32}
            edges |= {WORD}
    yield from product(*(sorted(values[index]) for index in range(MAX_ARGUMENTS)))
