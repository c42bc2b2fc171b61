"""Seccomp profiles as JSON: the OCI runtime specification's object, and docker's with its architecture map.

Sources: opencontainers/runtime-spec, config-linux.md, "Seccomp"; moby/profiles/seccomp (`archMap`, `comment`). podman
reads both.

Rules of this file: a call with comparisons becomes one entry for each combination, never two comparisons on one
argument: runc reads those as "or", libseccomp as "and".
"""

import errno
import json
from typing import Any

from thinbox.planning.filters import CallNote, Compare, Filter, FilterRule
from thinbox.syscalls.table import all_calls

_ACTIONS = {"allow": "SCMP_ACT_ALLOW", "errno": "SCMP_ACT_ERRNO", "kill": "SCMP_ACT_KILL_PROCESS"}
GENERIC = {
    "open": "openat", "creat": "openat", "stat": "newfstatat", "lstat": "newfstatat", "access": "faccessat",
    "pipe": "pipe2", "poll": "ppoll", "select": "pselect6", "dup2": "dup3", "fork": "clone", "vfork": "clone",
    "epoll_create": "epoll_create1", "epoll_wait": "epoll_pwait", "eventfd": "eventfd2", "signalfd": "signalfd4",
    "inotify_init": "inotify_init1", "mkdir": "mkdirat", "rmdir": "unlinkat", "unlink": "unlinkat", "rename":
    "renameat2",
    "link": "linkat", "symlink": "symlinkat", "readlink": "readlinkat", "chmod": "fchmodat", "chown": "fchownat",
    "lchown": "fchownat", "mknod": "mknodat", "utime": "utimensat", "utimes": "utimensat", "futimesat": "utimensat",
    "getdents": "getdents64", "alarm": "setitimer", "pause": "ppoll", "time": "gettimeofday", "getpgrp": "getpgid",
    "getrlimit": "prlimit64", "setrlimit": "prlimit64",
}  # fmt: skip
"""What stands for a call of x86-64 where the generic table (include/uapi/asm-generic/unistd.h) has it no more."""


def seccomp_object(made: Filter) -> dict[str, Any]:
    """Return the object of `linux.seccomp` in an OCI `config.json`."""
    out: dict[str, Any] = {"defaultAction": _ACTIONS[made.default]}
    if made.default == "errno":
        out["defaultErrnoRet"] = made.default_errno
    out["architectures"] = ["SCMP_ARCH_X86_64", *(["SCMP_ARCH_X86"] if made.compat else [])]
    out["syscalls"] = _entries(made)
    return out


def render_oci(made: Filter) -> bytes:
    """Return the profile for runc, crun and podman."""
    return _bytes(seccomp_object(made))


def render_docker(made: Filter) -> bytes:
    """Return the profile for `docker run --security-opt seccomp=FILE`, arm64 included by the names it has."""
    out = seccomp_object(made)
    del out["architectures"]
    subs = ["SCMP_ARCH_X86"] if made.compat else []
    out["archMap"] = [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": subs},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
    ]
    comments = {note.name: note for note in made.notes}
    for entry in out["syscalls"]:
        if len(entry["names"]) == 1:
            entry["comment"] = describe_note(comments[entry["names"][0]])
    if has_unsaid_errno(made):
        other = {"names": other_calls(made), "action": "SCMP_ACT_ERRNO", "errnoRet": made.default_errno}
        comment = "the default once more, call by call: docker before 23 has no defaultErrnoRet"
        out["syscalls"].append(other | {"includes": {"arches": ["amd64"]}, "comment": comment})
    allowed = set(made.allowed())
    missing = sorted({GENERIC[name] for name in allowed if name in GENERIC} - allowed)
    if missing:
        out["syscalls"].append(
            {
                "names": missing,
                "action": "SCMP_ACT_ALLOW",
                "includes": {"arches": ["arm64"]},
                "comment": "what stands for this workload's x86-64 calls in the generic table; not recorded on arm64",
            }
        )
    return _bytes(out)


def describe_note(note: CallNote) -> str:
    """Return one line of evidence."""
    times = note.evidence.get("times")
    parts = [note.reason, f"{times} times" if times else "", note.arguments, note.source]
    return "; ".join(part for part in parts if part)


def has_unsaid_errno(made: Filter) -> bool:
    """Whether the default's errno is lost on a reader that knows no `defaultErrnoRet`: it takes EPERM."""
    return made.default == "errno" and made.default_errno != errno.EPERM


def other_calls(made: Filter) -> list[str]:
    """Return the calls of x86-64 that no rule names."""
    return sorted({info.name for info in all_calls()} - {rule.name for rule in made.rules})


def _entries(made: Filter) -> list[dict[str, Any]]:
    plain: dict[tuple[str, int], list[str]] = {}
    out: list[dict[str, Any]] = []
    for rule in made.rules:
        if rule.compares:
            out.append(_entry([rule.name], rule) | {"args": [compare_object(compare) for compare in rule.compares]})
        else:
            plain.setdefault((rule.action, rule.errno), []).append(rule.name)
    grouped = [
        _entry(sorted(names), FilterRule("", 0, action, errno)) for (action, errno), names in sorted(plain.items())
    ]
    return grouped + out


def _entry(names: list[str], rule: FilterRule) -> dict[str, Any]:
    out: dict[str, Any] = {"names": names, "action": _ACTIONS[rule.action]}
    if rule.action == "errno":
        out["errnoRet"] = rule.errno
    return out


def compare_object(compare: Compare) -> dict[str, Any]:
    """Return an entry of `args`."""
    if compare.exact:
        return {"index": compare.index, "value": compare.value, "op": "SCMP_CMP_EQ"}
    return {"index": compare.index, "value": compare.mask, "valueTwo": compare.value, "op": "SCMP_CMP_MASKED_EQ"}


def _bytes(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
