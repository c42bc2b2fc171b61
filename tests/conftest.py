"""One ready guest for all tests; a missing kernel fails them (CI fetches it)."""

import pytest
from thinbox.boot.ready import prepare


@pytest.fixture(scope="session")
def guest():
    return prepare()
