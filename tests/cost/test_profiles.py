"""Profiles as data: complete, ordered, sourced; a bad one is refused with its place."""

import pytest
from thinbox.cost.profiles import FOLDER, NAMES, cpu_names, find_profile, load_profile, load_software
from thinbox.errors import InputError


def test_the_six_cpus_of_the_issue_have_what_it_says_of_them():
    has = {name: (p.meltdown, p.pcid, p.invpcid) for name in cpu_names() for p in [find_profile(name)]}
    assert has == {
        "skylake-server": (True, True, True),
        "ice-lake-server": (False, True, True),
        "alder-lake": (False, False, True),
        "zen-2": (False, False, False),
        "zen-3": (False, True, True),
        "zen-4": (False, True, True),
    }


@pytest.mark.parametrize("name", cpu_names())
def test_every_figure_has_a_source_and_an_interval(name):
    profile = find_profile(name)
    for figure in profile.figures.values():
        assert 0 < figure.low <= figure.high
        assert len(figure.source) > 10
        assert figure.status in ("cited", "assumed")
    assert all(structure.source for structure in profile.structures.values())
    assert set(profile.figures) == set(NAMES)
    assert all(figure.status == "assumed" for figure in load_software().values())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("low = 80", "low = 90000"), "low must not exceed high"),
        (('status = "assumed"', 'status = "known"'), "status be one of"),
        (("thinbox.cpu/1", "thinbox.cpu/9"), "schema"),
        (("[figures.cr3_keep]", "[figures.other]"), "cr3_keep"),
        (("entries = 3072", "entries = 3000"), "power of two"),
        (("meltdown = false", "meltdown = "), "not TOML"),
    ],
)
def test_a_bad_profile_is_refused(tmp_path, change, says):
    text = (FOLDER / "zen-4.toml").read_text()
    assert change[0] in text
    path = tmp_path / "bad.toml"
    path.write_text(text.replace(*change, 1))
    with pytest.raises(InputError, match=says):
        load_profile(path)
