"""The matrix: every exploit under every policy and view, in several processes.

Why it exists: whether a policy is worth its faults shows only beside the others, on the same exploits.

Rules of this file:
- A unit of work is one policy with one view: its runner is made once, and tries all exploits.
- Workers are forked, so that the scenario (the frozen RAM, the live text) is shared, not sent.
- Rows do not depend on how many jobs there are.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.attacks.attempt import Try
from thinbox.attacks.exploit import Exploit, choose_exploits
from thinbox.attacks.exploit_runner import GUEST_DOWN, ExploitRunner
from thinbox.attacks.scenario import Scenario, make_scenario
from thinbox.attacks.views import NO_VIEW, require_view
from thinbox.errors import MachineError
from thinbox.isolation.policies import Policy, load_policy
from thinbox.machine.cpu_model import cpu_model
from thinbox.records.attack import CONTAINED, DETECTED, SUCCEEDED, UNISOLATED, AttackRecord, AttackRow
from thinbox.records.profile import load_policy_object, profile_of, read_policy_file, require_same_kernel

if TYPE_CHECKING:
    from thinbox.boot.ready import ReadyGuest

LEARNED = "profile"
"""Stands for a profile learned in advance: the same calls as the attacks', by the same process, without the bugs."""
POLICIES = (
    UNISOLATED,
    "sci",
    "patch",
    "function",
    "live",
    "transfer",
    "callgraph",
    "function+transfer",
    LEARNED,
    f"{LEARNED}+transfer",
    f"{LEARNED}+transfer+guard",
    "live+guard",
)
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class MatrixOptions:
    """What to try: names (none: all), policies, views; in how many processes."""

    attacks: tuple[str, ...] = ()
    policies: tuple[str, ...] = POLICIES
    views: tuple[str, ...] = (NO_VIEW,)
    jobs: int = 1
    on_violation: str = "undo"
    say: Say = lambda _line: None
    step: Say = lambda _line: None


@dataclass(frozen=True, slots=True)
class _Work:
    """What the workers inherit."""

    guest: "ReadyGuest"
    scenario: Scenario
    exploits: tuple[Exploit, ...]
    policies: dict[str, Policy]
    on_violation: str


_inherited: list[_Work] = []
"""The work of the run under way, for forked workers to find."""


def run_matrix(guest: "ReadyGuest", options: MatrixOptions) -> AttackRecord:
    """Try the exploits named under each policy and view.

    Raises:
        InputError: an unknown name, policy or view.
        MachineError: the machine failed, or a worker died.
    """
    exploits = choose_exploits(options.attacks)
    for view in options.views:
        require_view(view)
    started = time.perf_counter()
    options.say("preparing an attacker and a victim")
    scenario = make_scenario(guest)
    learned = _learn(guest, scenario, exploits) if any(LEARNED in _parts(name) for name in options.policies) else b""
    policies = {name: _load(name, learned, guest) for name in options.policies}
    work = _Work(guest, scenario, exploits, policies, options.on_violation)
    # Nothing is isolated under policy none, so no view hides anything.
    pairs = [(policy, view) for policy in options.policies for view in options.views if policy != UNISOLATED]
    if UNISOLATED in options.policies:
        pairs.insert(0, (UNISOLATED, NO_VIEW))
    rows: list[AttackRow] = []
    for number, found in enumerate(_run_units(work, pairs, options.jobs)):
        rows += found
        options.step(f"{number + 1} of {len(pairs)} combinations of policy and view")
    order = {exploit.name: number for number, exploit in enumerate(exploits)}
    rows.sort(key=lambda row: order[row.attack])
    return AttackRecord(guest.facts.release, guest.facts.sha256, rows, time.perf_counter() - started)


def _parts(policy: str) -> list[str]:
    return policy.split("+")


def _load(name: str, learned: bytes, guest: "ReadyGuest") -> Policy:
    """Load a policy; the part `profile` is the one learned in advance."""
    if name == UNISOLATED:
        return load_policy("sci")
    spec = "+".join(f"{LEARNED}:" if part == LEARNED else part for part in _parts(name))
    policy = load_policy(spec, lambda path: learned if not path else read_policy_file(path), load_policy_object)
    require_same_kernel(policy, guest.facts.sha256)
    return policy


def _learn(guest: "ReadyGuest", scenario: Scenario, exploits: tuple[Exploit, ...]) -> bytes:
    """Return a profile of the attacks' calls, made without their bugs."""
    runner = ExploitRunner(guest, scenario, load_policy("sci"))
    records = []
    for exploit in exploits:
        runner.run(exploit, isolated=True, with_bugs=False)
        if runner.tenant.record.faults:
            records.append(runner.tenant.record)
    return profile_of(records, guest.facts.symbols)


def _run_units(work: _Work, pairs: list[tuple[str, str]], jobs: int) -> Iterator[list[AttackRow]]:
    """Yield the rows of each pair, in order."""
    _inherited.append(work)
    try:
        if min(jobs, len(pairs)) <= 1:
            yield from map(_run_unit, pairs)
            return
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        from concurrent.futures.process import BrokenProcessPool

        fork = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(min(jobs, len(pairs)), mp_context=fork, initializer=_ignore_interrupts) as pool:
            try:
                yield from pool.map(_run_unit, pairs)
            except BrokenProcessPool as error:
                raise MachineError("a process that tried attacks died; try again with --jobs 1") from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    finally:
        _inherited.clear()


def _ignore_interrupts() -> None:
    """Ctrl-C is the parent's business: it ends the pool."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run_unit(pair: tuple[str, str]) -> list[AttackRow]:
    (work,) = _inherited
    policy, view = pair
    runner = ExploitRunner(work.guest, work.scenario, work.policies[policy], work.on_violation, view)
    rows = []
    for exploit in work.exploits:
        try:
            found = runner.run(exploit, isolated=policy != UNISOLATED)
        except MachineError as error:
            raise MachineError(f"attack {exploit.name} under policy {policy}: {error}") from error
        rows.append(make_row(exploit, policy, view, found, cpu_model(work.guest.params.cpu).features))
    return rows


def make_row(exploit: Exploit, policy: str, view: str, found: Try, cpu_features: tuple[str, ...] = ()) -> AttackRow:
    """Say what came of a try on a CPU with these features."""
    seen = found.violation
    if seen is not None:
        return AttackRow(
            exploit.name,
            policy,
            view,
            DETECTED,
            exploit.against,
            found.step,
            seen.rule,
            seen.vaddr,
            seen.symbol,
            seen.offset,
            seen.kind,
            seen.undone,
            seen.reason,
        )
    fell = found.problem == GUEST_DOWN and policy != UNISOLATED
    outcome = SUCCEEDED if found.reached or fell else CONTAINED
    prevented_by: tuple[str, ...] = ()
    if policy == UNISOLATED and outcome != SUCCEEDED:
        prevented_by = tuple(name for name in exploit.lacking if name in cpu_features)
    return AttackRow(
        exploit.name,
        policy,
        view,
        outcome,
        exploit.against,
        found.step,
        reason=found.problem or "",
        prevented_by=prevented_by,
    )
