"""Profiles for policy `profile`, learned from the records of runs.

Why it exists: a record holds addresses, a profile what is the same in every run of one kernel: pages counted
from the start of its text, and functions.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinbox.address import PAGE_SHIFT, page_start
from thinbox.errors import InputError
from thinbox.foreign_text import MAX_JSON_BYTES, parse_json
from thinbox.host.code import load_object
from thinbox.host.files import show
from thinbox.host.trust import read_trusted
from thinbox.isolation.policies import Policy
from thinbox.isolation.policies.profile import PAGES, SCHEMA, Profile, build_profile
from thinbox.records.run import RunRecord

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts
    from thinbox.image.symbols import SymbolTable

_FETCH = "fetch"


@dataclass(frozen=True, slots=True)
class Pages:
    """What the calls of one name need: pages of text counted from its start, and addresses of data pages."""

    code: tuple[int, ...]
    data: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KnownPages:
    """For `--prefault`: what at least half of the calls of a name touched, by name."""

    calls: dict[str, Pages]
    kernel_sha256: str
    text_start: int
    """Where the kernel's text was: KASLR moves data too."""

    @classmethod
    def load(cls, path: Path) -> "KnownPages":
        """Read the `known` part of a profile.

        Raises:
            InputError: the file cannot be read, is no profile, or was learned by functions.
        """
        content = parse_json(read_trusted(path, MAX_JSON_BYTES), f"the profile {show(path)}")
        try:
            if content["schema"] != SCHEMA or content["by"] != PAGES:
                raise InputError(
                    f"{path} has schema {content['schema']!r} by {content['by']!r}; --prefault takes {SCHEMA} by pages"
                )
            calls = {
                str(name): Pages(tuple(map(int, pages["code"])), tuple(int(page, 16) for page in pages["data"]))
                for name, pages in content["known"].items()
            }
            kernel = content["kernel"]
            return cls(calls, str(kernel["sha256"]), int(kernel["text_start"], 16))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is no profile ({error!r}); make one with --save-profile") from error


@dataclass(frozen=True, slots=True)
class Touched:
    """One call that was not killed: its name, and the (address, kind) of every page it was granted."""

    name: str
    pages: tuple[tuple[int, str], ...]


def touched_by(record: RunRecord) -> list[Touched]:
    """Return what each isolated call of a run touched, killed calls left out.

    Raises:
        InputError: no faults were kept (`RunOptions.keep_faults`), or some were left out.
    """
    record.require_whole("a profile learned from it would miss what they touched")
    if any(call.code_faults for call in record.calls) and not record.faults:
        raise InputError("a record without faults cannot be learned from; run it with keep_faults=True")
    pages: dict[int, list[tuple[int, str]]] = {}
    for fault in record.faults:
        pages.setdefault(fault.seq, []).append((fault.vaddr, fault.kind))
    wanted = [call for call in record.calls if call.isolated and call.verdict != "killed"]
    return [Touched(call.name, tuple(pages.get(call.seq, ()))) for call in wanted]


def profile_of(records: Iterable[RunRecord], symbols: "SymbolTable", *, by: str = PAGES) -> bytes:
    """Return the profile (`thinbox.profile/1`, JSON) of what the calls of `records` fetched, killed calls left out.

    `symbols` are the kernel's of those runs. `by` is "pages" or "functions".

    Raises:
        InputError: no faults were kept (`RunOptions.keep_faults`), or the runs are of different kernels.
    """
    records = list(records)
    kernels = {record.kernel_sha256 for record in records}
    if len(kernels) != 1:
        raise InputError(f"a profile is learned from runs of one kernel, not of {len(kernels)}")
    return profile_from([call for record in records for call in touched_by(record)], symbols, kernels.pop(), by=by)


def profile_from(calls: Sequence[Touched], symbols: "SymbolTable", kernel_sha256: str, *, by: str = PAGES) -> bytes:
    """Return the profile of these calls: all code they fetched, and (by pages) what `--prefault` is to map."""
    learned: list[tuple[str, int, str]] = []
    counts: dict[str, Counter[tuple[str, int]]] = {}
    times = Counter(call.name for call in calls)
    for call in calls:
        seen = set()
        for vaddr, kind in call.pages:
            symbol = symbols.text_symbol_at(vaddr)
            if kind != _FETCH:
                seen.add(("data", page_start(vaddr)))
            elif symbol is not None:
                learned.append((call.name, vaddr - symbols.text_start, symbol.name))
                seen.add(("code", (vaddr - symbols.text_start) >> PAGE_SHIFT))
        counts.setdefault(call.name, Counter()).update(seen)
    if by != PAGES:
        return build_profile(learned, kernel_sha256, by=by)
    known = {}
    for name in sorted(counts):
        often = sorted(page for page, count in counts[name].items() if 2 * count >= times[name])
        known[name] = {
            "code": [page for kind, page in often if kind == "code"],
            "data": [f"{page:#x}" for kind, page in often if kind == "data"],
        }
    return build_profile(learned, kernel_sha256, by=by, known=known, text_start=symbols.text_start)


def require_known_here(known: KnownPages | None, facts: "KernelFacts") -> None:
    """Refuse what was learned on another kernel, or with this one elsewhere (KASLR), with `InputError`."""
    if known is None:
        return
    if known.kernel_sha256 != facts.sha256:
        raise InputError("the --prefault profile was learned on another kernel; make one with --save-profile")
    if known.text_start != facts.symbols.text_start:
        raise InputError(
            f"the --prefault profile was learned with the kernel at {known.text_start:#x}, this one is at "
            f"{facts.symbols.text_start:#x} (--kaslr); make one with --save-profile"
        )


def require_same_kernel(policy: Policy, kernel_sha256: str) -> None:
    """Refuse a profile of another kernel, also inside a combination, with `InputError`."""
    for part in getattr(policy, "parts", (policy,)):
        if isinstance(part, Profile) and part.kernel_sha256 != kernel_sha256:
            raise InputError(
                f"{part.name} was learned on another kernel ({part.kernel_sha256[:12]}, this is {kernel_sha256[:12]})"
            )


def read_policy_file(path: str) -> bytes:
    """Return the bytes of a policy's file; `InputError` if it cannot be read, or others may write it."""
    return read_trusted(path, MAX_JSON_BYTES)


def load_policy_object(spec: str) -> Any:
    """Return what `module:name` names; `InputError` if there is none (`host.code`)."""
    return load_object(spec, "policy")
