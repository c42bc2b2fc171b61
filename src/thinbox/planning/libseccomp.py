"""libseccomp by ctypes: rules in, a classic BPF program out; for rules of strangers in a process of its own.

Why it exists: libseccomp is the compiler that runc, crun, podman and systemd use, so what it makes of a profile is what
the profile means. Of some rules it never ends (2.5.4: two entries that compare three arguments with NE), so rules that
are not ours are given to a child that is ended in time.
Why by ctypes: Debian's `python3-seccomp` is not seen from a virtual environment, and PyPI's `pyseccomp` is the same few
calls by ctypes, last released in 2021 (docs/decisions/0012-exports.md).

Source: seccomp.h of libseccomp 2.5 (functions, `scmp_arg_cmp`, actions).
"""

import ctypes
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thinbox.errors import InputError
from thinbox.planning.host_process import Start, run_bounded

ARCH_X86 = 0x40000003
_LIMIT_S = 10.0
"""Python's start and a filter of a few hundred entries take 0.1 s."""
_MODULE = "thinbox.planning.libseccomp"


class _Compare(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


@dataclass(frozen=True, slots=True)
class LibraryRule:
    """One rule: the call's name for messages and its number, 32 bits of action, (argument, operator, a, b) of each
    comparison."""

    name: str
    nr: int
    action: int
    compares: tuple[tuple[int, int, int, int], ...] = ()


def compile_rules(default: int, rules: Sequence[LibraryRule], *, compat: bool = False) -> bytes:
    """Return the program, an array of struct sock_filter; with `compat` the rules hold for 32-bit calls too.

    Raises:
        InputError: libseccomp is missing or refuses a rule.
    """
    library = _load()
    context = library.seccomp_init(default)
    if not context:
        raise InputError("libseccomp cannot start a filter with this default")
    try:
        if compat:
            _require(library.seccomp_arch_add(context, ARCH_X86), "32-bit calls")
        for rule in rules:
            compares = (_Compare * max(1, len(rule.compares)))()
            for slot, compare in zip(compares, rule.compares, strict=False):
                slot.arg, slot.op, slot.a, slot.b = compare
            result = library.seccomp_rule_add_array(context, rule.action, rule.nr, len(rule.compares), compares)
            _require(result, rule.name)
        with tempfile.TemporaryFile() as file:
            _require(library.seccomp_export_bpf(context, file.fileno()), "the program")
            file.seek(0)
            return file.read()
    finally:
        library.seccomp_release(context)


def compile_apart(default: int, rules: Sequence[LibraryRule], limit_s: float = _LIMIT_S) -> bytes:
    """Return what `compile_rules` does, from a child process.

    Raises:
        InputError: as `compile_rules`; or libseccomp did not end within `limit_s` seconds.
    """
    listed = [[rule.name, rule.nr, rule.action, rule.compares] for rule in rules]
    source = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps([default, listed]).encode())
        file.seek(0)
        start = Start(limit_s, env={**os.environ, "PYTHONPATH": path}, stdin=file.fileno())
        try:
            ended = run_bounded([sys.executable, "-P", "-m", _MODULE], start)
        except InputError as error:
            raise InputError(f"libseccomp did not end within {limit_s:g} s on the rules for {rules[0].name}") from error
    if ended.exit_code:
        last = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise InputError(
            last if ended.exit_code == 2 else f"libseccomp ended with status {ended.exit_code}: {last[:120]}"
        )
    return ended.stdout


def _load() -> ctypes.CDLL:
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
    return library


def _require(result: int, what: str) -> None:
    if result < 0:
        raise InputError(f"libseccomp refuses {what}: {os.strerror(-result)}")


def _child() -> int:
    default, listed = json.load(sys.stdin)
    rules = [LibraryRule(name, nr, action, tuple(map(tuple, compares))) for name, nr, action, compares in listed]
    try:
        program = compile_rules(default, rules)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.buffer.write(program)
    return 0


if __name__ == "__main__":
    sys.exit(_child())
