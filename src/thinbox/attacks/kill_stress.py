"""The kill stress: an attacker is killed over and over, while the victim goes on with its work.

Why it exists: a kill is right only if nobody else feels it. Each kill falls into a call that holds a lock the victim
needs, or has half done something; what is left behind shows in the victim's time and output, and in what the
guest counts of itself.

Rules of this file:
- All is virtual time; nothing depends on the host.
- The counts are the guest's own: /proc/meminfo, /proc/loadavg, /proc/stat, /proc/locks, read by a process of it.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from thinbox.attacks.bug import REGISTERS
from thinbox.attacks.exploit_runner import ExploitRunner
from thinbox.attacks.hijack import TARGET_FUNCTION, TARGET_OFFSET
from thinbox.attacks.scenario import DONE, GO, SHARED, VICTIM_AREA, Scenario
from thinbox.guest.agent_channel import GuestScript, Park, call, must
from thinbox.harness.limits import Limits
from thinbox.harness.process import AREA_BYTES, SIGCHLD
from thinbox.harness.runner import Ending, await_end
from thinbox.session.opened import RestoredGuest

if TYPE_CHECKING:
    from thinbox.attacks.payload import LiveText
    from thinbox.enforcement.enforcer import Enforcer

_CHILD_AREA = 3 * AREA_BYTES
_BUFFERS = 32 << 10
_O_CREAT_RDWR, _AF_UNIX, _SOCK_STREAM = 0o102, 1, 1
_SETTLE = (0).to_bytes(8, "little") + (300_000_000).to_bytes(8, "little")
COUNTS = ("MemFree", "AnonPages", "KernelStack", "PageTables", "Slab", "SUnreclaim", "Shmem")
"""Lines of /proc/meminfo, in kB."""
_LIMIT_NS = 120 * 1_000_000_000
_MOST_CALLS, _MOST_EXCEPTIONS = 1_000_000, 10_000_000
"""A thousand kills and a thousand rounds make some 30,000 calls; each new process takes dozens of page faults."""
PLACES = ("vfs_mkdir", "generic_perform_write", "ksys_lseek")
"""Where the bugs are: a corrupted function pointer, called by mkdir (the folder locked), by write (the file locked),
and by lseek (nothing locked)."""


@dataclass(slots=True)
class KillStressResult:
    """`kills` the attacker died; the victim's rounds done, and how long they took; the guest's counts afterwards.

    `is_wounded`: the guest did not come to the end of it within the limit of virtual time.
    """

    kills: int = 0
    undone: int = 0
    rounds: int = 0
    victim_ns: int = 0
    output: list[bytes] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    tasks: str = ""
    blocked: str = ""
    locks: str = ""
    is_wounded: bool = False


class KillStress(ExploitRunner):
    """A scenario in which the attacker sends children to their death."""

    def stress(self, kills: int, rounds: int, limit_ns: int = _LIMIT_NS) -> KillStressResult:
        """Let the victim do `rounds` of work while `kills` children of the attacker are killed."""
        record = self.begin()
        wanted = _Stress(self.opened, self.enforcer, self.scenario, kills, rounds)
        scripts = {
            0: wanted.attacker(),
            self.checkpoint.agent_task: await_end(),
            self.scenario.victim.task: wanted.victim(),
        }
        try:
            ending = self.drive(
                wanted, scripts, Limits(limit_ns, limit_ns, _MOST_CALLS, _MOST_EXCEPTIONS), stops_at_kill=False
            )
        finally:
            wanted.close()
        result = wanted.result
        result.kills, result.undone = len(record.kills), sum(kill.undone for kill in record.kills)
        result.is_wounded = ending is not Ending.PARKED
        return result


class _Stress:
    """One stress: how many kills and rounds are wanted, how far it is, and what came of it."""

    def __init__(
        self, opened: RestoredGuest, enforcer: "Enforcer", scenario: Scenario, kills: int, rounds: int
    ) -> None:
        self._machine, self._view, self._agent = opened.machine, opened.view, opened.agent
        self._tasks, self._attacker_task = enforcer.task_list, scenario.attacker_task
        self._kills_wanted, self._rounds_wanted = kills, rounds
        self._sent = self._file = 0
        self.result = KillStressResult()
        self._hooks = [self._send_astray(scenario.text, place) for place in PLACES]

    def isolates(self, _nr: int) -> bool:
        """The attacker's children only: each makes one call."""
        return self._view.current != self._attacker_task

    def _send_astray(self, text: "LiveText", function: str) -> Callable[[], None]:
        place, register = text.indirect_call(function)
        target = text.function(TARGET_FUNCTION) + TARGET_OFFSET

        def happen() -> None:
            current = self._view.current
            if current in self._tasks.tasks and current != self._attacker_task:
                self._machine.cpu.regs[REGISTERS[register]] = target

        return self._machine.cpu.add_code_hook(place, happen)

    def close(self) -> None:
        """Take the bugs away."""
        for take_away in self._hooks:
            take_away()

    # -- the attacker -------------------------------------------------------------------------------
    def attacker(self) -> GuestScript:
        """Send one child after the other, let the victim end, and count what is left."""
        place = self._agent.scratch + _BUFFERS
        self._agent.adopt_every_child(self._new_process, _CHILD_AREA)
        file = yield from must("open", "plain", _O_CREAT_RDWR, 0o600)
        yield from must("write", GO[1], b"g", 1)
        for number in range(self._kills_wanted):
            self._sent = number
            self._file = file
            child = yield from must("clone", SIGCHLD, 0, 0, 0, 0)
            yield from must("wait4", child, place, 0, 0)
        yield from must("read", DONE[0], place, 1)
        yield from must("nanosleep", _SETTLE, 0)
        yield from self._count(place)
        yield Park()

    def _new_process(self) -> GuestScript:
        """Whose child a new process is decides what it does."""
        task = self._view.current
        # It makes one call and is no more; the next process may have the same task_struct.
        self._agent.forget(task)
        if task in self._tasks.tasks:
            yield from self._doomed()
        else:
            yield from call("exit_group", 7)

    def _doomed(self) -> GuestScript:
        choice = self._sent % len(PLACES)
        if choice == 0:
            yield from call("mkdir", f"{SHARED}/a", 0o755)
        elif choice == 1:
            yield from call("write", self._file, b"content", 7)
        else:
            yield from call("lseek", self._file, 0, 0)

    def _count(self, place: int) -> GuestScript:
        text = yield from self._read("/proc/meminfo", place)
        lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        self.result.counts = {name: int(lines[name].split()[0]) for name in COUNTS}
        text = yield from self._read("/proc/loadavg", place)
        self.result.tasks = text.split()[3].split("/")[1]
        text = yield from self._read("/proc/stat", place)
        self.result.blocked = next(line for line in text.splitlines() if line.startswith("procs_blocked"))
        self.result.locks = yield from self._read("/proc/locks", place)

    def _read(self, path: str, place: int) -> Generator[Any, int, str]:
        handle = yield from must("open", path, 0, 0)
        count = yield from must("read", handle, place, 8192)
        yield from must("close", handle)
        return self._agent.read(place, count).decode()

    # -- the victim ---------------------------------------------------------------------------------
    def victim(self) -> GuestScript:
        """Files, pipes, sockets and children, round after round; what was read is the output."""
        agent, result = self._agent, self.result
        place = agent.scratch + VICTIM_AREA + _BUFFERS
        yield Park()  # stands for the read it waits in
        began = self._machine.now_ns
        yield from must("socketpair", _AF_UNIX, _SOCK_STREAM, 0, place)
        sockets = [int.from_bytes(agent.read(place + at, 4), "little") for at in (0, 4)]
        yield from must("pipe", place)
        pipe = [int.from_bytes(agent.read(place + at, 4), "little") for at in (0, 4)]
        for number in range(self._rounds_wanted):
            name, data = f"{SHARED}/v{number % 4}", b"round %05d\n" % number
            handle = yield from must("open", name, _O_CREAT_RDWR, 0o600)
            yield from must("write", handle, data, len(data))
            got = yield from self._echo(place, "pread64", handle, place, 64, 0)
            yield from must("close", handle)
            yield from must("unlink", name)
            for ends in (pipe, sockets):
                yield from must("write", ends[1], data, len(data))
                got += yield from self._echo(place, "read", ends[0], place, 64)
            child = yield from must("clone", SIGCHLD, 0, 0, 0, 0)
            yield from must("wait4", child, place, 0, 0)
            got += agent.read(place, 4)
            result.output.append(got)
            result.rounds += 1
        result.victim_ns = self._machine.now_ns - began
        yield from must("write", DONE[1], b"d", 1)
        yield from must("read", GO[0], place, 1)

    def _echo(self, place: int, name: str, *args: int) -> Generator[Any, int, bytes]:
        count = yield from must(name, *args)
        return self._agent.read(place, count)


def expected_output(rounds: int) -> list[bytes]:
    """Return what the victim's rounds must have read."""
    return [3 * (b"round %05d\n" % number) + (7 << 8).to_bytes(4, "little") for number in range(rounds)]


def main(kills: int = 1000, rounds: int = 1000) -> None:
    """Print what the kill stress of docs/attacks.md comes to, calm, with undo, and with oops; takes minutes."""
    from thinbox.attacks.scenario import make_scenario
    from thinbox.boot.ready import prepare
    from thinbox.isolation.policies import load_policy

    guest = prepare()
    scenario = make_scenario(guest)
    for on_violation, wanted in (("undo", 0), ("undo", kills), ("oops", kills)):
        limit_ns = _LIMIT_NS if on_violation == "undo" else _LIMIT_NS // 6
        found = KillStress(guest, scenario, load_policy("sci"), on_violation).stress(wanted, rounds, limit_ns)
        print(
            f"{on_violation}, {wanted} kills wanted: {found.kills} kills, {found.undone} undone, {found.rounds} rounds "
            f"in {found.victim_ns / 1e6:.0f} ms, output right: {found.output == expected_output(rounds)}, "
            f"{found.counts}, {found.tasks} tasks, {found.blocked}, locks {found.locks!r}"
            f"{', wounded' if found.is_wounded else ''}"
        )


if __name__ == "__main__":
    main()
