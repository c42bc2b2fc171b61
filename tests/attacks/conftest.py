"""The guest of the library of attacks: its CPU does not keep the kernel from user memory."""

import os

import pytest
from tests.conftest import OTHER_KERNEL
from thinbox.boot.params import BootParams
from thinbox.boot.ready import prepare
from thinbox.machine.cpu_model import BARE_CPU


@pytest.fixture(scope="session")
def guest():
    return prepare(os.environ.get(OTHER_KERNEL), BootParams(cpu=BARE_CPU))
