"""Caches whose objects are chained across tenants are told by the variables that point to them."""

from tests.support.fake_facts import fake_facts
from thinbox.kernel.linked_caches import find_linked_caches


def test_each_variable_and_member_the_kernel_has():
    members = {"inet_hashinfo.bind_bucket_cachep": 16, "proto.slab": 200}
    facts = fake_facts("tcp_hashinfo", "udp_prot", "net_cachep", "tcp_request_sock_ops", members=members)
    assert set(find_linked_caches(facts)) == {0x1010, 0x20C8, 0x3000}
    assert find_linked_caches(fake_facts()) == ()


def test_on_real_kernels(real_facts):
    found = find_linked_caches(real_facts)
    assert len(set(found)) == len(found) >= 8
    assert real_facts.symbols.find("net_cachep") in found
