"""What each exported format says of one call, worked out apart from the code that writes it.

Why it exists: an export that says more than its plan is worse than none; so each is read back by a reader of its own,
written after the format's own documents and not after our writers.

Every reader takes a format's bytes and returns a function of a call's number, name and six registers, which answers
`allow`, `kill` or an errno.
"""

import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

Answer = str | int
Reader = Callable[[int, str, Sequence[int]], Answer]
EPERM = 1
X86_64 = 0xC000003E
_ACTIONS = {"SCMP_ACT_ALLOW": "allow", "SCMP_ACT_KILL_PROCESS": "kill"}
AT_DEFAULT = "arch_prctl brk execve exit exit_group futex getpid getuid mmap mprotect munmap rt_sigreturn time".split()
"""Some of systemd's @default."""


def read_oci(data: bytes) -> Reader:
    """OCI runtime-spec, config-linux.md, "Seccomp"; libseccomp: all comparisons of a rule must hold."""
    return _read_object(json.loads(data))


def read_docker(data: bytes, *, default_errno: bool = True) -> Reader:
    """docker's: what is not for amd64 is left out. `default_errno` False is docker 20.10, which knows no such key."""
    profile = json.loads(data)
    assert "architectures" not in profile
    arches = {entry["architecture"] for entry in profile["archMap"]}
    assert "SCMP_ARCH_X86_64" in arches
    mine = [e for e in profile["syscalls"] if "amd64" in e.get("includes", {}).get("arches", ["amd64"])]
    if not default_errno:
        profile.pop("defaultErrnoRet", None)
    return _read_object(profile | {"syscalls": mine})


def operator_profile(data: bytes) -> dict[str, Any]:
    """What the Security Profiles Operator hands to the runtime (internal/pkg/util/seccomp_convert.go): signed numbers,
    no default errno, an errno of 0 as none."""
    spec = yaml.load(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]  # noqa: S506
    out = {key: spec[key] for key in ("defaultAction", "architectures")} | {"syscalls": []}
    for entry in spec["syscalls"]:
        kept = {"names": entry["names"], "action": entry["action"]}
        if entry.get("errnoRet"):
            kept["errnoRet"] = entry["errnoRet"]
        if entry.get("args"):
            kept["args"] = entry["args"]
            assert all(0 <= arg.get(key, 0) < 1 << 63 for arg in entry["args"] for key in ("value", "valueTwo"))
        out["syscalls"].append(kept)
    return out


def read_operator(data: bytes) -> Reader:
    """A SeccompProfile of the Security Profiles Operator."""
    return _read_object(operator_profile(data))


def _read_object(profile: Mapping[str, Any]) -> Reader:
    def answer(_nr: int, name: str, args: Sequence[int]) -> Answer:
        found = {
            _action(e) for e in profile["syscalls"] if name in e["names"] and all(map(holds(args), e.get("args", ())))
        }
        assert len(found) <= 1 or "allow" not in found, f"{name} is both allowed and refused"
        default = _action({"action": profile["defaultAction"], "errnoRet": profile.get("defaultErrnoRet", EPERM)})
        return next(iter(found), default)

    def holds(args: Sequence[int]) -> Callable[[Mapping[str, Any]], bool]:
        def hold(arg: Mapping[str, Any]) -> bool:
            if arg["op"] == "SCMP_CMP_EQ":
                return args[arg["index"]] == arg["value"]
            assert arg["op"] == "SCMP_CMP_MASKED_EQ"
            return args[arg["index"]] & arg["value"] == arg["valueTwo"]

        return hold

    return answer


def _action(entry: Mapping[str, Any]) -> Answer:
    return _ACTIONS.get(entry["action"]) or entry.get("errnoRet", EPERM)


def read_systemd(data: bytes) -> Reader:
    """systemd.exec(5): lists add up, an empty one resets, `~` takes away; names only, and families of sockets."""
    import errno as names

    listed: dict[str, Answer] | None = None
    allow_list, default, families = False, "kill", None
    for line in data.decode().splitlines():
        key, equals, value = line.partition("=")
        if line.startswith(("#", "[")) or not equals:
            continue
        if key == "SystemCallErrorNumber":
            default = value if value == "kill" else getattr(names, value)
        elif key == "RestrictAddressFamilies":
            families = [] if value == "none" else [*(families or []), value]
        elif key == "SystemCallFilter" and not value:
            listed, allow_list = None, False
        elif key == "SystemCallFilter":
            inverted = value.startswith("~")
            if listed is None:
                allow_list = not inverted
                listed = dict.fromkeys(AT_DEFAULT, "allow") if allow_list else {}
            for word in value.removeprefix("~").split():
                name, _, error = word.partition(":")
                for one in AT_DEFAULT if name == "@default" else [name]:
                    if not inverted:
                        listed[one] = "allow"
                    elif error:
                        listed[one] = error if error == "kill" else getattr(names, error)
                    else:
                        listed.pop(one, None)
    assert listed is not None and allow_list, "no allow list: everything would be allowed"
    numbers = {"AF_UNIX": 1, "AF_INET": 2, "AF_IPX": 4, "AF_INET6": 10, "AF_NETLINK": 16, "AF_PACKET": 17}

    def answer(_nr: int, name: str, args: Sequence[int]) -> Answer:
        if name == "socket" and families is not None and args[0] not in [numbers[f] for f in families]:
            return names.EAFNOSUPPORT
        return listed.get(name, default)

    return answer


def read_gvisor(data: bytes) -> Reader:
    """Go source of seccomp.SyscallRules (gvisor, pkg/seccomp): a call that is not listed is not allowed."""
    rules = dict(re.findall(r"^\tunix\.SYS_(\w+): (.*),$", data.decode(), re.MULTILINE))

    def answer(_nr: int, name: str, args: Sequence[int]) -> Answer:
        rule = rules.get(name.upper())
        if rule is None:
            return EPERM
        if rule == "seccomp.MatchAll{}":
            return "allow"
        every = re.findall(r"seccomp\.PerArg\{(.*?)\}(?=, seccomp\.PerArg|\}?$)", rule)
        assert every
        return "allow" if any(all(_matches(m, args[i]) for i, m in enumerate(_matchers(p))) for p in every) else EPERM

    return answer


def _matchers(text: str) -> list[str]:
    found = re.findall(r"seccomp\.\w+(?:\{\}|\([^)]*\))", text)
    assert ", ".join(found) == text
    return found


def _matches(matcher: str, value: int) -> bool:
    numbers = [int(word, 16) for word in re.findall(r"0x[0-9a-f]+", matcher)]
    if matcher == "seccomp.AnyValue{}":
        return True
    if matcher.startswith("seccomp.EqualTo("):
        return numbers == [value]
    assert matcher.startswith("seccomp.MaskedEqual(")
    return value & numbers[0] == numbers[1]


def read_bpf(data: bytes) -> Reader:
    """Classic BPF on struct seccomp_data (include/uapi/linux/{filter,bpf_common,seccomp}.h): the few instructions that
    libseccomp makes."""
    program = list(struct.iter_unpack("<HBBI", data))
    assert 0 < len(program) <= 4096

    def answer(nr: int, _name: str, args: Sequence[int]) -> Answer:
        memory = struct.pack("<iIQ6Q", nr, X86_64, 0, *args)
        result = _run(program, memory)
        action, low = result & 0xFFFF0000, result & 0xFFFF
        if action == 0x7FFF0000:
            return "allow"
        if action == 0x80000000:
            return "kill"
        assert action == 0x00050000, hex(result)
        return low

    return answer


def _run(program: Sequence[tuple[int, int, int, int]], memory: bytes) -> int:
    jumps = {0x15: int.__eq__, 0x25: int.__gt__, 0x35: int.__ge__, 0x45: int.__and__}
    accumulator, at = 0, 0
    while True:
        code, yes, no, k = program[at]
        at += 1
        if code == 0x20:  # ld [k]
            (accumulator,) = struct.unpack_from("<I", memory, k)
        elif code == 0x54:  # and #k
            accumulator &= k
        elif code == 0x05:  # ja
            at += k
        elif code == 0x06:  # ret #k
            return k
        else:
            at += yes if jumps[code](accumulator, k) else no


READERS: Mapping[str, Reader] = {
    "oci": read_oci, "docker": read_docker, "systemd": read_systemd, "spo": read_operator, "bpf": read_bpf,
    "gvisor": read_gvisor,
}  # fmt: skip
"""By the name `--export` takes."""
