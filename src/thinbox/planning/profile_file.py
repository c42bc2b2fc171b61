"""Seccomp profiles of strangers: docker's and podman's JSON, OCI's, a whole config.json, the operator's manifest.

Why it exists: four programs read almost the same words, each in its own way, and leave out in silence what they do not
know. What is read here is what they read; where they differ, the profile carries a note.

Rules of this file:
- Whatever is wrong is an `InputError` of one line. What engines leave out is told, and what widens a profile first.
- Keys are matched as Go's encoding/json does, without regard to case; null is as if it were not there.

Source: moby/profiles seccomp/seccomp_linux.go; containers/common pkg/seccomp/seccomp_linux.go (podman, CRI-O, buildah);
opencontainers/runc libcontainer/specconv (`SetupSeccomp`) and libcontainer/seccomp/config.go; containerd
contrib/seccomp; kubernetes-sigs/security-profiles-operator api/seccompprofile.
"""

from pathlib import Path
from typing import Any

from thinbox.errors import InputError
from thinbox.foreign_text import MAX_JSON_BYTES, parse_json
from thinbox.foreign_yaml import MAX_YAML_BYTES, parse_yaml
from thinbox.host.files import read_file, show
from thinbox.planning.go_fields import Fields
from thinbox.planning.profile_entry import (
    Reading,
    read_action,
    read_entry,
    read_errno,
    require_known_actions,
    show_places,
)
from thinbox.planning.seccomp_profile import (
    ACTIONS,
    Profile,
    index_entries,
)  # fmt: skip

_ARCHITECTURES = frozenset(
    [
        "X86",
        "X86_64",
        "X32",
        "ARM",
        "AARCH64",
        "MIPS",
        "MIPS64",
        "MIPS64N32",
        "MIPSEL",
        "MIPSEL64",
        "MIPSEL64N32",
        "PPC",
        "PPC64",
        "PPC64LE",
        "RISCV64",
        "S390",
        "S390X",
        "LOONGARCH64",
    ]
)
"""After `SCMP_ARCH_`; runc takes no other."""
_FLAGS = frozenset(f"SECCOMP_FILTER_FLAG_{name}" for name in ("TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV"))
_NATIVE = "SCMP_ARCH_X86_64"
_OPERATOR = "security-profiles-operator.x-k8s.io"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def load_profile(path: Path) -> Profile:
    """Read a profile; InputError if it is none, or one that an engine would refuse."""
    data = read_file(path, MAX_JSON_BYTES)
    what = show(path)
    notes = []
    if data.startswith((b"\xef\xbb\xbf", *_UTF16)):
        notes.append("it begins with a byte order mark: docker, podman and runc refuse such a file")
        try:
            data = data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig").encode()
        except ValueError as error:
            raise InputError(f"{what} is no text: {error}") from error
    return parse_profile(_value(data, path, what), what, tuple(notes))


def _value(data: bytes, path: Path, what: str) -> Any:
    looks_like_json = data.lstrip()[:1] in (b"{", b"[")
    if looks_like_json and path.suffix.lower() not in (".yaml", ".yml"):
        return parse_json(data, what)
    if not looks_like_json and path.suffix.lower() == ".json":
        return parse_json(data, what)
    if len(data) > MAX_YAML_BYTES:
        raise InputError(f"{what} is larger than {MAX_YAML_BYTES >> 20} MiB")
    documents = [document for document in parse_yaml(data, what) if document is not None]
    if len(documents) > 1:
        documents = [d for d in documents if isinstance(d, dict) and d.get("kind") == "SeccompProfile"]
    if len(documents) != 1:
        raise InputError(f"{what} holds {len(documents) or 'no'} seccomp profiles; one is read at a time")
    return documents[0]


def parse_profile(data: Any, what: str = "the profile", notes: tuple[str, ...] = ()) -> Profile:
    """Return what a profile says on x86-64; InputError for anything that is none."""
    reading = Reading(what)
    for text in notes:
        reading.note(text)
    found = _profile_object(Fields(data, what), reading)
    default = found.text("defaultAction")
    entries = found.objects("syscalls")
    if not default and not entries:
        raise InputError(
            f"{what} is no seccomp profile: it has neither defaultAction nor syscalls; engines filter nothing"
        )
    if unknown := sorted(set(found.words("flags")) - _FLAGS):
        raise InputError(f"{what}: runc refuses the flag {unknown[0][:60]!r}")
    compat = _architectures(found, reading)
    errno = None if reading.by_operator else read_errno(found, "defaultErrno", "defaultErrnoRet", reading)
    action = read_action(default, errno, reading, 0)
    made = [
        entry for number, fields in enumerate(entries, 1) if (entry := read_entry(number, fields, reading)) is not None
    ]
    require_known_actions(reading)
    if action.code == ACTIONS["SCMP_ACT_NOTIFY"]:
        raise InputError(f"{what}: runc takes no SCMP_ACT_NOTIFY as default action")
    kept = tuple(entry for entry in made if entry is not None)
    texts = tuple(text + show_places(numbers) for text, numbers in reading.notes.items())
    return Profile(action, kept, compat, tuple(sorted(reading.unknown)), texts, index_entries(kept))


def _profile_object(top: Fields, reading: Reading) -> Fields:
    """Return the object with `defaultAction`, and note in `reading` who reads it."""
    api = top.get("apiVersion")
    if top.get("kind") == "SeccompProfile" or (isinstance(api, str) and api.startswith(_OPERATOR)):
        reading.by_runc = reading.by_operator = True
        if top.get("kind") != "SeccompProfile":
            raise InputError(f"{reading.what} is no SeccompProfile of the operator's")
        spec = top.object("spec")
        if spec.get("disabled") is True:
            raise InputError(f"{reading.what} is disabled: the operator does not install it")
        if base := spec.text("baseProfileName"):
            raise InputError(
                f"{reading.what} adds to the profile {base[:60]!r}, which is another file: give the merged one, "
                "as the operator writes it to the node (status.path)"
            )
        return spec
    if top.has("linux") or top.has("ociVersion"):
        reading.by_runc = True
        seccomp = top.object("linux").object("seccomp")
        if seccomp.is_empty:
            raise InputError(f"{reading.what} has no linux.seccomp: runc filters nothing")
        return seccomp
    return top


def _architectures(found: Fields, reading: Reading) -> bool:
    """Note what the profile was written for; return whether 32-bit calls are filtered by its names too."""
    listed = found.words("architectures")
    mapped = [] if reading.by_runc else found.objects("archMap")
    if reading.by_runc and found.get("archMap"):
        reading.note("runc does not look at archMap")
    if listed and mapped:
        raise InputError(f"{reading.what} has both architectures and archMap; docker and podman refuse that")
    if mapped:
        mine = next((fields for fields in mapped if fields.text("architecture") == _NATIVE), None)
        others = [fields.text("architecture") for fields in mapped]
        listed = [] if mine is None else [_NATIVE, *mine.words("subArchitectures")]
    else:
        others = listed
    if strange := [
        name for name in listed if name.removeprefix("SCMP_ARCH_") not in _ARCHITECTURES or name[:10] != "SCMP_ARCH_"
    ]:
        raise InputError(f"{reading.what}: runc knows no architecture {strange[0][:60]!r}")
    if others and _NATIVE not in others:
        shown = ", ".join(name.removeprefix("SCMP_ARCH_")[:20] for name in others[:6])
        reading.note(
            f"it was written for another architecture ({shown}): engines apply it to x86-64 calls all the same, by name"
        )
    return "SCMP_ARCH_X86" in listed
