"""The program that every engine runs under its own profile, and what strays from that profile."""

COMMAND = ["sh", "-c", "echo hello | wc -c; id -u; ls / | sort | head -3; cat /etc/hostname; exit 7"]
EXPECTED = b"6\n0\nbin\ndev\netc\nthinbox\n"
STRAY = ["sh", "-c", "mkdir /tmp/x; echo $?; echo on"]
CONNECT = ["sh", "-c", "nc -w 1 127.0.0.1 9"]
_NAMES = (
    "read write close openat fstat newfstatat mmap mprotect brk exit_group execve arch_prctl set_tid_address prctl "
    "rt_sigaction rt_sigprocmask set_robust_list rseq prlimit64 readlink getrandom getuid geteuid dup2 clone fork wait4 "
    "getpid getppid uname getcwd rt_sigreturn ioctl poll setsockopt connect bind sendto lseek fcntl getsockname stat "
    "fchdir chdir"
).split()


def plan_by_hand(more: str = "", without: tuple[str, ...] = ()) -> str:
    """Return a plan that allows what small programs call, and what the lines `more` say."""
    calls = "".join(f'{name} = "isolate"\n' for name in _NAMES if name not in without)
    return f'schema = "thinbox.plan/1"\ndefault = "deny:EPERM"\n[calls]\n{calls}{more}\n'
