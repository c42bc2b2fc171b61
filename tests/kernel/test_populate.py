"""How a kernel is asked to bring a page in: by madvise, or before that could be said, by futex."""

import errno

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.populate import find_populate

PAGE = 0x7000


@pytest.mark.parametrize("name", ["faultin_page_range", "faultin_vma_page_range"])
def test_5_14_madvise_brings_a_page_in(name):
    found = find_populate(fake_facts(name, "futex_requeue"))
    read, write = found.call(PAGE, write=False), found.call(PAGE, write=True)
    assert (read.name, read.arguments[:3], read.done) == ("madvise", (PAGE, 4096, 22), {0})
    assert (write.name, write.arguments[:3], write.done) == ("madvise", (PAGE, 4096, 23), {0})


def test_5_10_a_futex_that_is_nobodys_touches_the_page():
    found = find_populate(fake_facts("futex_requeue"))
    read, write = found.call(PAGE, write=False), found.call(PAGE, write=True)
    assert (read.name, read.arguments, read.done) == ("futex", (PAGE, 132, 0, 0, PAGE, 0), {0, -errno.EAGAIN})
    assert (write.name, write.arguments[:5], write.done) == ("futex", (PAGE, 133, 0, 0, PAGE), {-errno.ENOSYS})
    operation = write.arguments[5]
    assert operation >> 28 == 2 and operation >> 12 & 0xFFF == 0, "or 0"
    assert operation >> 24 & 15 > 5, "no comparison that the kernel knows, or it would wake somebody"


def test_another_shape_is_refused():
    with pytest.raises(MissingFactError, match="faultin_page_range or faultin_vma_page_range or futex_requeue"):
        find_populate(fake_facts())


def test_on_real_kernels(real_facts):
    assert find_populate(real_facts).call(PAGE, write=True).arguments[0] == PAGE
