"""One ready guest for all tests, markers, and what is said at the end.

A missing kernel fails the tests that need one (CI fetches it). Where tests run in several processes (`make test`), each
restores the guest from the one snapshot in the cache: `prepare` boots it under a file lock, once.
"""

import os

import pytest
from hypothesis import HealthCheck, settings
from tests.support.skips import pytest_terminal_summary
from thinbox.boot.ready import prepare

NEED_A_KERNEL = {"guest", "default_kernel", "booted"}
"""Fixtures; what uses none of them but needs a kernel is marked where it stands, or all of its folder is here:"""
GUEST_FOLDERS = {"attacks", "boot"}

OTHER_KERNEL = "THINBOX_TEST_KERNEL"
"""Runs the tests on another kernel than the default: a file, or a release."""

# A test's outcome never hangs on how fast the machine is.
settings.register_profile("thinbox", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("thinbox")


def pytest_collection_modifyitems(items):
    for item in items:
        if NEED_A_KERNEL & set(item.fixturenames) or item.path.parent.name in GUEST_FOLDERS:
            item.add_marker(pytest.mark.guest)


@pytest.fixture(scope="session")
def guest():
    return prepare(os.environ.get(OTHER_KERNEL))


__all__ = ["pytest_terminal_summary"]
