"""What a refusal means and what to do about it, by rule.

Why it exists: a verdict that cannot be acted on is noise. Every rule that can refuse has its words here, and a test
holds this table against the policies.

Source: docs/rules.md, docs/policies, docs/views.md, docs/plan.md.
"""

import re
from dataclasses import dataclass

from thinbox.isolation.verdict import PLANNED, Violation


@dataclass(frozen=True, slots=True)
class Remedy:
    """One rule: what its refusal means, and what to do."""

    meaning: str
    action: str


_FALSE_KILL = (
    "If the program is trusted, this may be a false kill: try policy `live`, which killed none of the audit's corpus, "
    "and keep the sentence as evidence. If it is not, this is what an attack looks like; keep the policy."
)
_VIEW = (
    "If the tenants are meant to share it, do not hide it (view `permissive` or `none`), or give each a root file "
    "system and sockets of its own. Else a tenant reached for what is not its own: find out how."
)
_STACK = (
    "A forged or broken stack is how return-oriented chains run. In trusted code look for an unwinder's blind spot at "
    "that symbol; policy `live` does not judge stacks."
)
REMEDIES = {
    "4": Remedy(
        "The call was left by another way than its return: the stack or the saved registers were changed.",
        "Treat it as an attack. If a trusted program does this each time, report it: an exit of the call was missed.",
    ),
    "6b": Remedy(
        "Code jumped into the middle of a function that this call had not entered at its start, as gadgets and "
        "corrupted pointers do.",
        _FALSE_KILL,
    ),
    "6b (posted)": Remedy(
        "The code posted in 2019 allows the middle of a function only if the page before holds an address it recorded; "
        "a function of three pages is enough to be killed.",
        "Use policy `sci` or `live` for work; `patch` is here to be measured.",
    ),
    "6c": Remedy(
        "Code outside every known symbol of the kernel and its modules was fetched.",
        "BPF programs and trampolines are such code: policy `live` allows those that the kernel lists. Anything else "
        "is code that nobody is known to have put there.",
    ),
    "limits (posted)": Remedy(
        "The posted code holds at most 256 pages and 64 recorded addresses a call, and refuses everything past that. "
        "The call was ordinary.",
        "Use policy `sci` or `live` for work; `patch` is here to be measured.",
    ),
    "T0": Remedy(
        "The bytes before the target decode to no instructions as the compiler left them.",
        "Look at the symbol: hand-written assembly, or code that was overwritten.",
    ),
    "T1": Remedy("The instruction that ran last does not lead where the call went on.", _FALSE_KILL),
    "T2": Remedy(
        "An indirect jump or call did not hit the start of a function: a corrupted function pointer looks like this.",
        _FALSE_KILL,
    ),
    "T3": Remedy(
        "A return went where no call of this call's own had been made: a return-oriented chain looks like this.", _STACK
    ),
    "T5": Remedy(
        "An exception returned to where the kernel's own table fixes nothing up.",
        "Treat it as an attack on a saved frame; report it if trusted code does this each time.",
    ),
    "T6": Remedy("The stack does not lead down to the call's entry, frame by frame.", _STACK),
    "G": Remedy(
        "In the static call graph nothing leads from this call's handler to that function.",
        "If the program is trusted, the graph lacks an edge, an indirect call of a new kind: use `live`, or report it.",
    ),
    "G1": Remedy(
        "The task's ids or capabilities changed in a call that cannot change them: a privilege was written.",
        "Treat it as an attack. Nothing of the kernel's own does this.",
    ),
    "G2": Remedy(
        "The path of a program that the kernel starts as root (modprobe, core pattern) changed in a call that cannot "
        "change it.",
        "Treat it as an attack. Nothing of the kernel's own does this.",
    ),
    "G3": Remedy(
        "The task's ids or capabilities changed while it was in no call: an interrupt was made to do it.",
        "Treat it as an attack. Nothing of the kernel's own does this.",
    ),
    "G4": Remedy(
        "The kernel was about to start, as root, a program that it never starts.",
        "Treat it as an attack, unless a driver of yours starts programs that thinbox does not know of; report those.",
    ),
    "G5": Remedy(
        "The call changed the ids or capabilities of another task than its own, which no call does.",
        "Treat it as an attack by the call that is named; the other task was not to blame.",
    ),
    "G6": Remedy(
        "A new task began with other ids or capabilities than those of the one that made it.",
        "Treat it as an attack. A child has its parent's, or all of them in a new user namespace of its own.",
    ),
    "G7": Remedy(
        "A call that may change ids gave its task ids, capabilities, groups or a user namespace that it cannot give.",
        "Treat it as an attack: without CAP_SETUID a task exchanges the ids it has, and no call takes it into the "
        "first user namespace.",
    ),
    "G8": Remedy(
        "A user namespace had a map of ids that nobody wrote through /proc/PID/uid_map or gid_map, or that its writer "
        "may not write.",
        "Treat it as an attack: without CAP_SETUID in the namespace above a task maps its own id and no other. A map "
        "that one task opens and another with other ids writes is taken for one, too.",
    ),
    "P": Remedy(
        "The profile was learned from runs in which this call never used that code.",
        "If the program is trusted, learn again with this input among the runs (`--save-profile`); a profile knows "
        "only what it was shown.",
    ),
    "V1": Remedy("The memory, pipe, socket buffer or page table of another tenant was touched.", _VIEW),
    "V2": Remedy("A kernel object charged to another tenant was touched.", _VIEW),
    "V3": Remedy("A page of a file was touched that is another tenant's, or not for this one to read.", _VIEW),
    "V4": Remedy(
        "A free page was touched, which still holds what its last owner left.",
        "Reading freed memory is a bug or an attack; under view `none` it goes unseen.",
    ),
    "V5": Remedy(
        "It cannot be told whose the page is, and view `strict` gives nothing away in doubt.",
        "View `permissive` grants such pages; compare the two before you trust the program less.",
    ),
    "V7": Remedy(
        "A page table of the tenant's own was made to map what is not its to map: another tenant's page, the kernel's, "
        "or a forged table.",
        "Treat it as an attack. A driver that maps kernel objects into programs in a way of its own would look alike.",
    ),
    "V8": Remedy(
        "The page cache of a file was written by a task that may not write the file, as Dirty Pipe did.",
        "Treat it as an attack, unless the task may write by a group or an access list and had not opened the file.",
    ),
    "W1": Remedy(
        "The kernel's text, its read-only data, the vDSO or the page of zeros was to be written, or a page table was "
        "made to lie there.",
        "Treat it as an attack: after its boot the kernel writes them by its own patching of text only.",
    ),
    "W2": Remedy(
        "The kernel was to run code from user memory, from a file's page cache, or from another page in place of its "
        "text.",
        "Treat it as an attack: page tables of the kernel's were forged, or SMEP was taken off.",
    ),
    "W3": Remedy(
        "User code, or the kernel on its behalf, reached a page by a page table that was not the tenant's to map.",
        "Treat it as an attack. A driver that maps kernel objects into programs in a way of its own would look alike.",
    ),
    "pool": Remedy(
        "thinbox had no page left for the tenant's page tables: it made more of them than there is room for.",
        "Run fewer tasks at once (`tasks` in a file of tenants), or fewer tenants; all share a room that is fixed.",
    ),
}
"""By rule as a verdict names it. A combination of policies says `RULE of POLICY`."""

BY_PLAN = Remedy(
    "A plan kills this call, or this argument of it.",
    "If the workload needs it, record a run that makes it and make the plan again (`thinbox plan`); else the plan did "
    "its work.",
)
UNKNOWN = Remedy(
    "A rule of a policy of your own, or of a later thinbox.",
    "The reason in the sentence is the policy's; ask whoever wrote it.",
)
REFUSED = Remedy(
    "A plan does not allow this call, or this argument of it; the kernel did not run it.",
    "If the workload needs it, record a run that makes it and make the plan again (`thinbox plan RUN.json … -o PLAN`); "
    "else the plan did its work.",
)

_OF = re.compile(r" of .*", re.DOTALL)


def plain_rule(rule: str) -> str:
    """Return the rule without the part of a combination that refused: `6b of sci` is `6b`."""
    return _OF.sub("", rule)


def remedy_of(violation: Violation) -> Remedy:
    """Return what to say of a violation."""
    if violation.kind == PLANNED:
        return BY_PLAN
    return REMEDIES.get(plain_rule(violation.rule), UNKNOWN)
