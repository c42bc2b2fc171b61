"""What reclaim and compaction are told, as the kernel's own parameters say."""

from thinbox.kernel.reclaim import find_reclaim


def test_on_real_kernels(real_facts):
    found = find_reclaim(real_facts)
    assert bool(found.nodes_at) != bool(found.only_node_at)
    assert found.compacts_by_number is (real_facts.types.parameters_of("compact_node") == ("nid",))
    assert found.zones[0] < found.zone_lists[0] < found.node_bytes
    assert 10 <= found.order_count <= 12 and 3 <= found.zone_count <= 6
