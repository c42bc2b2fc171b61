"""The index of an archive is read as apt prints it, and what is missing is downloaded by one command."""

from pathlib import Path

import pytest
from tests.support.debian_rootfs import MAINTAINERS
from tests.support.package_pool import PackagePool, parse_index
from thinbox.errors import SourceError

INDEX = """Package: a
Version: 1:2-3
Depends: b (>= 1), missing | c:any [amd64], virtual
Pre-Depends: d
Description: text
 Depends: nothing

Package: a
Version: 1

Package: b
Version: 1
Depends: a, perl, big

Package: c
Version: 1
Provides: virtual (= 2), other

Package: d
Version: 1

Package: big
Version: 9

Package: perl
Version: 5
"""


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagePool:
    """A pool whose apt writes what it is asked for, but for what is called gone."""
    made = PackagePool(tmp_path / "pool")
    made.asked = []
    made.index = parse_index(INDEX)

    def apt(program: str, *words: str, cwd: Path) -> str:
        made.asked.append(sorted(words[1:]))
        for word in words[1:]:
            name, version = word.replace(":amd64", "").split("=")
            if name != "gone":
                (cwd / f"{name}_{version.replace(':', '%3a')}_all.deb").write_bytes(b"deb")
        return ""

    monkeypatch.setattr(made, "_apt", apt)
    return made


def test_the_newest_version_and_the_bare_names_are_read() -> None:
    index = parse_index(INDEX)
    assert (index["a"].version, index["a"].file) == ("1:2-3", "a_1%3a2-3.deb")
    assert index["a"].depends == (("d",), ("b",), ("missing", "c"), ("virtual",))
    assert index["c"].provides == ("virtual", "other")
    assert parse_index("") == {}


def test_what_a_package_needs_is_downloaded_at_once_and_only_once(pool: PackagePool) -> None:
    pool.prepare(["a"], MAINTAINERS | {"big"})
    assert pool.asked == [["a:amd64=1:2-3", "b:amd64=1", "c:amd64=1", "d:amd64=1"]]
    assert pool.fetch("a").name == "a_1%3a2-3.deb"
    assert pool.fetch("virtual").name == "c_1.deb"
    assert len(pool.asked) == 1
    pool.prepare(["a", "big"], MAINTAINERS | {"big"})
    assert pool.asked[1:] == [["big:amd64=9"]]


def test_what_cannot_be_had_is_an_error(pool: PackagePool) -> None:
    with pytest.raises(SourceError, match="no nothing"):
        pool.fetch("nothing")
    pool.index |= parse_index("Package: gone\nVersion: 1\n")
    with pytest.raises(SourceError, match="gone cannot be downloaded"):
        pool.fetch("gone")
