"""The runsc binaries there are to test with: the installed one, and the newer one of Debian's backports."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from thinbox.errors import ThinboxError
from thinbox.image.apt import AptArchive
from thinbox.image.cache import cache_dir, lock
from thinbox.planning.runsc import Runsc, find_runsc

NEWER = "runsc-backports"


@cache
def installed_runsc() -> Runsc | str:
    """Return the installed runsc, or why there is none."""
    try:
        return find_runsc()
    except ThinboxError as error:
        return str(error)


@cache
def newer_runsc() -> Runsc | str:
    """Return the runsc of the backports of this Debian, fetched with a private apt, or why there is none."""
    folder = cache_dir() / NEWER
    binary = folder / "root" / "usr" / "bin" / "runsc"
    try:
        with lock(NEWER):
            if not binary.exists():
                why = _fetch(folder)
                if why:
                    return why
        return find_runsc(str(binary))
    except (ThinboxError, OSError, subprocess.CalledProcessError) as error:
        return str(error)


def _fetch(folder: Path) -> str:
    """Unpack the package; return why not, or nothing."""
    etc = folder / "etc"
    (etc / "sources.list.d").mkdir(parents=True, exist_ok=True)
    release = Path("/etc/os-release").read_text()
    codename = re.search(r"^VERSION_CODENAME=(\w+)$", release, re.MULTILINE)
    stanzas = Path("/etc/apt/sources.list.d/debian.sources")
    if codename is None or not re.search(r"^ID=debian$", release, re.MULTILINE) or not stanzas.exists():
        return "no Debian with a debian.sources, so no backports"
    suites = re.sub(r"^Suites:.*$", f"Suites: {codename[1]}-backports", stanzas.read_text(), flags=re.MULTILINE)
    # The first stanza is the archive itself; that of the security archive has no such suite.
    (etc / "sources.list.d" / "backports.sources").write_text(suites.split("\n\n")[0] + "\n")
    archive = AptArchive(folder / "apt", etc)
    if not archive.update():
        return "the backports' index could not be fetched"
    package = archive.show("runsc")
    if package is None:
        return "the backports have no runsc"
    into = folder / "deb"
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    deb = archive.download(package, into)
    if deb is None:
        return "the backports' runsc could not be fetched"
    subprocess.run(["dpkg-deb", "-x", deb, folder / "new"], check=True)
    shutil.rmtree(folder / "root", ignore_errors=True)
    (folder / "new").rename(folder / "root")
    return ""
