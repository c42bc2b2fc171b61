"""Slab caches whose objects the kernel chains across tenants in tables of the whole machine, found by who uses them.

Why it exists: `isolation.page_ownership.LINKED_CACHES` names such caches, but the allocator merges caches of one size,
and then a slab bears the name of whichever came first (mm/slab_common.c, `find_mergeable`). The pointer to the cache is
told by the variable its user keeps it in.

Source: Linux 6.1 include/net/inet_hashtables.h (struct inet_hashinfo), include/net/sock.h (struct proto),
net/core/net_namespace.c (`net_cachep`, the list of all network namespaces).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinbox.guest.kernel_view import KernelView

_HELD_BY = (
    # Ports in use, and sockets by address: one hash table for all network namespaces.
    ("tcp_hashinfo", "inet_hashinfo", "bind_bucket_cachep"),
    ("tcp_hashinfo", "inet_hashinfo", "bind2_bucket_cachep"),
    *((name, "proto", "slab") for name in ("tcp_prot", "tcpv6_prot", "udp_prot", "udpv6_prot", "udplite_prot")),
    *((name, "proto", "slab") for name in ("udplitev6_prot", "raw_prot", "rawv6_prot", "ping_prot", "pingv6_prot")),
    *((name, "proto", "slab") for name in ("unix_dgram_proto", "unix_stream_proto", "unix_proto")),
    ("tcp_request_sock_ops", "request_sock_ops", "slab"),
    ("tcp6_request_sock_ops", "request_sock_ops", "slab"),
    ("tcp_timewait_sock_ops", "timewait_sock_ops", "twsk_slab"),
    ("tcp6_timewait_sock_ops", "timewait_sock_ops", "twsk_slab"),
    ("net_cachep", "", ""),
)
"""(variable, its type, the member that points to the cache); without a type the variable itself does."""


def find_linked_caches(kernel: "KernelView", read: Callable[[int], int]) -> frozenset[int]:
    """Return the addresses of the caches; `read(vaddr)` returns a word of kernel memory, or 0.

    A kernel that lacks a variable or a member has one cache less.
    """
    types, found = kernel.facts.types, set[int]()
    for variable, type_name, member in _HELD_BY:
        place = kernel.symbols.find(variable)
        if place is None or (type_name and not types.has_member(type_name, member)):
            continue
        found.add(read(place + types.offset_of(type_name, member) if type_name else place))
    return frozenset(found - {0})
