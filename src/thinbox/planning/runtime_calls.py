"""What a container runtime itself calls between loading the filter and starting the program.

Why it exists: a profile of the workload alone makes the container fail before its first instruction; it is the
complaint most often made about profile generators.

Sources: the base profiles that the Kubernetes Security Profiles Operator keeps and tests for each runtime
(examples/baseprofile-runc.yaml and baseprofile-crun.yaml, Apache-2.0): names of calls only. They are recorded for the
whole start and so hold more than what follows the filter: crun's has mount and unshare. `runc-nnp` and `crun-nnp` were
measured, and are the narrow ones: with noNewPrivileges both load the filter last. tests/planning/test_engines.py runs
every set but `none` under the engine it is for.

podman's conmon, docker's daemon, containerd and its shim run outside the container and never under its filter: for them
the set is that of the runtime they start.
"""

from dataclasses import dataclass, replace

from thinbox.errors import InputError


@dataclass(frozen=True, slots=True)
class Runtime:
    """One runtime: names of calls, and where they come from."""

    name: str
    source: str
    calls: tuple[str, ...]


_OPERATOR = "kubernetes-sigs/security-profiles-operator"
RUNTIMES = {
    "runc": Runtime(
        "runc",
        f"runc 1.2.3: {_OPERATOR}, examples/baseprofile-runc.yaml at d110382b5d66",
        (
            "arch_prctl", "brk", "capget", "capset", "chdir", "close", "close_range", "epoll_ctl",
            "epoll_pwait", "execve", "exit_group", "faccessat2", "fcntl", "fstat", "fstatfs", "futex", "getcwd",
            "getdents64", "getpid", "getppid", "getuid", "mmap", "mprotect", "nanosleep", "newfstatat",
            "openat", "prctl", "read", "recvfrom", "rt_sigreturn", "sched_yield", "set_tid_address", "setgid",
            "setgroups", "setuid", "tgkill", "write",
        ),
    ),
    "crun": Runtime(
        "crun",
        f"crun 1.21: {_OPERATOR}, examples/baseprofile-crun.yaml at 0683a19040b6",
        (
            "access", "arch_prctl", "brk", "capset", "chdir", "chmod", "chown", "close", "close_range", "dup2",
            "execve", "exit_group", "fchdir", "fchown", "fstat", "fstatfs", "getcwd", "getegid", "geteuid",
            "getgid", "getuid", "ioctl", "lseek", "mkdirat", "mknodat", "mmap", "mount", "mprotect",
            "nanosleep", "newfstatat", "openat", "openat2", "pivot_root", "prctl", "pselect6", "read",
            "readlink", "rt_sigaction", "rt_sigprocmask", "set_tid_address", "setgroups", "sethostname",
            "setns", "setresgid", "setresuid", "setsid", "statfs", "statx", "symlinkat", "umask", "umount2",
            "unshare", "write",
        ),
    ),
    "runc-nnp": Runtime(
        "runc-nnp",
        "runc 1.1.5 (Debian 12) with noNewPrivileges, by strace from loading the filter to execve, 2026-11;"
        " and what Go's run time may do meanwhile (baseprofile-runc.yaml)",
        (
            "close", "epoll_ctl", "execve", "fstatfs", "futex", "getdents64", "getpid", "openat", "prctl",
            "rt_sigreturn", "write", "epoll_pwait", "exit_group", "fcntl", "mmap", "nanosleep", "read",
            "sched_yield", "tgkill",
        ),
    ),
    "crun-nnp": Runtime(
        "crun-nnp",
        "crun 1.8.1 (Debian 12) with noNewPrivileges, by strace from loading the filter to execve, 2026-11; and what"
        " reports an error (write, exit_group) and what newer ones close files with (baseprofile-crun.yaml)",
        ("close", "close_range", "execve", "exit_group", "write"),
    ),
    "exec": Runtime("exec", "a launcher that loads the filter and starts the program (bwrap --seccomp)", ("execve",)),
    "systemd": Runtime(
        "systemd",
        "systemd 252 (Debian 12): it loads SystemCallFilter= last, 2026-11; what it would allow of itself (@default)"
        " the drop-in takes away",
        ("execve",),
    ),
}  # fmt: skip
RUNTIMES |= {
    name: replace(RUNTIMES[real], name=name, source=f"{who}, which starts {RUNTIMES[real].source}")
    for name, real, who in (
        ("docker", "runc", "docker"),
        ("docker-nnp", "runc-nnp", "docker with no-new-privileges"),
        ("podman", "crun", "podman"),
        ("podman-nnp", "crun-nnp", "podman with no-new-privileges"),
    )
}


def find_runtimes(names: tuple[str, ...]) -> tuple[Runtime, ...]:
    """Return runtimes by name; `none` is no runtime; InputError for another name."""
    unknown = [name for name in names if name not in RUNTIMES and name != "none"]
    if unknown:
        raise InputError(f"no runtime {unknown[0]!r} is known; use {', '.join(RUNTIMES)} or none")
    return tuple(RUNTIMES[name] for name in names if name != "none")
