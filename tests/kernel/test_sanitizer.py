"""A kernel whose freed objects wait in a quarantine has no views, and says so in one line."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.doctor import FEATURES, _ask, _Has
from thinbox.kernel.sanitizer import probe_sanitizer, require_no_quarantine


@pytest.mark.parametrize("name", ["kasan_quarantine_put", "quarantine_put", "quarantine_put.isra.0"])
def test_a_quarantine_is_refused(name):
    with pytest.raises(MissingFactError, match="CONFIG_KASAN_GENERIC") as caught:
        require_no_quarantine(fake_facts(name))
    assert "\n" not in str(caught.value)
    feature = next(feature for feature in FEATURES if feature.probe is probe_sanitizer)
    found = _ask(fake_facts(name), feature, _Has(data=True, types=True))
    assert found.uses == ("views",) and "CONFIG_KASAN=n" in found.advice


def test_other_kernels_are_not():
    require_no_quarantine(fake_facts("kasan_poison", "kfree"))


def test_on_real_kernels(real_facts):
    require_no_quarantine(real_facts)
