"""Where open files and mappings hang."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.open_files import find_file_shape


def test_what_is_missing_is_named():
    with pytest.raises(MissingFactError, match="address_space.i_mmap.*no inode.i_mode"):
        find_file_shape(fake_facts())


def test_on_real_kernels(real_facts):
    found, types = find_file_shape(real_facts), real_facts.types
    assert found.vma_mm_at < 0 < types.offset_of("vm_area_struct", "shared")
    assert found.inode_owners_at[0] != found.inode_owners_at[1]
