"""An existing seccomp profile against a workload: what it allows and the workload never called, and the reverse.

Source: OCI runtime-spec `linux.seccomp`, docker's format (`archMap`, `includes`, `excludes`), and a whole
`config.json`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinbox.errors import InputError
from thinbox.host.files import load_json
from thinbox.syscalls.table import all_calls

_ALLOWING = frozenset({"SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"})


@dataclass(frozen=True, slots=True)
class Profile:
    """`allowed` calls of x86-64; `conditional` ones with what they ask for (a capability, a kernel, arguments);
    `unknown` names of no x86-64 call."""

    default_allows: bool
    allowed: frozenset[str]
    conditional: Mapping[str, str]
    unknown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """`unused`: allowed and never called; `missing`: called and not allowed; `conditional`: called, and allowed
    only so."""

    unused: tuple[str, ...]
    unused_conditional: Mapping[str, str]
    missing: tuple[str, ...]
    conditional: Mapping[str, str]
    allowed: int

    def render(self) -> str:
        """Return a few lines for people."""
        lines = [f"allows {self.allowed} calls, of which this workload never made {len(self.unused)}:"]
        lines.append("  " + (" ".join(self.unused) or "none"))
        if self.unused_conditional:
            lines.append(f"and {len(self.unused_conditional)} more under conditions, never made either:")
            lines += [f"  {name}: {why}" for name, why in self.unused_conditional.items()]
        lines.append("made and not allowed: " + (" ".join(self.missing) or "none"))
        if self.conditional:
            lines.append("made, and allowed under conditions only:")
            lines += [f"  {name}: {why}" for name, why in self.conditional.items()]
        return "\n".join(lines)


def load_profile(path: Path) -> Profile:
    """Read a profile; InputError if it is none."""
    data = load_json(path)
    try:
        return parse_profile(data)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} is no seccomp profile of docker's or OCI's kind ({error!r})") from error


def parse_profile(data: Mapping[str, Any]) -> Profile:
    """Return what a profile allows on x86-64; KeyError, TypeError or AttributeError for another object."""
    data = (data.get("linux") or {}).get("seccomp") or data
    known = {info.name for info in all_calls()}
    default_allows = data["defaultAction"] in _ALLOWING
    allowed, conditional, refused, unknown = set(), {}, set(), set()
    for entry in data.get("syscalls") or []:
        names = entry.get("names") or [entry["name"]]
        unknown |= set(names) - known
        if entry["action"] not in _ALLOWING:
            if not entry.get("args"):
                refused |= set(names)
            continue
        condition = _condition(entry)
        if condition is None:
            continue
        for name in set(names) & known:
            if condition:
                conditional[name] = condition
            else:
                allowed.add(name)
    if default_allows:
        allowed |= known - refused
    rest = {name: why for name, why in sorted(conditional.items()) if name not in allowed}
    return Profile(default_allows, frozenset(allowed), rest, tuple(sorted(unknown)))


def _condition(entry: Mapping[str, Any]) -> str | None:
    """Return what an entry asks for, "" for nothing, None if it is not for x86-64."""
    includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
    arches = includes.get("arches")
    if arches and not {"amd64", "x86_64"} & set(arches):
        return None
    if {"amd64", "x86_64"} & set(excludes.get("arches") or ()):
        return None
    parts = [f"with {name}" for name in includes.get("caps") or ()]
    parts += [f"without {name}" for name in excludes.get("caps") or ()]
    if includes.get("minKernel"):
        parts.append(f"from Linux {includes['minKernel']}")
    if entry.get("args"):
        parts.append("certain arguments")
    return ", ".join(parts)


def compare_profile(profile: Profile, made: Iterable[str]) -> ProfileReport:
    """Set a profile beside the names of the calls a workload made."""
    called = set(made)
    return ProfileReport(
        unused=tuple(sorted(profile.allowed - called)),
        unused_conditional={n: w for n, w in profile.conditional.items() if n not in called},
        missing=tuple(sorted(called - profile.allowed - set(profile.conditional))),
        conditional={n: w for n, w in profile.conditional.items() if n in called},
        allowed=len(profile.allowed),
    )
