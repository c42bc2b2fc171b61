"""The scratch is read by its frames, wherever they lie, in one go or piece by piece."""

import random
from types import SimpleNamespace

from thinbox.guest.agent_channel import SCRATCH_BYTES, AgentChannel
from thinbox.machine.memory import MIB, Memory

SCRATCH = 0x7000_0000


def test_what_was_written_is_read_whatever_the_piece():
    chance, memory = random.Random(1), Memory(4 * MIB)
    machine = SimpleNamespace(memory=memory, cpu=SimpleNamespace(set_callback=lambda *_words: None))
    agent = AgentChannel(machine)
    frames = [4096 * number for number in range(16, 16 + SCRATCH_BYTES // 4096)]
    chance.shuffle(frames)
    agent.restore({"scratch": SCRATCH, "frames": frames}, None)
    data = chance.randbytes(SCRATCH_BYTES)
    agent.write(SCRATCH, data)
    assert agent.read(SCRATCH, SCRATCH_BYTES) == data
    for _ in range(300):
        at = chance.randrange(SCRATCH_BYTES)
        size = chance.choice((0, 1, 4095, 4096, 5 * 4096, 9 * 4096 + 7, SCRATCH_BYTES)) % (SCRATCH_BYTES - at + 1)
        assert agent.read(SCRATCH + at, size) == data[at : at + size]
