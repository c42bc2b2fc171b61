"""Source packages are asked of the archives that keep them, and of one only what is wanted is unpacked."""

import io
import tarfile

import pytest
from tests.support.source_pool import source_entries, unpack
from thinbox.errors import SourceError


def archive(path, *files):
    with tarfile.open(path, "w:gz") as made:
        for name, mode in files:
            member = tarfile.TarInfo(name)
            member.mode, member.size = mode, len(name)
            made.addfile(member, io.BytesIO(name.encode()))
    return path


def test_entries_for_packages_become_entries_for_sources_without_the_security_archive():
    text = "Types: deb\nURIs: http://a/debian\nSuites: s\n\nTypes: deb\nURIs: http://a/debian-security\nSuites: s\n"
    assert source_entries(text) == "Types: deb-src\nURIs: http://a/debian\nSuites: s\n"
    assert source_entries("deb http://a/debian s main\n") == "deb-src http://a/debian s main\n"


def test_what_is_taken_lies_without_the_folder_of_upstream(tmp_path):
    upstream = archive(tmp_path / "s_1.orig.tar.gz", ("s-1/t/a", 0o755), ("s-1/tt/b", 0o644), ("s-1/../t/out", 0o644))
    debian = archive(tmp_path / "s_1-1.debian.tar.gz", ("debian/config", 0o600), ("debian/rules", 0o755))
    unpack([upstream, debian], ("t", "debian/config"), tmp_path / "to")
    found = {str(path.relative_to(tmp_path / "to")): path for path in (tmp_path / "to").rglob("*") if path.is_file()}
    assert sorted(found) == ["debian/config", "t/a"]
    assert found["t/a"].stat().st_mode & 0o777 == 0o755


def test_what_a_source_has_not_is_an_error(tmp_path):
    upstream = archive(tmp_path / "s_1.orig.tar.gz", ("s-1/t/a", 0o755))
    with pytest.raises(SourceError, match=r"s_1\.orig\.tar\.gz has no tests"):
        unpack([upstream], ("tests",), tmp_path / "to")
