"""The compiled filter: a classic BPF program as libseccomp makes it, for `bwrap --seccomp` and seccomp(2).

Why it exists: production loads programs, not plans. libseccomp is the compiler that runc, crun and systemd use.
Why by ctypes: Debian's `python3-seccomp` is not seen from a virtual environment, and PyPI's `pyseccomp` is the same few
calls by ctypes, last released in 2021 (docs/decisions/0012-exports.md).

Source: seccomp.h of libseccomp 2.5 (functions, `scmp_arg_cmp`, actions).
"""

import ctypes
import os
import tempfile

from thinbox.errors import InputError
from thinbox.planning.filters import Filter

_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_MASKED_EQ, _EQ = 7, 4
_ARCH_X86 = 0x40000003


class _Compare(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def render_bpf(made: Filter) -> bytes:
    """Return the program: an array of struct sock_filter, eight bytes each.

    Raises:
        InputError: libseccomp is missing or refuses a rule.
    """
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise InputError("libseccomp is not installed; apt install libseccomp2") from error
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_release.argtypes = (ctypes.c_void_p,)
    library.seccomp_arch_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    library.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)
    library.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Compare),
    )  # fmt: skip
    context = library.seccomp_init(_action(made.default, made.default_errno))
    if not context:
        raise InputError("libseccomp cannot start a filter with this default")
    try:
        if made.compat:
            _require(library.seccomp_arch_add(context, _ARCH_X86), "32-bit calls")
        for rule in made.rules:
            compares = (_Compare * max(1, len(rule.compares)))()
            for slot, compare in zip(compares, rule.compares, strict=False):
                slot.arg = compare.index
                slot.op = _EQ if compare.exact else _MASKED_EQ
                slot.a, slot.b = (compare.value, 0) if compare.exact else (compare.mask, compare.value)
            action = _action(rule.action, rule.errno)
            result = library.seccomp_rule_add_array(context, action, rule.nr, len(rule.compares), compares)
            _require(result, rule.name)
        with tempfile.TemporaryFile() as file:
            _require(library.seccomp_export_bpf(context, file.fileno()), "the program")
            file.seek(0)
            return file.read()
    finally:
        library.seccomp_release(context)


def _action(action: str, errno: int) -> int:
    return {"allow": _ALLOW, "errno": _ERRNO | errno, "kill": _KILL_PROCESS}[action]


def _require(result: int, what: str) -> None:
    if result < 0:
        raise InputError(f"libseccomp refuses {what}: {os.strerror(-result)}")
