"""The functions of pipes without a name, by the name they have."""

from tests.support.fake_facts import fake_facts
from thinbox.kernel.pipe import find_pipe

MEMBERS = {"pipe_inode_info.tail": 0, "pipe_inode_info.ring_size": 8, "pipe_inode_info.bufs": 16}


def test_named_pipes_have_others_since_6_16():
    both = ("anon_pipe_read", "anon_pipe_write", "pipe_read", "pipe_write")
    assert find_pipe(fake_facts(*both, members=MEMBERS)).read == "anon_pipe_read"
    assert find_pipe(fake_facts(*both[2:], members=MEMBERS)).write == "pipe_write"


def test_on_real_kernels(real_facts):
    found = find_pipe(real_facts)
    assert real_facts.symbols.find(found.read) and real_facts.symbols.find(found.write)
