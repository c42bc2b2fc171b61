"""What a program of the corpus needs: its entry in programs.toml, and the root file system made of its packages.

Why it exists: the table (`benchmarks.programs`) and the short set of the tests run the same programs in the same roots.

Rules of this file: nothing is installed and no maintainer script runs. Debian packages come by apt's signed index,
wheels by pip in the versions written down; both are kept in thinbox's cache folder.
"""

import compileall
import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode

from tests.support.debian_rootfs import MAINTAINERS, build_rootfs
from tests.support.package_pool import PackagePool
from thinbox.errors import SourceError
from thinbox.image.cache import cache_dir, make_folder

CORPUS = Path(__file__).parent / "programs.toml"
ALWAYS = ("dash", "coreutils", "libc-bin")
"""Every script is dash's, most call a program of coreutils', and libc-bin has the locale C.UTF-8."""
ENVIRONMENT = ("HOME=/tmp", "LC_ALL=C.UTF-8", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
FOR_WHEELS = ("python3", "libstdc++6")
"""What runs a wheel, and the library that those in C++ expect a system to have."""
SITE = "usr/lib/python3/dist-packages"
"""Where Debian's python3 looks for packages."""
PYTHON, TAGS = "3.11", ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
"""Debian 12's python3, and the wheels that its libc loads."""


@dataclass(frozen=True, slots=True)
class Program:
    """One entry of the corpus: what it does in a few words (`work`), and the script that does it, run by dash.

    `packages` and `wheels` (pip's `name==version`) make its root; dependencies `without` are left out, for the work
    does not need them. `user` is who runs it, `memory_mib` the guest's memory.
    """

    name: str
    category: str
    work: str
    script: str
    packages: tuple[str, ...] = ()
    wheels: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    user: str = "root"
    memory_mib: int = 512
    short: bool = False

    @property
    def asked(self) -> tuple[str, ...]:
        """The Debian packages of its root that are named."""
        return tuple(sorted({*ALWAYS, *self.packages, *(FOR_WHEELS if self.wheels else ())}))

    @property
    def words(self) -> tuple[str, ...]:
        """The end of its `thinbox run`, from the first option that is its own."""
        memory = () if self.memory_mib == 512 else ("--memory", str(self.memory_mib))
        user = () if self.user == "root" else ("--user", self.user)
        environment = tuple(word for pair in ENVIRONMENT for word in ("--env", pair))
        return (*memory, *user, *environment)

    @property
    def key(self) -> str:
        """Changes with what is run."""
        said = (self.script, self.asked, self.wheels, self.without, self.user, self.memory_mib)
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def load_corpus(path: Path = CORPUS) -> dict[str, Program]:
    """Return the programs by name, in the file's order; raises TypeError for a field there is not."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))
    return {
        name: Program(name, **{field: tuple(v) if isinstance(v, list) else v for field, v in fields.items()})
        for name, fields in entries.items()
    }


def build_root(program: Program, pool: PackagePool) -> Path:
    """Return the program's root file system, made if it is not there.

    Raises:
        SourceError: a package or a wheel cannot be had.
    """
    said = json.dumps([program.asked, program.wheels, program.without])
    target = cache_dir() / "program-roots" / f"{program.name}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
    done = target / "var/lib/thinbox-done"
    if not done.exists():
        # A name that is asked for is never left out.
        without = MAINTAINERS | frozenset(program.without)
        pool.prepare(program.asked, without)
        build_rootfs(program.asked, target, pool.fetch, without)
        if program.wheels:
            _unpack_wheels(program.wheels, target / SITE)
        _compile(target)
        done.touch()
    return target


def versions(program: Program, pool: PackagePool) -> list[str]:
    """Return what the program itself came of, with versions: its packages, or its wheels."""
    packages = [f"{name} {pool.index[name].version}" for name in program.packages]
    return [*packages, *(wheel.replace("==", " ") for wheel in program.wheels)]


def _unpack_wheels(wheels: Sequence[str], site: Path) -> None:
    """Fetch wheels and what they depend on, and unpack them; scripts and headers are left out."""
    said = hashlib.sha256(json.dumps([wheels, TAGS]).encode()).hexdigest()[:16]
    folder = cache_dir() / "program-wheels" / said
    done = folder / "done"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
        tags = [word for tag in TAGS for word in ("--platform", tag)]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        words = [*pip, "--only-binary", ":all:", "--python-version", PYTHON, *tags, "--dest", str(folder), *wheels]
        fetched = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if fetched.returncode:
            said = (fetched.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise SourceError(f"{', '.join(wheels)} cannot be fetched: {said}")
        done.touch()
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


def _compile(root: Path) -> None:
    """Leave bytecode as an installation does, if this Python is the root's; without it programs are slower only."""
    if f"{sys.version_info[0]}.{sys.version_info[1]}" == PYTHON:
        for place in (f"usr/lib/python{PYTHON}", SITE):
            if (root / place).is_dir():
                compileall.compile_dir(
                    root / place,
                    maxlevels=20,
                    quiet=2,
                    stripdir=str(root),
                    prependdir="/",
                    invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
                )
