"""Reclaim and compaction: the functions an allocation may be sent to, what they are told, and the memory nodes.

Shapes, newest first:
- `compact_node(pgdat, proactive)` (6.10, mm/compaction.c); before, `compact_node(nid)`. The parameters' names, which
  the kernel's type information has, say which.
- the nodes are an array of pointers, `node_data`, or, in a kernel for one node alone, `contig_page_data`.

Source: mm/vmscan.c, mm/compaction.c, include/linux/mmzone.h (struct pglist_data).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "a view would judge reclaim as a call's own work"


@dataclass(frozen=True, slots=True)
class ReclaimShape:
    """`nodes_at` is the array of pointers to nodes, or `only_node_at` the one node; the other is 0.

    `compacts_by_number`: what is to be compacted is given as a node's number, not its address.
    """

    nodes_at: int
    only_node_at: int
    node_bytes: int
    node_id_at: int
    zones: tuple[int, int]
    zone_lists: tuple[int, int]
    zone_bytes: int
    zone_list_bytes: int
    order_count: int
    zone_count: int
    task_nodes_at: int
    compacts_by_number: bool


def probe_reclaim(probe: Probe) -> ReclaimShape:
    """Find it; what is missing is noted in `probe`."""
    array = probe.symbol("node_data") if probe.has_symbol("node_data") else 0

    def span(path: str) -> tuple[int, int]:
        at = probe.offset(path)
        return at, at + probe.member_size(path)

    return ReclaimShape(
        nodes_at=array,
        only_node_at=0 if array else probe.symbol("node_data", "contig_page_data"),
        node_bytes=probe.size("pglist_data"),
        node_id_at=probe.offset("pglist_data.node_id"),
        zones=span("pglist_data.node_zones"),
        zone_lists=span("pglist_data.node_zonelists"),
        zone_bytes=probe.size("zone"),
        zone_list_bytes=probe.size("zonelist"),
        order_count=probe.member_size("zone.free_area") // max(probe.size("free_area"), 1),
        zone_count=probe.member_size("zone.lowmem_reserve") // 8,
        task_nodes_at=probe.offset("task_struct.mems_allowed") if probe.has_member("task_struct.mems_allowed") else 0,
        compacts_by_number=probe.parameters("compact_node")[:1] == ("nid",),
    )


def find_reclaim(facts: "KernelFacts") -> ReclaimShape:
    """Return it; `MissingFactError` if this kernel keeps its nodes in another way."""
    probe = Probe(facts, "memory nodes", DISABLES)
    found = probe_reclaim(probe)
    probe.check()
    return found
