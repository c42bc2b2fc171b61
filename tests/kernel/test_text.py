"""Every function that writes the kernel's text is watched."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.text import find_text_patchers


@pytest.mark.parametrize("synchronises", ["smp_text_poke_sync_each_cpu", "text_poke_sync"])
def test_either_name_does(synchronises):
    assert find_text_patchers(fake_facts("__text_poke", synchronises)) == (0x1000, 0x2000)


def test_without_the_writer_text_could_change_unseen():
    with pytest.raises(MissingFactError, match="__text_poke"):
        find_text_patchers(fake_facts("text_poke_sync"))


def test_on_real_kernels(real_facts):
    assert len(find_text_patchers(real_facts)) >= 3
