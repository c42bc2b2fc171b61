"""Profiles are read as the engines read them; what those leave out or refuse is told in one line."""

import errno
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.planning.test_exports import plan
from thinbox.errors import InputError
from thinbox.planning.exports import EXPORTS
from thinbox.planning.filters import make_filter
from thinbox.planning.profile_file import load_profile, parse_profile
from thinbox.planning.profile_import import compare_profile
from thinbox.planning.profile_law import call_law
from thinbox.planning.seccomp_profile import Action

ERRNO = {"defaultAction": "SCMP_ACT_ERRNO"}
READ = {"names": ["read"], "action": "SCMP_ACT_ALLOW"}


def notes_of(profile):
    return " | ".join(parse_profile(profile).notes)


def allows(profile, name="read"):
    fixed = call_law(parse_profile(profile), name).fixed
    return fixed is not None and fixed.allows


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({**ERRNO, "syscalls": [{**READ, "action": "ALLOW"}]}, "'ALLOW' (entry 1), did you mean SCMP_ACT_ALLOW?"),
        ({"defaultAction": "SCMP_ACT_NO", "syscalls": [{**READ, "action": "X"}]}, "'SCMP_ACT_NO' (defaultAction)"),
        ({**ERRNO, "syscalls": [{**READ, "action": "X"}, {**READ, "action": "Y"}]}, "'X' (entry 1); 'Y' (entry 2)"),
        ({**ERRNO, "syscalls": [{"names": ["read"]}]}, "actions that runc refuses: none (entry 1)"),
        ({"syscalls": [READ]}, "none (defaultAction)"),
        ({}, "neither defaultAction nor syscalls"),
        ({"defaultAction": "", "syscalls": []}, "engines filter nothing"),
        ({"ociVersion": "1.0.2", "linux": {}}, "has no linux.seccomp: runc filters nothing"),
        ({**ERRNO, "syscalls": [{**READ, "name": "write"}]}, "syscalls[0] has both name and names"),
        ({**ERRNO, "syscalls": [{"names": [""], "action": "SCMP_ACT_ALLOW"}]}, "names a call ''"),
        ({**ERRNO, "syscalls": [{**READ, "names": "read"}]}, "syscalls[0].names is no list: 'read'"),
        ({**ERRNO, "syscalls": [{**READ, "args": [{"index": 6, "op": "SCMP_CMP_EQ"}]}]}, "args[0].index is 6"),
        ({**ERRNO, "syscalls": [{**READ, "args": [{"index": 0}]}]}, "args[0].op is '', an operator"),
        ({**ERRNO, "syscalls": [{**READ, "args": [{"op": "SCMP_CMP_EQ", "value": -1}]}]}, "no number from 0"),
        ({**ERRNO, "syscalls": [{**READ, "args": [{"op": "SCMP_CMP_EQ", "value": 1.5}]}]}, "no number from 0"),
        ({**ERRNO, "syscalls": [{**READ, "args": [{"op": "SCMP_CMP_EQ", "value": True}]}]}, "no number from 0"),
        ({**ERRNO, "syscalls": [None]}, "syscalls[0] is no object"),
        ({**ERRNO, "defaultErrnoRet": 4095}, "libseccomp takes no errno 4095"),
        ({**ERRNO, "defaultErrno": "EINTR"}, "'EINTR', an errno that podman does not know"),
        ({**ERRNO, "architectures": ["SCMP_ARCH_NATIVE"]}, "runc knows no architecture 'SCMP_ARCH_NATIVE'"),
        ({**ERRNO, "architectures": ["SCMP_ARCH_X86"], "archMap": [{}]}, "both architectures and archMap"),
        ({**ERRNO, "flags": ["SECCOMP_FILTER_FLAG_X"]}, "runc refuses the flag"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "no SCMP_ACT_NOTIFY as default"),
        ({**ERRNO, "syscalls": [{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}]}, "no SCMP_ACT_NOTIFY for write"),
        ({**ERRNO, "syscalls": [{**READ, "includes": {"minKernel": "4.8.1"}}]}, "minKernel is '4.8.1'"),
        ({**ERRNO, "DEFAULTACTION": "SCMP_ACT_ALLOW"}, "has the key 'DEFAULTACTION' twice"),
        ({"kind": "SeccompProfile", "spec": {**ERRNO, "baseProfileName": "runc"}}, "adds to the profile 'runc'"),
        ({"kind": "SeccompProfile", "spec": {**ERRNO, "disabled": True}}, "is disabled"),
        ({"apiVersion": "security-profiles-operator.x-k8s.io/v1beta1", "kind": "ProfileBinding"}, "is no SeccompProfile"),
        ([], "is no object"), (None, "is no object"), ("x", "is no object"),
    ],
)  # fmt: skip
def test_what_engines_refuse_is_one_line(profile, message):
    with pytest.raises(InputError) as caught:
        parse_profile(profile)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_names_that_are_missing_or_empty_allow_nothing_and_are_no_error():
    for entry in ({"names": []}, {}, {"names": None}):
        assert not allows({**ERRNO, "syscalls": [{**entry, "action": "SCMP_ACT_ALLOW"}]})
    assert allows({**ERRNO, "syscalls": [{"name": "read", "names": [], "action": "SCMP_ACT_ALLOW"}]})
    assert allows({"DefaultAction": "SCMP_ACT_ERRNO", "SYSCALLS": [{"Names": ["read"], "action": "SCMP_ACT_ALLOW"}]})


def test_every_name_of_no_call_is_listed():
    profile = parse_profile(
        {**ERRNO, "syscalls": [{"names": ["read", "raed", "send", "zzz"], "action": "SCMP_ACT_ALLOW"}]}
    )
    assert profile.unknown == ("raed", "send", "zzz")
    assert compare_profile(profile, {}).render().endswith("which engines leave out:\n  raed send zzz")


def test_a_profile_of_another_architecture_says_so():
    arm = {**ERRNO, "architectures": ["SCMP_ARCH_AARCH64"], "syscalls": [READ]}
    assert "another architecture (AARCH64)" in notes_of(arm) and allows(arm)
    mapped = {**ERRNO, "archMap": [{"architecture": "SCMP_ARCH_S390X", "subArchitectures": []}], "syscalls": [READ]}
    assert "another architecture (S390X)" in notes_of(mapped)
    both = {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}
    assert parse_profile({**ERRNO, "archMap": [both]}).compat and not notes_of({**ERRNO, "archMap": [both]})
    assert (
        "made 3 32-bit calls, which an engine has its thread killed for"
        in compare_profile(parse_profile(arm), {}, compat_calls=3).notes
    )


def test_only_amd64_is_this_architecture_in_an_entry():
    assert allows({**ERRNO, "syscalls": [{**READ, "includes": {"arches": ["arm64", "amd64"]}}]})
    other = {**ERRNO, "syscalls": [{**READ, "includes": {"arches": ["x86_64"]}}]}
    assert not allows(other) and "x86-64 as amd64" in notes_of(other)
    assert not allows({**ERRNO, "syscalls": [{**READ, "excludes": {"arches": ["amd64"]}}]})


def test_a_config_json_is_read_as_runc_reads_it():
    bound = {**READ, "includes": {"caps": ["CAP_SYS_ADMIN"]}}
    seccomp = {**ERRNO, "syscalls": [bound, {"name": "write", "action": "SCMP_ACT_ALLOW"}]}
    config = {"ociVersion": "1.0.2", "linux": {"seccomp": seccomp}}
    assert allows(config) and not allows(config, "write") and "runc does not look at name, includes" in notes_of(config)
    assert not allows(seccomp) and "containerd (Kubernetes, nerdctl) does not look at" in notes_of(seccomp)


def test_errnos_are_the_engines():
    def answer(profile):
        return call_law(parse_profile(profile), "read").fixed

    assert answer(ERRNO) == Action(0x50000 | errno.EPERM)
    assert answer({**ERRNO, "defaultErrnoRet": 38}) == answer({**ERRNO, "defaultErrno": "ENOSYS"}) == Action(0x50026)
    assert answer({**ERRNO, "defaultErrno": "38", "defaultErrnoRet": 38}) == Action(0x50026)
    assert "docker does not look at defaultErrno" in notes_of({**ERRNO, "defaultErrno": "ENOSYS"})
    assert not notes_of({**ERRNO, "defaultErrno": "ENOSYS", "defaultErrnoRet": 38})
    assert answer({**ERRNO, "defaultErrnoRet": 65537}) == Action(0x50001)  # runc: int16(*errnoRet)
    zero = {"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0}
    assert answer({**ERRNO, "syscalls": [zero]}).show() == "answered 0 without running"
    assert answer({"kind": "SeccompProfile", "spec": {**ERRNO, "syscalls": [zero]}}) == Action(0x50001)


def test_a_kernel_s_version_is_asked_as_docker_asks():
    profile = parse_profile({**ERRNO, "syscalls": [{**READ, "includes": {"minKernel": "4.8"}}]})
    assert compare_profile(profile, {}, [(4, 4)]).allowed == 0 and compare_profile(profile, {}, [(6, 1)]).allowed == 1
    both = compare_profile(profile, {}, [(4, 4), (6, 1)])
    assert both.unused_conditional == {"read": "on Linux 4.4: EPERM; on Linux 6.1: allowed"}
    assert "podman and CRI-O do not look at minKernel" in profile.notes[0]


# -- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["oci", "docker", "spo"])
def test_what_thinbox_exports_is_read_back(tmp_path, kind):
    made = make_filter(plan())
    path = tmp_path / ("profile.yaml" if kind == "spo" else "profile")
    path.write_bytes(EXPORTS[kind](made))
    profile = load_profile(path)
    assert {name for name in profile.by_name if not call_law(profile, name).never_allows} == set(made.allowed())
    if kind == "docker":
        path.write_text(json.dumps(json.loads(path.read_text())))
        assert load_profile(path).entries == profile.entries


@pytest.mark.parametrize("name", ["p.json", "p.yaml", "p"])
def test_json_and_yaml_say_the_same(tmp_path, name):
    import yaml

    profile = {
        **ERRNO,
        "defaultErrnoRet": 38,
        "syscalls": [{**READ, "args": [{"index": 1, "op": "SCMP_CMP_NE", "value": 1 << 63}]}],
    }
    (tmp_path / name).write_text(json.dumps(profile))
    (tmp_path / "block.yml").write_text(yaml.safe_dump(profile))
    (tmp_path / "two.yaml").write_text(
        "kind: ConfigMap\n---\n" + yaml.safe_dump({"kind": "SeccompProfile", "spec": {**ERRNO, "syscalls": [READ]}})
    )
    assert load_profile(tmp_path / name) == load_profile(tmp_path / "block.yml") == parse_profile(profile)
    assert load_profile(tmp_path / "two.yaml") == parse_profile({**ERRNO, "syscalls": [READ]})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_read_and_told(tmp_path, encoding):
    path = tmp_path / "p.json"
    path.write_bytes(json.dumps({**ERRNO, "syscalls": [READ]}).encode(encoding))
    profile = load_profile(path)
    assert "byte order mark: docker, podman and runc refuse" in profile.notes[0] and profile.by_name["read"]


@pytest.mark.parametrize(
    "text", ["", "a: [", "- x", "x", "a: &a [*a]", "? [a]\n: b", "\xff", "{", "a: !!python/object:os.system x"]
)
def test_text_that_is_no_profile_is_one_line(tmp_path, text):
    for name in ("p.yaml", "p.json", "p"):
        (tmp_path / name).write_text(text, encoding="latin-1")
        with pytest.raises(InputError) as caught:
            load_profile(tmp_path / name)
        assert "\n" not in str(caught.value)


# -- profiles that others wrote -----------------------------------------------------------------------------

PACKAGES = {
    "golang-github-containers-common": "./usr/share/containers/seccomp.json",
    "golang-github-containers-common-dev": "./usr/share/gocode/src/github.com/containers/common/pkg/seccomp/seccomp.json",
    "golang-github-docker-docker-dev": "./usr/share/gocode/src/github.com/docker/docker/profiles/seccomp/default.json",
}


def fetched(package, member, folder):
    """The file `member` of a Debian package; skips where it cannot be had."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("no apt-get and dpkg-deb to fetch packages with")
    done = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True, check=False, timeout=120)
    debs = list(Path(folder).glob("*.deb"))
    if done.returncode or not debs:
        pytest.skip(f"apt-get cannot download {package} here")
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", debs[0]], capture_output=True, check=True).stdout
    got = subprocess.run(["tar", "-xO", member], input=tar, capture_output=True, check=False)
    if got.returncode:
        pytest.skip(f"{package} has no {member}")
    return got.stdout


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_the_engines_own_defaults_are_read(package, tmp_path):
    os.chmod(tmp_path, 0o777)  # apt-get downloads as a user of its own
    path = tmp_path / "seccomp.json"
    path.write_bytes(fetched(package, PACKAGES[package], tmp_path))
    profile = load_profile(path)
    report = compare_profile(
        profile, {"socket": [(2, 1, 0, 0, 0, 0)], "read": [(0,) * 6], "kexec_load": [(0,) * 6]}, [(6, 1)]
    )
    assert set(report.missing) == {"kexec_load"} and report.allowed > 250
    assert report.unused_conditional["chroot"] == "with CAP_SYS_CHROOT: allowed; otherwise EPERM"
    assert "clone" in report.unused_conditional or "clone" in report.unused
    assert "with CAP_AUDIT_WRITE: allowed; otherwise allowed if" in report.conditional.get(
        "socket", "with CAP_AUDIT_WRITE: allowed; otherwise allowed if"
    )
    assert not re.search(r"\bopen\b: libseccomp|not as it is written", report.render())
