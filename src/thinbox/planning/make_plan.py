"""A plan out of evidence: one disposition for every call, with one sentence of reason.

Rules of this file (docs/plan.md says them for users):
- What the runs did not do is refused.
- A call that was killed under isolation is never given to the kernel as it is: it is emulated if thinbox can answer
  every form of it, else refused, and the reason says that a person must look.
- Limits on arguments are those seen; bits are limited to those seen; memory is not writable and executable unless
  it was.
"""

from dataclasses import dataclass

from thinbox.planning.evidence import MARKERS, CallEvidence, Evidence
from thinbox.sandbox.arguments import DECIDING, EXECUTABLE, width_mask
from thinbox.sandbox.handlers import SELF_CONTAINED
from thinbox.sandbox.plan import Answer, Condition, Disposition, Phase, Plan, Rule
from thinbox.sandbox.plan_file import DEFAULT_ERRNO
from thinbox.syscalls.table import call_info, call_number

KERNEL_MADE = {
    "restart_syscall": "the kernel makes a task execute it after a signal (kernel/signal.c)",
    "rt_sigreturn": "every signal handler ends in it (arch/x86/kernel/signal.c)",
    "exit_group": "every program ends in it",
}
"""Calls a program makes without having them in its code, or whose turn may not have come in a short run."""
ANY_TIME = frozenset({"brk", "mmap", "munmap", "mremap", "mprotect", "madvise", "futex", "rt_sigprocmask", "exit"})
"""Calls a program's memory and threads make when it suits them: a short run's last one is no end of start-up."""
MOST_VALUES = 32
"""Values of one argument a rule lists; an argument with more is left open, and the reason says so."""
_WRITE_EXEC = 6
_LOW_SIGNAL_BITS = 0x7F


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """`strict`: what was never isolated is refused, and the default kills. `emulate`: use emulations where they are
    whole."""

    name: str = "workload"
    strict: bool = False
    emulate: bool = True
    marker: tuple[str, ...] = ()


def make_plan(evidence: Evidence, options: PlanOptions) -> Plan:
    """Return the plan for a workload."""
    rules: dict[int, tuple[Rule, ...]] = {}
    for name, entry in evidence.calls.items():
        rules[call_number(name)] = (_rule(entry, evidence, options),)
    for name, why in KERNEL_MADE.items():
        nr = call_number(name)
        if nr not in rules:
            rules[nr] = (Rule(nr, Answer(Disposition.ISOLATE), reason=f"not seen, but {why}"),)
    default = Answer(Disposition.KILL) if options.strict else Answer(Disposition.DENY, DEFAULT_ERRNO)
    compat = Answer(Disposition.ISOLATE) if evidence.compat and not options.strict else default
    marker = tuple(call_number(name) for name in (options.marker or MARKERS)) if evidence.marked else ()
    commands = "; ".join(" ".join(command)[:120].replace("\n", " ") for command in evidence.commands[:3])
    source = f"thinbox plan, {evidence.runs} run{'s' if evidence.runs > 1 else ''} of: {commands}"
    return Plan(options.name, rules, default, compat, marker=marker, source=source)


def _rule(entry: CallEvidence, evidence: Evidence, options: PlanOptions) -> Rule:
    nr = call_number(entry.name)
    answer, reason = _judge(entry, evidence, options)
    when: tuple[Condition, ...] = ()
    if answer.disposition.reaches_kernel:
        when, remark = _limits(entry, nr)
        reason += remark
    phase = Phase.ALWAYS
    timed = entry.name not in KERNEL_MADE and entry.name not in ANY_TIME
    if evidence.marked and not entry.steady and timed and answer.disposition.reaches_kernel:
        phase = Phase.START
    if phase is Phase.START:
        reason += "; start-up only"
    return Rule(nr, answer, when, phase=phase, reason=reason, evidence=_with_attacks(entry, evidence))


def _judge(entry: CallEvidence, evidence: Evidence, options: PlanOptions) -> tuple[Answer, str]:
    whole = entry.name in SELF_CONTAINED
    isolate, emulate = Answer(Disposition.ISOLATE), Answer(Disposition.EMULATE)
    deny = Answer(Disposition.KILL) if options.strict else Answer(Disposition.DENY, DEFAULT_ERRNO)
    if entry.violations:
        what = entry.violations.most_common(1)[0][0]
        count = sum(entry.violations.values())
        reason = f"killed {count} of {entry.times} times under isolation ({what})"
        if whole:
            return emulate, f"{reason}, so it is answered outside the kernel"
        return deny, f"{reason}: an attack or a false kill; look before you allow it"
    if entry.refused == entry.times:
        return deny, "was refused by the plan of every run"
    if whole and options.emulate:
        return emulate, "answered outside the kernel, of which it then enters nothing"
    succeeded = sorted({a for p in entry.policies if p in evidence.attacks for a in evidence.attacks[p].succeeded})
    if entry.isolated:
        policies = " and ".join(sorted(entry.policies))
        reason = f"ran isolated {entry.isolated} times under {policies} without a violation"
        if succeeded:
            reason += f"; under that policy {len(succeeded)} of the attacks given still succeed"
        return isolate, reason
    if options.strict:
        return deny, "never ran isolated, so there is no evidence for it; record it with --isolate all"
    return isolate, "was only seen un-isolated; not tried isolated yet"


def _limits(entry: CallEvidence, nr: int) -> tuple[tuple[Condition, ...], str]:
    """Return conditions for the arguments that decide, and what the reason says of those left open."""
    info = call_info(nr)
    if info is None:
        return (), ""
    found, remark = [], ""
    deciding = DECIDING.get(entry.name)
    for index, values in sorted(entry.values.items()):
        name = info.args[index].name
        if EXECUTABLE.get(entry.name) == index:
            if not any(value & _WRITE_EXEC == _WRITE_EXEC for value in values):
                found.append(Condition(index, name, _WRITE_EXEC, (0, 2, 4)))
        elif deciding is not None and deciding.bits:
            seen = 0
            for value in values:
                seen |= value
            if entry.name == "clone":
                seen |= _LOW_SIGNAL_BITS
            found.append(Condition(index, name, ~seen & width_mask(nr, index), (0,)))
        elif len(values) <= MOST_VALUES:
            found.append(Condition(index, name, width_mask(nr, index), tuple(sorted(values))))
        else:
            remark += f"; {name} had {len(values)} values and is left open"
    return tuple(found), remark


def _with_attacks(entry: CallEvidence, evidence: Evidence) -> dict[str, object]:
    out: dict[str, object] = dict(entry.to_json())
    stopped = {a for p in entry.policies if p in evidence.attacks for a in evidence.attacks[p].stopped}
    if any(policy in evidence.attacks for policy in entry.policies):
        out["attacks_stopped"] = len(stopped)
    return out
