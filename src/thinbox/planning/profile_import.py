"""An existing seccomp profile against a workload: what it allows and the workload never called, and the reverse.

Why it exists: a profile that was written for everybody allows more than a workload needs, and may refuse what it does.
Recorded calls are put to the profile with their arguments, in every container that makes a difference.

Rules of this file:
- "Not allowed" is said of a call that no container gets; "allowed" of one that every container gets with any arguments;
  everything else is said with its conditions.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thinbox.errors import InputError
from thinbox.planning.profile_law import (
    CallLaw,
    Kernel,
    Library,
    call_law,
    describe_law,
    show_containers,
    used_arguments,
)  # fmt: skip
from thinbox.planning.seccomp_profile import Action, Profile
from thinbox.sandbox.arguments import show_value
from thinbox.syscalls.table import MAX_ARGUMENTS, all_calls, call_info, call_number

Made = Mapping[str, Iterable[tuple[int, ...]]]
"""The registers of every call made, by its name."""
_MOST_SHOWN = 3


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """`unused`: allowed and never called; `missing`: called and not allowed, and what happens; `conditional`: called,
    and allowed only so."""

    unused: tuple[str, ...]
    unused_conditional: Mapping[str, str]
    missing: Mapping[str, str]
    conditional: Mapping[str, str]
    allowed: int
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def render(self) -> str:
        """Return a few lines for people."""
        lines = [f"allows {self.allowed} calls, of which this workload never made {len(self.unused)}:"]
        lines.append("  " + (" ".join(self.unused) or "none"))
        if self.unused_conditional:
            lines.append(f"and {len(self.unused_conditional)} more under conditions, never made either:")
            lines += [f"  {name}: {why}" for name, why in self.unused_conditional.items()]
        missing = [f"{name} ({why})" for name, why in self.missing.items()]
        lines.append("made and not allowed: " + (", ".join(missing) or "none"))
        if self.conditional:
            lines.append("made, and allowed under conditions only:")
            lines += [f"  {name}: {why}" for name, why in self.conditional.items()]
        if self.unknown:
            lines.append(f"names {len(self.unknown)} that are no x86-64 call, which engines leave out:")
            lines.append("  " + " ".join(self.unknown))
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def made_calls(runs: Iterable[Mapping[str, Any]]) -> dict[str, set[tuple[int, ...]]]:
    """Return the calls of recorded runs, by name, with their registers; those by 32-bit entry and `gather_evidence`'s
    exceptions left out.

    Raises:
        InputError: a run that lacks what its schema promises.
    """
    found: dict[str, set[tuple[int, ...]]] = {}
    known = {info.name for info in all_calls()}
    try:
        for run in runs:
            for row in run["calls"]:
                starts = row["seq"] == 0 and row["name"] == "execve"
                if not starts and row["name"] in known and row.get("disposition") != "populate":
                    found.setdefault(row["name"], set()).add(tuple(row["args"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"a run lacks what its schema promises ({error!r}); record it again") from error
    return found


def kernel_versions(releases: Iterable[str]) -> tuple[Kernel, ...]:
    """Return version and major revision of each release, as docker takes them (`6.1.0-57-cloud-amd64`: 6.1)."""
    matches = [re.match(r"(\d{1,4})\.(\d{1,4})", release) for release in releases]
    return tuple(sorted({(int(match[1]), int(match[2])) for match in matches if match}))


def compare_profile(
    profile: Profile, made: Made, kernels: Sequence[Kernel] = (), *, compat_calls: int = 0
) -> ProfileReport:
    """Set a profile beside the calls a workload made on these kernels; `compat_calls` of them by 32-bit entry."""
    library = Library()
    laws = {info.name: call_law(profile, info.name, kernels) for info in all_calls()}
    allowed = {name for name, law in laws.items() if law.fixed is not None and law.fixed.allows}
    conditional = {name: law for name, law in laws.items() if law.fixed is None and not law.never_allows}
    missing: dict[str, str] = {}
    limited: dict[str, str] = {}
    for name in sorted(made):
        if name in allowed:
            continue
        refused, rest = _judge(laws[name], made[name], library)
        if refused:
            missing[name] = refused
        if name in conditional:
            limited[name] = describe_law(laws[name], library) + rest
    notes = list(profile.notes)
    if compat_calls:
        done = "filters by the same names" if profile.compat else "has its thread killed for"
        notes.append(f"made {compat_calls} 32-bit calls, which an engine {done}")
    return ProfileReport(
        unused=tuple(sorted(allowed - set(made))),
        unused_conditional={
            name: describe_law(law, library) for name, law in sorted(conditional.items()) if name not in made
        },
        missing=missing,
        conditional=limited,
        allowed=len(allowed),
        unknown=profile.unknown,
        notes=tuple(notes),
    )


def _judge(law: CallLaw, made: Iterable[tuple[int, ...]], library: Library) -> tuple[str, str]:
    """Return what of the calls made no container gets ("" for nothing), and which containers get them all."""
    if not law.situations:
        return "", ""
    used = used_arguments(law)
    kinds = sorted({tuple(args[i] for i in used) for args in made})
    answers = {kind: [_answer(law, s.law, used, kind, library) for s in law.situations] for kind in kinds}
    refused = [kind for kind, found in answers.items() if all(a is not None and not a.allows for a in found)]
    shown = ""
    if refused:
        actions = list(dict.fromkeys(a.show() for kind in refused for a in answers[kind] if a is not None))
        shown = " or ".join(actions)
        if len(refused) < len(kinds):
            examples = ["; ".join(_show(law.name, i, v) for i, v in zip(used, k, strict=True)) for k in refused]
            more = f", and {len(examples) - _MOST_SHOWN} more" if len(examples) > _MOST_SHOWN else ""
            shown = f"{', '.join(examples[:_MOST_SHOWN])}{more}: {shown}"
    if len(refused) == len(kinds):
        return shown, ""
    others = [found for kind, found in answers.items() if kind not in refused]
    passing = [
        situation
        for at, situation in enumerate(law.situations)
        if all((action := found[at]) is not None and action.allows for found in others)
    ]
    what = "the other calls made pass" if refused else "the calls made pass"
    if len(passing) == len(law.situations):
        return shown, f"; {what}"
    if not passing:
        return shown, f"; {what} in no container for certain"
    containers = {held for situation in passing for held in situation.containers}
    return shown, f"; {what} {show_containers(law.capabilities, containers)}"


def _answer(law: CallLaw, mine: Any, used: Sequence[int], kind: Sequence[int], library: Library) -> Action | None:
    args = [0] * MAX_ARGUMENTS
    for index, value in zip(used, kind, strict=True):
        args[index] = value
    answer: Action | None = library.answer(law.name, mine, tuple(args))
    return answer


def _show(name: str, index: int, value: int) -> str:
    info = call_info(call_number(name))
    word = info.args[index].name if info is not None and index < len(info.args) else f"argument {index}"
    return f"{word}={show_value(name, index, value)}"
