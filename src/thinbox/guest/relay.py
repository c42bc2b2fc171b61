"""Relays: processes of the agent's that carry a tenant's bytes, one for each of its pipes.

Why it exists: whoever reads or writes a pipe waits for its lock, and a tenant can keep that as long as it likes: a
`splice` into its own output sleeps with it for what its socket does not send (fs/splice.c, `splice_file_to_pipe`).
`poll` and O_NONBLOCK do not help. So the agent, whom all tenants wait for, touches no pipe that a tenant holds.

Rules of this file:
- A relay has the two ends it carries between, and nothing else; its buffer is its own memory.
- It ends with the tenant's last end of the pipe, or is killed with everything else.
"""

from thinbox.guest.agent_channel import AgentChannel, GuestScript, call, must
from thinbox.guest.setup import SIGCHLD
from thinbox.guest.tenant import O_NONBLOCK, Stdio, open_pipe

_BUFFER_BYTES = 64 << 10
_PROT_RW, _PRIVATE_ANONYMOUS = 3, 0x22
_F_SETFL = 4


def relay_stdio(agent: AgentChannel, stdio: Stdio) -> GuestScript:
    """Put a relay between the agent and each pipe of a tenant that has not started; return the agent's `Stdio` then (as
    a generator's value)."""
    outputs = {}
    for descriptor, stream in stdio.outputs.items():
        (near, far) = yield from open_pipe(agent)
        yield from _start(agent, descriptor, far)
        outputs[near] = stream
    (far, near) = yield from open_pipe(agent)
    yield from must("fcntl", near, _F_SETFL, O_NONBLOCK)
    # What is not taken blocks the relay, and then the agent's own end is full.
    yield from must("fcntl", stdio.stdin, _F_SETFL, 0)
    yield from _start(agent, far, stdio.stdin)
    return Stdio(stdio.child, None, outputs, near)


def _start(agent: AgentChannel, source: int, target: int) -> GuestScript:
    """Fork a relay from `source` to `target`; both are closed here."""
    agent.adopt_next_child(_carry(source, target))
    yield from must("clone", SIGCHLD, 0, 0, 0, 0)
    for descriptor in (source, target):
        yield from must("close", descriptor)


def _carry(source: int, target: int) -> GuestScript:
    yield from must("dup2", source, 0)
    yield from must("dup2", target, 1)
    yield from must("close_range", 2, 0xFFFFFFFF, 0)
    place = yield from must("mmap", 0, _BUFFER_BYTES, _PROT_RW, _PRIVATE_ANONYMOUS, -1, 0)
    while (count := (yield from call("read", 0, place, _BUFFER_BYTES))) > 0:
        done = 0
        while done < count:
            written = yield from call("write", 1, place + done, count - done)
            if written <= 0:
                yield from call("exit_group", 0)
            done += written
    yield from call("exit_group", 0)


__all__ = ["relay_stdio"]
