"""Doctor names everything that is missing at once, by asking what the features themselves ask."""

import json

import pytest
from click.testing import CliRunner
from tests.support.fake_facts import fake_facts
from thinbox.cli.kernel import kernel
from thinbox.image.symbols import SymbolTable
from thinbox.kernel import doctor
from thinbox.kernel.sanitizer import probe_sanitizer
from thinbox.kernel.doctor import FEATURES, USES, Beside, diagnose


def test_a_kernel_that_has_everything_is_fine(real_kernel):
    image, facts = real_kernel
    found = diagnose(image, Beside(facts.symbols, facts.types))
    assert found.release == facts.release
    assert found.is_usable_for("boot") and found.is_usable_for("isolation") and found.is_usable_for("guard")
    assert found.is_usable_for("views")
    assert len(found.findings) >= len(FEATURES) + 3


@pytest.mark.guest
def test_without_types_all_that_needs_them_is_named_and_what_to_do(default_kernel):
    image, facts = default_kernel
    stripped = type(image)(**{name: getattr(image, name) for name in image.__slots__} | {"sections": ()})
    symbols = SymbolTable.from_symbols([s for s in facts.symbols if s[2] not in ("__start_BTF", "__stop_BTF")])
    found = diagnose(stripped, Beside(symbols))
    lacking = {finding.feature: finding for finding in found.findings if not finding.is_fine}
    assert {"types", "pages", "slabs", "credentials"} <= set(lacking)
    assert "entry code" not in lacking, "it needs no types"
    for finding in lacking.values():
        assert finding.disables and "CONFIG_DEBUG_INFO_BTF" in finding.advice
        assert "page.flags" not in finding.missing, "members are not named one by one"


@pytest.mark.guest
def test_without_data_symbols_it_says_kallsyms_all(default_kernel):
    image, facts = default_kernel
    text = SymbolTable.from_symbols([s for s in facts.symbols if s[1] in "tTwW"])
    found = diagnose(image, Beside(text, facts.types))
    assert not any(map(found.is_usable_for, USES))
    missing = {finding.feature: finding.missing for finding in found.findings if not finding.is_fine}
    assert missing["symbols of data"] == ("CONFIG_KALLSYMS_ALL",)
    assert {"running task", "pages", "table of calls"} <= set(missing), "everything at once"


def test_every_feature_of_the_room_is_asked():
    # A kernel may have no modules and generate no code: then nothing is missing of them.
    facts = fake_facts("modules", "bpf_kallsyms")
    for feature in FEATURES:
        if feature.probe is probe_sanitizer:
            continue  # asks for what must not be there
        found = doctor._ask(facts, feature, doctor._Has(data=True, types=True))
        assert found.missing and found.disables and found.advice and set(found.uses) <= set(USES), feature.name


@pytest.mark.guest
def test_the_command_prints_a_line_for_each_use_and_writes_json():
    result = CliRunner().invoke(kernel, ["doctor"])
    assert result.exit_code == 0, result.output
    for use in USES:
        assert f"{use:15}yes" in result.stdout.splitlines()
    written = json.loads(CliRunner().invoke(kernel, ["doctor", "--json", "-"]).stdout)
    assert written["uses"] == dict.fromkeys(USES, True)
    assert {finding["feature"] for finding in written["findings"]} >= {feature.name for feature in FEATURES}
