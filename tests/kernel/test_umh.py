"""Paths of programs that the kernel starts: as many as it has."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.umh import find_usermode_helpers

INFO = {"subprocess_info.path": 40}


def test_each_path_has_its_size():
    found = find_usermode_helpers(fake_facts("modprobe_path", "core_pattern", members=INFO))
    assert (found.paths, found.path_at) == ({0x1000: 256, 0x2000: 128}, 40)


def test_a_kernel_without_them_lacks_nothing_and_one_of_another_shape_is_refused():
    assert find_usermode_helpers(fake_facts(members=INFO)).paths == {}
    with pytest.raises(MissingFactError, match="subprocess_info.path"):
        find_usermode_helpers(fake_facts("modprobe_path"))


def test_on_real_kernels(real_facts):
    assert {real_facts.symbols.find(name) for name in ("modprobe_path", "core_pattern")} <= set(
        find_usermode_helpers(real_facts).paths
    )
