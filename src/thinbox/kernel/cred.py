"""Credentials: the ids, capabilities and user namespace of a task.

One shape is known, of Linux 5.10 to 7.3: `task_struct.cred`, whose members from `uid` to `cap_ambient` lie in one run
(include/linux/cred.h, struct cred; `securebits` is among them).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "neither views nor policy guard know who a task is"
_RUN = ("uid", "gid", "fsuid", "fsgid", "securebits", "cap_inheritable", "cap_effective", "cap_ambient")
"""In the order in which a run has them; all of the first to the last is compared by policy `guard`."""


@dataclass(frozen=True, slots=True)
class CredShape:
    """Offsets; ids and capabilities are `run_bytes` from `run_at` on."""

    task_cred_at: int
    task_real_cred_at: int
    usage_at: int
    run_at: int
    run_bytes: int
    file_ids_at: tuple[int, int]
    effective_at: int
    namespace_at: int
    first_namespace_at: int
    groups_at: int


def probe_cred(probe: Probe) -> CredShape:
    """Find it; what is missing is noted in `probe`."""
    places = [probe.offset(f"cred.{member}") for member in _RUN]
    size = probe.member_size("cred.cap_ambient")
    if places != sorted(places) and not probe.missing:
        probe.lacks("struct cred with its ids and capabilities in one run")
    pointers = [probe.offset(f"cred.{member}") for member in ("user_ns", "group_info")]
    if min(pointers) < places[-1] + size and not probe.missing:
        probe.lacks("struct cred with its namespace and groups behind its capabilities")
    return CredShape(
        task_cred_at=probe.offset("task_struct.cred"),
        task_real_cred_at=probe.offset("task_struct.real_cred"),
        usage_at=probe.offset("cred.usage"),
        run_at=places[0],
        run_bytes=places[-1] + size - places[0],
        file_ids_at=(probe.offset("cred.fsuid"), probe.offset("cred.fsgid")),
        effective_at=probe.offset("cred.cap_effective"),
        namespace_at=pointers[0],
        first_namespace_at=probe.symbol("init_user_ns"),
        groups_at=pointers[1],
    )


def find_cred_shape(facts: "KernelFacts") -> CredShape:
    """Return it; `MissingFactError` if this kernel keeps credentials in another way."""
    probe = Probe(facts, "credentials", DISABLES)
    found = probe_cred(probe)
    probe.check()
    return found
