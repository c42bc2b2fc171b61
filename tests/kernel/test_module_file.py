"""What a module's file holds of `struct module`."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.module_file import ModuleFileShape, find_module_file

MEMBERS = {"module.name": 24, "module.init": 312}
SIZES = {"module": 1280}


def test_a_module_has_a_name_and_two_functions():
    facts = fake_facts(members=MEMBERS | {"module.exit": 1200}, sizes=SIZES)
    assert find_module_file(facts) == ModuleFileShape(1280, 24, 312, 1200)


def test_a_module_that_is_never_unloaded_has_no_exit_function():
    assert find_module_file(fake_facts(members=MEMBERS, sizes=SIZES)).exit_at is None


def test_another_shape_is_refused():
    with pytest.raises(MissingFactError, match="struct module, no module.name, no module.init"):
        find_module_file(fake_facts())


def test_on_real_kernels(real_facts):
    found = find_module_file(real_facts)
    assert 0 < found.name_at < found.init_at < found.exit_at < found.module_bytes
