"""A task's numbers, ids and maps are where the kernel's types say."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.identity import IDS, find_identity


def test_all_that_is_missing_is_named_at_once():
    with pytest.raises(MissingFactError, match="no plan may emulate") as refused:
        find_identity(fake_facts())
    for name in ("task_struct.thread_pid", "struct upid", "cred.suid", "uid_gid_map.forward"):
        assert name in str(refused.value)


def test_on_real_kernels(real_facts):
    found = find_identity(real_facts)
    assert found.number_bytes == 16 and set(found.ids_at) == set(IDS) and len(set(found.ids_at.values())) == len(IDS)
    # Five extents of twelve bytes, and how many there are, before or behind them.
    assert (found.extents_at, found.extent_count_at) in ((8, 0), (0, 60))
