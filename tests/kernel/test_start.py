"""What the agent's first calls ask for is found on every kernel that it starts on, and named where it is not."""

from tests.support.fake_facts import fake_facts
from thinbox.kernel.doctor import FEATURES, _ask, _Has
from thinbox.kernel.probe import Probe
from thinbox.kernel.start import DISABLES, PARTS, probe_start

FEATURE = next(feature for feature in FEATURES if feature.probe is probe_start)


def test_all_that_is_missing_is_named_with_every_option():
    found = _ask(fake_facts("load_elf_binary", "unpack_to_rootfs"), FEATURE, _Has(data=True, types=True))
    assert len(found.missing) == len(PARTS) - 2
    for option in ("CONFIG_SERIAL_8250_CONSOLE=y", "CONFIG_INET=y", "CONFIG_DEVTMPFS=y"):
        assert option in found.advice
    assert "CONFIG_BINFMT_ELF" not in found.advice


def test_one_name_of_each_is_enough():
    assert _ask(fake_facts(*(names[-1] for names, _ in PARTS)), FEATURE, _Has(data=True, types=True)).is_fine


def test_on_real_kernels(real_facts):
    probe = Probe(real_facts, "start", DISABLES)
    probe_start(probe)
    assert not probe.missing
