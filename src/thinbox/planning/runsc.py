"""gVisor's `runsc`: which one, which platforms it has, and how a program is run under it.

Why it exists: Debian 12's has the platform ptrace only; systrap, gVisor's default since 2023, came later.

Rules of this file: a platform works if a program ran to its end on it here; every run has a limit, and a state and
temporary folder of its own that goes with it.
"""

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from thinbox.errors import InputError
from thinbox.planning.host_process import Ended, Start, run_bounded
from thinbox.planning.microbench import build_loop

INSTALL_RUNSC = (
    "gVisor is not installed: apt install runsc (Debian), or see https://gvisor.dev/docs/user_guide/install/"
)
PLATFORMS = ("ptrace", "systrap")
"""Those that need no virtualisation, and are asked for unless others are named."""
_NEWER = {
    "systrap": "runsc 0.0~20240729 of Debian's bookworm-backports has it (apt install -t bookworm-backports runsc), "
    "and Debian 13's; --runsc names another binary"
}
_TRIAL_S, _ASK_S = 20.0, 10.0
RUN_LIMIT_S = 120.0
_MOST_FOLDER = 107 - len("/thinbox-runsc-01234567/runsc-do0123456789/runsc-runsc-0123456.sock")


@dataclass(frozen=True, slots=True)
class Runsc:
    """One binary: where, its version, the platforms it says it has."""

    path: str
    version: str
    platforms: tuple[str, ...]

    def require(self, platform: str) -> float:
        """Run a small program on `platform`, and return its wall seconds from start to exit.

        Raises:
            InputError: that does not work, with what is wrong and what to do.
        """
        if platform not in self.platforms:
            known = ", ".join(self.platforms) or "none that it names"
            more = _NEWER.get(platform, "--runsc names another binary")
            raise InputError(f"runsc {self.version} has no platform {platform} (it has {known}); {more}")
        with tempfile.TemporaryDirectory(prefix="thinbox-trial-") as folder:
            make_loop_root(Path(folder), build_loop("getppid", 1))
            try:
                ended = self.run(Path(folder), ["/bin/loop"], platform, _TRIAL_S)
            except InputError as error:
                raise InputError(f"platform {platform} does not work on this machine: {error}") from error
        if ended.exit_code:
            lines = ended.stderr.decode(errors="replace").strip().splitlines()
            said = lines[-1] if lines else f"status {ended.exit_code}"
            raise InputError(f"platform {platform} does not work on this machine: {said[:200]}")
        return ended.wall_s

    def run(
        self,
        root: Path,
        command: Sequence[str],
        platform: str,
        limit_s: float = RUN_LIMIT_S,
        watch: Callable[[int], None] | None = None,
    ) -> Ended:
        """Run `command` in `root`; InputError if it does not end in time."""
        with self.prepared(root, command, platform) as (words, env):
            return run_bounded(words, Start(limit_s, env), watch)

    @contextmanager
    def prepared(self, root: Path, command: Sequence[str], platform: str) -> Iterator[tuple[list[str], dict[str, str]]]:
        """Give the words and environment of one run; its state and temporary files are removed afterwards."""
        state = tempfile.mkdtemp(prefix="thinbox-runsc-", dir=_reachable_folder())
        try:
            words = [self.path, "--root", state, "--network=none", f"--platform={platform}"]
            if os.geteuid() != 0:
                # Without root it may make no control groups, and takes a user namespace of its own.
                words.append("--rootless")
            words += ["do", "-root", str(root), "-cwd", "/", "--", *command]
            yield words, {**os.environ, "TMPDIR": state}
        finally:
            shutil.rmtree(state, ignore_errors=True)


def find_runsc(named: str | None = None) -> Runsc:
    """Return the runsc at `named`, else the installed one.

    Raises:
        InputError: there is none, or it does not answer.
    """
    path = shutil.which(named or "runsc")
    if path is None:
        raise InputError(f"{named} is no program; --runsc names a runsc binary" if named else INSTALL_RUNSC)
    version = re.search(r"^runsc version (\S+)", _ask(path, "--version"), re.MULTILINE)
    if version is None:
        raise InputError(f"{path} does not say its version as runsc does; --runsc names a runsc binary")
    platforms = parse_platforms(_ask(path, "flags"), _ask(path, "help", "platforms"))
    return Runsc(path, version[1], platforms)


def parse_platforms(flags: str, listed: str) -> tuple[str, ...]:
    """Return the platforms of `runsc flags`, the default first; else the lines of `runsc help platforms`."""
    found = re.search(r"-platform \S+\n\s*specifies which platform to use: ([^.\n]*)", flags)
    if found is None:
        return tuple(sorted(line.strip() for line in listed.splitlines() if re.fullmatch(r"\s*[a-z]+\s*", line)))
    words = [word.strip() for word in found[1].split(",")]
    words.sort(key=lambda word: not word.endswith("(default)"))
    return tuple(word.removesuffix("(default)").strip() for word in words)


def make_loop_root(folder: Path, program: bytes) -> None:
    """Make `folder` a root with one program, `/bin/loop`."""
    for name in ("bin", "dev", "proc", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    path = folder / "bin" / "loop"
    path.write_bytes(program)
    path.chmod(0o755)


def _reachable_folder() -> str:
    """Return where temporary folders go, or /tmp if runsc would not start from there.

    Its Sentry is nobody by then, and has to come through every folder above; and a socket in
    `runsc-do0123456789/runsc-runsc-0123456.sock` below ours has a path of at most 107 bytes.
    """
    folder = tempfile.gettempdir()
    closed = any(not path.stat().st_mode & stat.S_IXOTH for path in (Path(folder), *Path(folder).parents))
    if (closed or len(folder) > _MOST_FOLDER) and os.access("/tmp", os.W_OK | os.X_OK):
        return "/tmp"
    return folder


def _ask(path: str, *words: str) -> str:
    try:
        ended = run_bounded([path, *words], Start(_ASK_S))
    except OSError as error:
        raise InputError(f"{path} cannot run: {error.strerror}; --runsc names a runsc binary") from error
    return (ended.stdout + ended.stderr).decode(errors="replace")
