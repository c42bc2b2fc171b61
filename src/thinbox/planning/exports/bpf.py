"""The compiled filter: a classic BPF program as libseccomp makes it, for `bwrap --seccomp` and seccomp(2).

Why it exists: production loads programs, not plans. libseccomp is the compiler that runc, crun and systemd use.
"""

from thinbox.planning.filters import Compare, Filter
from thinbox.planning.libseccomp import LibraryRule, compile_rules
from thinbox.planning.seccomp_profile import ALLOW, EQ, ERRNO, MASKED_EQ

_KILL_PROCESS = 0x80000000


def render_bpf(made: Filter) -> bytes:
    """Return the program: an array of struct sock_filter, eight bytes each.

    Raises:
        InputError: libseccomp is missing or refuses a rule.
    """
    rules = [
        LibraryRule(rule.name, rule.nr, _action(rule.action, rule.errno), tuple(map(_compare, rule.compares)))
        for rule in made.rules
    ]
    return compile_rules(_action(made.default, made.default_errno), rules, compat=made.compat)


def _compare(compare: Compare) -> tuple[int, int, int, int]:
    if compare.exact:
        return compare.index, EQ, compare.value, 0
    return compare.index, MASKED_EQ, compare.mask, compare.value


def _action(action: str, errno: int) -> int:
    return {"allow": ALLOW, "errno": ERRNO | errno, "kill": _KILL_PROCESS}[action]
