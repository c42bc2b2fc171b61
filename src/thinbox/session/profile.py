"""Profiles for policy `profile`, learned from the records of runs.

Why it exists: a record holds addresses, a profile what is the same in every run of one kernel: pages counted
from the start of its text, and functions.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from thinbox.errors import InputError
from thinbox.isolation.policies import Policy
from thinbox.isolation.policies.profile import PAGES, Profile, build_profile
from thinbox.session.records import RunRecord

if TYPE_CHECKING:
    from thinbox.image.symbols import SymbolTable

_FETCH = "fetch"


def profile_of(records: Iterable[RunRecord], symbols: "SymbolTable", *, by: str = PAGES) -> bytes:
    """Return the profile (`thinbox.profile/1`, JSON) of what the calls of `records` fetched, killed calls left out.

    `symbols` are the kernel's of those runs. `by` is "pages" or "functions".

    Raises:
        InputError: no faults were kept (`RunOptions.keep_faults`), or the runs are of different kernels.
    """
    learned: list[tuple[str, int, str]] = []
    kernels = set()
    for record in records:
        kernels.add(record.kernel_sha256)
        if any(call.code_faults for call in record.calls) and not record.faults:
            raise InputError("a record without faults cannot be learned from; run it with keep_faults=True")
        calls = {call.seq: call for call in record.calls}
        for fault in record.faults:
            call = calls[fault.seq]
            symbol = symbols.text_symbol_at(fault.vaddr)
            if fault.kind == _FETCH and call.verdict != "killed" and symbol is not None:
                learned.append((call.name, fault.vaddr - symbols.text_start, symbol.name))
    if len(kernels) != 1:
        raise InputError(f"a profile is learned from runs of one kernel, not of {len(kernels)}")
    return build_profile(learned, kernels.pop(), by=by)


def require_same_kernel(policy: Policy, kernel_sha256: str) -> None:
    """Refuse a profile of another kernel, also inside a combination, with `InputError`."""
    for part in getattr(policy, "parts", (policy,)):
        if isinstance(part, Profile) and part.kernel_sha256 != kernel_sha256:
            raise InputError(
                f"{part.name} was learned on another kernel ({part.kernel_sha256[:12]}, this is {kernel_sha256[:12]})"
            )
