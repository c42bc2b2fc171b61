"""Slab caches whose objects the kernel chains across tenants in tables of the whole machine, found by who uses them.

Why it exists: `isolation.page_ownership.LINKED_CACHES` names such caches, but the allocator merges caches of one size,
and then a slab bears the name of whichever came first (mm/slab_common.c, `find_mergeable`). The pointer to the cache is
told by the variable its user keeps it in.

One shape is known of each, of Linux 5.10 to 7.3: a variable, and the member of its type that points to the cache. A
kernel that lacks the one or the other (`bind2_bucket_cachep` is of 6.1) has one cache less.

Source: Linux 6.1 include/net/inet_hashtables.h (struct inet_hashinfo), include/net/sock.h (struct proto),
net/core/net_namespace.c (`net_cachep`, the list of all network namespaces).
"""

from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

_HELD_BY = (
    # Ports in use, and sockets by address: one hash table for all network namespaces.
    ("tcp_hashinfo", "inet_hashinfo.bind_bucket_cachep"),
    ("tcp_hashinfo", "inet_hashinfo.bind2_bucket_cachep"),
    *((name, "proto.slab") for name in ("tcp_prot", "tcpv6_prot", "udp_prot", "udpv6_prot", "udplite_prot")),
    *((name, "proto.slab") for name in ("udplitev6_prot", "raw_prot", "rawv6_prot", "ping_prot", "pingv6_prot")),
    *((name, "proto.slab") for name in ("unix_dgram_proto", "unix_stream_proto", "unix_proto")),
    ("tcp_request_sock_ops", "request_sock_ops.slab"),
    ("tcp6_request_sock_ops", "request_sock_ops.slab"),
    ("tcp_timewait_sock_ops", "timewait_sock_ops.twsk_slab"),
    ("tcp6_timewait_sock_ops", "timewait_sock_ops.twsk_slab"),
    ("net_cachep", ""),
)
"""(variable, the member of its type that points to the cache); without one the variable itself does."""


def find_linked_caches(facts: "KernelFacts") -> tuple[int, ...]:
    """Return the addresses of the words that point to the caches."""
    probe = Probe(facts, "caches linked across tenants", "")
    return tuple(
        probe.symbol(variable) + (probe.offset(path) if path else 0)
        for variable, path in _HELD_BY
        if probe.has_symbol(variable) and (not path or probe.has_member(path))
    )
