"""A new socket is seen where the kernel asks its security modules about it."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.sock import find_sock

MEMBERS = {"socket.sk": 24, "sock.sk_allocation": 0x1D0}


def test_it_is_found():
    found = find_sock(fake_facts("security_socket_post_create", "unix_create1", members=MEMBERS))
    assert (found.made_at, found.sock_at, found.flags_at) == (0x1000, 24, 0x1D0)


def test_a_kernel_without_security_hooks_of_sockets_is_refused_by_name():
    with pytest.raises(MissingFactError, match="security_socket_post_create.*no view"):
        find_sock(fake_facts("unix_create1", members=MEMBERS))


def test_on_real_kernels(real_facts):
    assert find_sock(real_facts).made_at
