"""The kernel's own pages that all may map, by the names each kernel has for them."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.user_pages import find_user_pages

MEMBERS = {"vdso_image.data": 0, "vdso_image.size": 8}


def test_7_3_pointers_lead_to_the_data():
    found = find_user_pages(fake_facts("empty_zero_page", "vdso_k_time_data", "vdso64_image", members=MEMBERS))
    words = {0x2000: 0x80123, 0x3000: 0x90000, 0x3008: 0x2000}
    assert list(found.addresses(words.__getitem__)) == [0x1000, 0x80000, 0x90000, 0x91000]


def test_6_1_the_data_are_a_page_of_the_image():
    found = find_user_pages(fake_facts("empty_zero_page", "__vvar_page", "vdso_image_64", members=MEMBERS))
    words = {0x3000: 0x90000, 0x3008: 0x1000}
    assert list(found.addresses(words.__getitem__)) == [0x1000, 0x2000, 0x90000]


def test_another_shape_is_refused():
    with pytest.raises(MissingFactError, match="vdso_k_time_data or __vvar_page"):
        find_user_pages(fake_facts("empty_zero_page", "vdso64_image", members=MEMBERS))


def test_on_real_kernels(real_facts):
    found = find_user_pages(real_facts)
    assert found.images and found.fixed and len(found.data) + len(found.pointers) >= 1
