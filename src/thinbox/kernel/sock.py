"""Sockets: where one that was just made is seen, and the flags with which it allocates.

One shape is known, of Linux 5.10 to 7.3: `__sock_create` calls `security_socket_post_create(sock, …)`
(CONFIG_SECURITY_NETWORK), and the constant that `unix_create1` stores into `sock.sk_allocation` asks for accounting.

Source: net/socket.c, net/core/sock.c (`sock_init_data_uid`), net/unix/af_unix.c.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "sockets cannot be charged to tenants, and no view can be had"
MADE = "security_socket_post_create"
ACCOUNTED = "unix_create1"


@dataclass(frozen=True, slots=True)
class SockShape:
    """Where a new socket is seen, and offsets in `struct socket` and `struct sock`."""

    made_at: int
    sock_at: int
    flags_at: int


def probe_sock(probe: Probe) -> SockShape:
    """Find it; what is missing is noted in `probe`."""
    if not probe.has_variant(ACCOUNTED):
        probe.lacks(ACCOUNTED)
    return SockShape(probe.symbol(MADE), probe.offset("socket.sk"), probe.offset("sock.sk_allocation"))


def find_sock(facts: "KernelFacts") -> SockShape:
    """Return it; `MissingFactError` if this kernel makes sockets in another way."""
    probe = Probe(facts, "sockets", DISABLES)
    found = probe_sock(probe)
    probe.check()
    return found
