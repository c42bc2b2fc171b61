"""The kill stress: an attacker is killed over and over, while the victim goes on with its work.

Why it exists: a kill is right only if nobody else feels it. Each kill falls into a call that holds a lock the victim
needs, or has half done something; what is left behind shows in the victim's time and output, and in what the
guest counts of itself.

Rules of this file:
- All is virtual time; nothing depends on the host.
- The counts are the guest's own: /proc/meminfo, /proc/loadavg, /proc/stat, /proc/locks, read by a process of it.
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from thinbox.attacks.bug import REGISTERS
from thinbox.attacks.exploit_runner import ExploitRunner
from thinbox.attacks.hijack import TARGET_FUNCTION, TARGET_OFFSET
from thinbox.attacks.scenario import ATTACKER, DONE, GO, SHARED, VICTIM_AREA
from thinbox.audit.case_process import AREA_BYTES, SIGCHLD
from thinbox.errors import MachineError
from thinbox.guest.agent_channel import GuestScript, Park, call, must

_CHILD_AREA = 3 * AREA_BYTES
_BUFFERS = 32 << 10
_O_CREAT_RDWR, _AF_UNIX, _SOCK_STREAM = 0o102, 1, 1
_SETTLE = (0).to_bytes(8, "little") + (300_000_000).to_bytes(8, "little")
COUNTS = ("MemFree", "AnonPages", "KernelStack", "PageTables", "Slab", "SUnreclaim", "Shmem")
"""Lines of /proc/meminfo, in kB."""
_LIMIT_NS = 120 * 1_000_000_000
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
    """An arena in which the attacker sends children to their death."""

    _kills_wanted = _rounds_wanted = _sent = _file = 0
    _outcome: KillStressResult

    def besiege(self, kills: int, rounds: int, limit_ns: int = _LIMIT_NS) -> KillStressResult:
        """Let the victim do `rounds` of work while `kills` children of the attacker are killed."""
        self._reset_machine()
        record = self._new_record()
        self.enforcer.reset()
        self.tenant.record = record
        self.agent.restore(self._scenario.agent, self.view)
        self.enforcer.adopt_current(ATTACKER)
        result = KillStressResult()
        self._kills_wanted, self._rounds_wanted, self._outcome = kills, rounds, result
        for place in PLACES:
            self._send_astray(place)
        limit = self.machine.now_ns + limit_ns
        try:
            self.agent.resume(self._parent())
            self.agent.assign(self._scenario.agent_task, _sleep_for_ever())
            self.agent.assign(self.victim.task, self._script())
            self.machine.run(lambda: self.agent.parked or self.machine.now_ns > limit)
        except MachineError as error:
            if "nothing to wake it" not in str(error):
                raise
        finally:
            for take_away in self._hooks:
                take_away()
            self._hooks.clear()
        result.kills, result.undone = len(record.kills), sum(kill.undone for kill in record.kills)
        result.is_wounded = not self.agent.parked
        return result

    def _isolates(self, _nr: int) -> bool:
        """The attacker's children only: each makes one call."""
        return self.view.current != self.attacker_task

    def _send_astray(self, function: str) -> None:
        place, register = self.text.indirect_call(function)
        target = self.text.function(TARGET_FUNCTION) + TARGET_OFFSET

        def happen() -> None:
            current = self.view.current
            if current in self.enforcer.tasks and current != self.attacker_task:
                self.machine.cpu.regs[REGISTERS[register]] = target

        self.watch(place, happen)

    # -- the attacker -------------------------------------------------------------------------------
    def _parent(self) -> GuestScript:
        place = self.agent.scratch + _BUFFERS
        self.agent.adopt_next_child(self._new_process(), _CHILD_AREA)
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
        self.agent.adopt_next_child(self._new_process(), _CHILD_AREA)
        task = self.view.current
        # It makes one call and is no more; the next process may have the same task_struct.
        self.agent.forget(task)
        if task in self.enforcer.tasks:
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
        self._outcome.counts = {name: int(lines[name].split()[0]) for name in COUNTS}
        text = yield from self._read("/proc/loadavg", place)
        self._outcome.tasks = text.split()[3].split("/")[1]
        text = yield from self._read("/proc/stat", place)
        self._outcome.blocked = next(line for line in text.splitlines() if line.startswith("procs_blocked"))
        self._outcome.locks = yield from self._read("/proc/locks", place)

    def _read(self, path: str, place: int) -> Generator[Any, int, str]:
        handle = yield from must("open", path, 0, 0)
        count = yield from must("read", handle, place, 8192)
        yield from must("close", handle)
        return self.agent.read(place, count).decode()

    # -- the victim ---------------------------------------------------------------------------------
    def _script(self) -> GuestScript:
        """Files, pipes, sockets and children, round after round; what was read is the output."""
        agent, result = self.agent, self._outcome
        place = agent.scratch + VICTIM_AREA + _BUFFERS
        yield Park()  # stands for the read it waits in
        began = self.machine.now_ns
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
        result.victim_ns = self.machine.now_ns - began
        yield from must("write", DONE[1], b"d", 1)
        yield from must("read", GO[0], place, 1)

    def _echo(self, place: int, name: str, *args: int) -> Generator[Any, int, bytes]:
        count = yield from must(name, *args)
        return self.agent.read(place, count)


def expected_output(rounds: int) -> list[bytes]:
    """Return what the victim's rounds must have read."""
    return [3 * (b"round %05d\n" % number) + (7 << 8).to_bytes(4, "little") for number in range(rounds)]


def _sleep_for_ever() -> GuestScript:
    """The agent waits for the attacker, which does not end."""
    yield Park()  # stands for the wait it is in
    yield Park()


def main(kills: int = 1000, rounds: int = 1000) -> None:
    """Print what the kill stress of docs/attacks.md comes to, calm, with undo, and with oops; takes minutes."""
    from thinbox.attacks.scenario import make_scenario
    from thinbox.boot.ready import prepare
    from thinbox.isolation.policies import load_policy

    guest = prepare()
    scenario = make_scenario(guest)
    for on_violation, wanted in (("undo", 0), ("undo", kills), ("oops", kills)):
        limit_ns = _LIMIT_NS if on_violation == "undo" else _LIMIT_NS // 6
        found = KillStress(guest, scenario, load_policy("sci"), on_violation).besiege(wanted, rounds, limit_ns)
        print(
            f"{on_violation}, {wanted} kills wanted: {found.kills} kills, {found.undone} undone, {found.rounds} rounds "
            f"in {found.victim_ns / 1e6:.0f} ms, output right: {found.output == expected_output(rounds)}, "
            f"{found.counts}, {found.tasks} tasks, {found.blocked}, locks {found.locks!r}"
            f"{', wounded' if found.is_wounded else ''}"
        )


if __name__ == "__main__":
    main()
