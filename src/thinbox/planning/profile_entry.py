"""One entry of a seccomp profile as docker, podman and runc read it: names, action, errno, comparisons, conditions.

Why it exists: each of them leaves out in silence what it does not know, so that one entry can mean three things.
What is read is docker's meaning, and for what runc itself is handed, runc's; where others differ, there is a note.

Source: moby/profiles seccomp/seccomp_linux.go; containers/common pkg/seccomp (podman, CRI-O, buildah);
opencontainers/runc libcontainer/seccomp/seccomp_linux.go; containerd contrib/seccomp.
"""

import difflib
import errno as errnos
import re
from dataclasses import dataclass, field

from thinbox.errors import InputError
from thinbox.planning.go_fields import Fields
from thinbox.planning.seccomp_profile import ACTIONS, ERRNO, OPERATORS, Action, Clause, Comparison, Entry
from thinbox.syscalls.table import MAX_ARGUMENTS, all_calls

_MINE = "amd64"
_MAX_ERRNO = 4095
"""libseccomp takes less than this (src/db.c, `db_col_action_valid`)."""
_ERRNOS = frozenset({
    "EPERM", "ENOENT", "ESRCH", "EIO", "ENXIO", "E2BIG", "ENOEXEC", "EBADF", "ECHILD", "EDEADLK", "ENOMEM",
    "EACCES", "EFAULT", "ENOTBLK", "EBUSY", "EEXIST", "EXDEV", "ENODEV", "ENOTDIR", "EISDIR", "EINVAL", "ENFILE",
    "EMFILE", "ENOTTY", "ETXTBSY", "EFBIG", "ENOSPC", "ESPIPE", "EROFS", "EMLINK", "EPIPE", "EDOM", "ERANGE",
    "EAGAIN", "EINPROGRESS", "EALREADY", "ENOTSOCK", "EDESTADDRREQ", "EMSGSIZE", "EPROTOTYPE", "ENOPROTOOPT",
    "EPROTONOSUPPORT", "ESOCKTNOSUPPORT", "EOPNOTSUPP", "EPFNOSUPPORT", "EAFNOSUPPORT", "EADDRINUSE",
    "EADDRNOTAVAIL", "ENETDOWN", "ENETUNREACH", "ENETRESET", "ECONNABORTED", "ECONNRESET", "ENOBUFS", "EISCONN",
    "ENOTCONN", "ESHUTDOWN", "ETOOMANYREFS", "ETIMEDOUT", "ECONNREFUSED", "ELOOP", "ENAMETOOLONG", "EHOSTDOWN",
    "EHOSTUNREACH", "ENOTEMPTY", "EUSERS", "EDQUOT", "ESTALE", "EREMOTE", "ENOLCK", "ENOSYS", "EILSEQ",
    "ENOMEDIUM", "EMEDIUMTYPE", "EOVERFLOW", "ECANCELED", "EIDRM", "ENOMSG", "ENOTSUP", "EBADMSG",
    "ENOTRECOVERABLE", "EOWNERDEAD",
})  # fmt: skip
"""The names that containers-common knows (pkg/seccomp/errno_list.go)."""
_KERNEL = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})")
_DOCKER_KEYS = ("name", "includes", "excludes", "errno")


@dataclass(slots=True)
class Reading:
    """One profile on the way in: whose rules hold, and what was found."""

    what: str
    by_runc: bool = False
    by_operator: bool = False
    notes: dict[str, list[int]] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    bad_actions: dict[str, list[int]] = field(default_factory=dict)

    def note(self, text: str, number: int = 0) -> None:
        self.notes.setdefault(text, []).append(number)


def show_places(numbers: list[int]) -> str:
    """Return ` (entries 1, 3)`, or nothing where no entry is meant."""
    where = sorted({number for number in numbers if number})
    if not where:
        return ""
    listed = ", ".join(map(str, where[:8])) + (", …" if len(where) > 8 else "")
    return f" ({'entries' if len(where) > 1 else 'entry'} {listed})"


def read_entry(number: int, fields: Fields, reading: Reading) -> Entry | None:
    """Return one element of `syscalls`, None if engines leave it out on x86-64."""
    names = fields.words("names")
    used = [key for key in _DOCKER_KEYS if fields.get(key)]
    if reading.by_runc:
        if used:
            reading.note(
                "runc does not look at name, includes, excludes and errno: read as if they were not there", number
            )
    elif name := fields.text("name"):
        if names:
            raise InputError(f"{fields.place} has both name and names; docker and podman refuse that")
        names = [name]
    if "" in names:
        raise InputError(f"{fields.place} names a call '', which runc refuses")
    errno = read_errno(fields, "errno", "errnoRet", reading, number)
    action = read_action(fields.text("action"), errno, reading, number)
    clauses = _clauses(fields, reading)
    needs = _Needs() if reading.by_runc else _needs(number, fields, reading)
    if used and set(used) & {"name", "includes", "excludes"} and not reading.by_runc:
        reading.note(
            "containerd (Kubernetes, nerdctl) does not look at name, includes and excludes: there, such entries hold "
            "always", number,
        )  # fmt: skip
    if needs is None:
        return None
    known = {info.name for info in all_calls()}
    reading.unknown |= set(names) - known
    if action.code == ACTIONS["SCMP_ACT_NOTIFY"] and "write" in names:
        raise InputError(f"{fields.place}: runc takes no SCMP_ACT_NOTIFY for write")
    mine = tuple(name for name in names if name in known)
    return Entry(
        number, mine, action, clauses, needs.with_all, needs.without_any, needs.from_kernel, needs.before_kernel
    )


@dataclass(frozen=True, slots=True)
class _Needs:
    with_all: frozenset[str] = frozenset()
    without_any: frozenset[str] = frozenset()
    from_kernel: tuple[int, int] | None = None
    before_kernel: tuple[int, int] | None = None


def _needs(number: int, fields: Fields, reading: Reading) -> _Needs | None:
    """Return what includes and excludes ask for, None if that is another architecture."""
    includes, excludes = fields.object("includes"), fields.object("excludes")
    arches, without = includes.words("arches"), excludes.words("arches")
    if {"x86_64", "x86-64", "SCMP_ARCH_X86_64"} & {*arches, *without}:
        reading.note("engines know x86-64 as amd64 in arches, by no other name", number)
    needs = _Needs(
        _capabilities(includes, reading, number), _capabilities(excludes, reading, number),
        _kernel(includes, reading, number), _kernel(excludes, reading, number),
    )  # fmt: skip
    return None if _MINE in without or (arches and _MINE not in arches) else needs


def _capabilities(fields: Fields, reading: Reading, number: int) -> frozenset[str]:
    found = fields.words("caps")
    for name in found:
        if not re.fullmatch(r"CAP_[A-Z0-9_]+", name):
            reading.note(f"{name[:40]!r} is no capability as engines name them (CAP_SYS_ADMIN)", number)
    return frozenset(found)


def _kernel(fields: Fields, reading: Reading, number: int) -> tuple[int, int] | None:
    text = fields.text("minKernel")
    if not text:
        return None
    match = _KERNEL.fullmatch(text)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version == (0, 0) or max(version) > 255:
        raise InputError(f"{fields.place}.minKernel is {text[:40]!r}; docker wants two numbers (4.8)")
    reading.note("podman and CRI-O do not look at minKernel: there, such entries hold on every kernel", number)
    return version


def read_errno(fields: Fields, word: str, number_key: str, reading: Reading, number: int = 0) -> int | None:
    """Return the errno that is given, None if none is. containers-common takes the name before the number."""
    value = fields.number(number_key)
    if reading.by_operator and value == 0:
        value = None  # `omitempty`
    text = "" if reading.by_runc else fields.text(word)
    if not text:
        return value
    if text.isascii() and text.isdigit() and int(text) < 1 << 32:
        named = int(text)
    else:
        if text not in _ERRNOS:
            raise InputError(f"{fields.place}.{word} is {text[:40]!r}, an errno that podman does not know")
        named = getattr(errnos, text)
    if named != (errnos.EPERM if value is None else value):
        reading.note(f"docker does not look at {word}, and answers another errno than podman", number)
    return named


def read_action(name: str, errno: int | None, reading: Reading, number: int) -> Action:
    """Return the action of that name; an unknown one is kept in `reading` (`require_known_actions`)."""
    code = ACTIONS.get(name)
    if code is None:
        reading.bad_actions.setdefault(name, []).append(number)
        return Action(0)
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        low = (errnos.EPERM if errno is None else errno) & 0xFFFF  # runc: int16(*errnoRet)
        if code == ERRNO and low >= _MAX_ERRNO:
            raise InputError(f"{reading.what}: libseccomp takes no errno {low}{show_places([number])}")
        code |= low
    if name == "SCMP_ACT_NOTIFY":
        reading.note("SCMP_ACT_NOTIFY asks a supervisor, which may allow anything: not counted as allowed", number)
    if name == "SCMP_ACT_TRACE":
        reading.note("SCMP_ACT_TRACE asks a tracer, and is ENOSYS without one: not counted as allowed", number)
    return Action(code)


def require_known_actions(reading: Reading) -> None:
    """Raise InputError if actions were read that runc does not know; it names all of them."""
    if not reading.bad_actions:
        return
    shown = []
    for name, numbers in reading.bad_actions.items():
        close = difflib.get_close_matches(
            f"SCMP_ACT_{name.upper().removeprefix('SCMP_ACT_')}"[:60], ACTIONS, n=1, cutoff=0.85
        )
        hint = f", did you mean {close[0]}?" if close else ""
        where = show_places(numbers) or " (defaultAction)"
        shown.append((f"{name[:40]!r}" if name else "none") + where + hint)
    raise InputError(f"{reading.what} has actions that runc refuses: {'; '.join(shown)}")


def _clauses(fields: Fields, reading: Reading) -> tuple[Clause, ...]:
    """Return the alternatives of one entry: all of its comparisons together, or each alone (runc, `matchCall`)."""
    made = []
    for arg in fields.objects("args"):
        op = arg.text("op")
        if op not in OPERATORS:
            raise InputError(f"{arg.place}.op is {op[:40]!r}, an operator that runc does not know")
        index = arg.number("index")
        if index is None and reading.by_operator:
            raise InputError(f"{arg.place} has no index")
        if (index or 0) >= MAX_ARGUMENTS:
            raise InputError(f"{arg.place}.index is {index}; a call has {MAX_ARGUMENTS} arguments, from 0")
        made.append(Comparison(index or 0, OPERATORS[op], arg.number("value") or 0, arg.number("valueTwo") or 0))
        if reading.by_operator and max(made[-1].value, made[-1].value_two) >> 63:
            raise InputError(f"{arg.place}: the operator's numbers have 63 bits")
    if len({comparison.index for comparison in made}) < len(made):
        return tuple((comparison,) for comparison in made)
    return (tuple(made),)
