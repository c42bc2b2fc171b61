"""The text of a module is found in an array of its parts, or in two of them."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.module import find_module_shape

TABLE = {
    "module.list": 8, "module.kallsyms": 400, "mod_kallsyms.symtab": 0, "mod_kallsyms.strtab": 16,
    "mod_kallsyms.typetab": 24, "mod_kallsyms.num_symtab": 8,
}  # fmt: skip
ARRAY = {"module.mem": 320, "module_memory.base": 0, "module_memory.size": 8}
LAYOUTS = {
    "module.core_layout": 320, "module.init_layout": 400, "module_layout.base": 0, "module_layout.text_size": 12,
}  # fmt: skip


def test_6_4_parts_by_kind():
    facts = fake_facts(
        "modules", members=TABLE | ARRAY, sizes={"module_memory": 72}, enums={"MOD_TEXT": 0, "MOD_INIT_TEXT": 4}
    )
    found = find_module_shape(facts)
    assert found.texts == ((320, 328), (320 + 4 * 72, 328 + 4 * 72))
    assert (found.head_at, found.link_at, found.count_at) == (0x1000, 8, 8)


def test_5_10_two_layouts():
    assert find_module_shape(fake_facts("modules", members=TABLE | LAYOUTS)).texts == ((320, 332), (400, 412))


def test_a_kernel_without_modules_lacks_nothing_and_one_with_others_is_refused():
    assert find_module_shape(fake_facts()) is None
    with pytest.raises(MissingFactError, match="module.mem or module.core_layout"):
        find_module_shape(fake_facts("modules", members=TABLE))


def test_on_real_kernels(real_facts):
    found = find_module_shape(real_facts)
    assert len(set(found.texts)) == 2 and found.link_at == real_facts.types.offset_of("module", "list")
