"""Exports: valid by the schemas of those who read them, and never more than the plan allows."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from referencing import Registry, Resource
from thinbox.errors import InputError
from thinbox.planning.exports import EXPORTS, render_evidence
from thinbox.planning.exports.oci import GENERIC, seccomp_object
from thinbox.planning.filters import make_filter
from thinbox.planning.profile_import import compare_profile, parse_profile
from thinbox.planning.runtime_calls import RUNTIMES, find_runtimes
from thinbox.sandbox.plan_file import load_plan, parse_plan
from thinbox.syscalls.table import all_calls, call_number

SCHEMAS = Path(__file__).parent.parent / "data" / "oci"
PLAN = """schema = "thinbox.plan/1"
name = "My Web_App"
default = "deny:EPERM"
[calls]
read = "isolate"
getuid = { do = "emulate", reason = "no kernel: '#' and \\"quotes\\"" }
mount = { do = "deny", errno = "EACCES", reason = "never" }
ptrace = "kill"
socket = [
  { do = "isolate", when = { family = ["AF_UNIX", "AF_INET"], type = 1 }, evidence = { times = 3 } },
  { do = "deny", errno = "EAFNOSUPPORT" },
]
mmap = { do = "pass", when = { prot = { mask = 6, is = [0, 2, 4] } } }
bind = { do = "isolate", phase = "start" }
"""


def plan(text=PLAN):
    return parse_plan(text, "p.toml", None)


@pytest.fixture
def check_oci():
    files = {p.name: json.loads(p.read_text()) for p in SCHEMAS.glob("*.json")}
    registry = Registry().with_resources(
        (
            f"https://oci/{name}",
            Resource.from_contents(data, default_specification=__import__("referencing.jsonschema").jsonschema.DRAFT4),
        )
        for name, data in files.items()
    )
    schema = {"$ref": "https://oci/config-linux.json#/linux/properties/seccomp"}
    validator = jsonschema.Draft4Validator(schema, registry=registry)
    return validator.validate


def test_the_profile_is_valid_by_the_oci_schema(check_oci):
    found = seccomp_object(make_filter(plan(), find_runtimes(("runc",))))
    check_oci(found)
    assert found["defaultErrnoRet"] == 1 and found["architectures"] == ["SCMP_ARCH_X86_64"]
    with pytest.raises(jsonschema.ValidationError):
        check_oci(found | {"defaultAction": "ALLOW"})
    for name in ("nabla", "gvisor-ptrace-sentry"):
        check_oci(seccomp_object(make_filter(load_plan(name))))


def test_what_the_plan_says_is_in_the_profile():
    found = seccomp_object(make_filter(plan()))
    plain = {name: entry for entry in found["syscalls"] if "args" not in entry for name in entry["names"]}
    assert plain["read"]["action"] == plain["getuid"]["action"] == plain["bind"]["action"] == "SCMP_ACT_ALLOW"
    assert (plain["mount"]["action"], plain["mount"]["errnoRet"]) == ("SCMP_ACT_ERRNO", 13)
    assert plain["ptrace"]["action"] == "SCMP_ACT_KILL_PROCESS"
    assert "socket" not in plain
    sockets = [entry["args"] for entry in found["syscalls"] if entry["names"] == ["socket"]]
    compare = lambda index, value: {"index": index, "value": 0xFFFFFFFF, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
    assert sockets == [[compare(0, 1), compare(1, 1)], [compare(0, 2), compare(1, 1)]]
    assert sum(entry["names"] == ["mmap"] for entry in found["syscalls"]) == 3


def test_no_entry_has_two_comparisons_on_one_argument():
    for entry in seccomp_object(make_filter(plan()))["syscalls"]:
        indexes = [arg["index"] for arg in entry.get("args", ())]
        assert len(indexes) == len(set(indexes))


def test_only_the_steady_state():
    assert "bind" not in make_filter(plan(), steady_only=True).allowed()


def test_what_seccomp_cannot_say_is_refused():
    with pytest.raises(InputError, match="allows by default"):
        make_filter(plan('schema = "thinbox.plan/1"\ndefault = "isolate"'))
    with pytest.raises(InputError, match="socket is allowed behind a rule that refuses"):
        make_filter(
            plan(
                'schema = "thinbox.plan/1"\n[calls]\nsocket = [{ do = "deny", when = { family = 17 } }, { do = "isolate" }]'
            )
        )


def test_what_the_runtime_needs_is_there_with_its_source():
    made = make_filter(plan(), find_runtimes(("runc", "crun")))
    assert set(RUNTIMES["runc"].calls) | set(RUNTIMES["crun"].calls) <= set(made.allowed())
    entries = {e["call"]: e for e in json.loads(render_evidence(made))["entries"] if e["source"]}
    assert "baseprofile-runc.yaml" in entries["execve"]["source"]
    assert "limits on it are lost" in entries["mmap"]["reason"]
    names = {info.name for info in all_calls()}
    assert all(set(runtime.calls) <= names for runtime in RUNTIMES.values())
    with pytest.raises(InputError, match="runc"):
        find_runtimes(("lxc",))


def test_docker_s_map_of_architectures():
    found = json.loads(
        EXPORTS["docker"](make_filter(plan('schema = "thinbox.plan/1"\n[calls]\nopen = "isolate"\nread = "isolate"')))
    )
    assert [a["architecture"] for a in found["archMap"]] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"]
    assert "architectures" not in found
    extra = found["syscalls"][-1]
    assert extra["names"] == ["openat"] and extra["includes"] == {"arches": ["arm64"]}
    names = {info.name for info in all_calls()}
    assert set(GENERIC) | set(GENERIC.values()) <= names


def test_the_operator_s_manifest_is_yaml_with_the_same_rules():
    made = make_filter(plan())
    text = EXPORTS["spo"](made).decode()
    found = yaml.safe_load(text)
    assert (found["kind"], found["metadata"]["name"]) == ("SeccompProfile", "my-web-app")
    assert found["spec"] == seccomp_object(made)
    assert "# no kernel: '#' and \"quotes\"" in text


def test_systemd_s_drop_in_lists_each_call_with_its_evidence():
    text = EXPORTS["systemd"](make_filter(plan())).decode()
    listed = [line.split("=")[1] for line in text.splitlines() if line.startswith("SystemCallFilter=")]
    assert listed == ["bind", "getuid", "mmap", "read", "socket"]
    assert "SystemCallErrorNumber=EPERM" in text and "SystemCallArchitectures=native\n" in text
    assert all(line.startswith(("#", "[Service]", "SystemCall")) for line in text.splitlines())


def test_gvisor_s_list_has_a_matcher_for_every_call():
    text = EXPORTS["gvisor"](make_filter(plan())).decode()
    assert "unix.SYS_READ: seccomp.MatchAll{}" in text
    assert "seccomp.Or{seccomp.PerArg{seccomp.MaskedEqual(0xffffffff, 0x1)" in text
    assert text.count("{") == text.count("}")


def test_every_entry_has_its_evidence():
    made = make_filter(plan(), find_runtimes(("exec",)))
    entries = {entry["call"] for entry in json.loads(render_evidence(made))["entries"]}
    assert entries >= {rule.name for rule in made.rules}


def test_an_imported_profile_is_compared_with_what_was_called():
    docker = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [],
        "syscalls": [
            {"names": ["read", "write", "mkdir", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
            {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32"]}},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
        ],
    }
    report = compare_profile(parse_profile(docker), ["read", "clone", "openat"])
    assert report.unused == ("arch_prctl", "mkdir", "write") and report.missing == ("openat",)
    assert report.conditional == {"clone": "certain arguments"}
    assert report.unused_conditional == {"mount": "with CAP_SYS_ADMIN"}
    assert parse_profile({"linux": {"seccomp": docker}}) == parse_profile(docker)
    assert parse_profile(docker).unknown == ("no_such_call",)


_VALUES = st.sampled_from((0, 1, 2, 10, 17, (1 << 32) | 1, (1 << 64) - 1))


@given(st.lists(st.sampled_from((1, 2, 10, 17)), min_size=1, max_size=3), _VALUES, st.tuples(_VALUES, _VALUES))
def test_a_filter_allows_exactly_what_the_plan_allows(families, kind, args):
    text = f'schema = "thinbox.plan/1"\n[calls]\nsocket = {{ do = "isolate", when = {{ family = {families}, type = {kind & 0xFFFFFFFF} }} }}'
    one = plan(text)
    registers = (*args, 0, 0, 0, 0)
    allowed = any(
        all(registers[c.index] & c.mask == c.value for c in rule.compares)
        for rule in make_filter(one).rules
        if rule.action == "allow"
    )
    assert allowed == one.decide(call_number("socket"), registers).answer.disposition.reaches_kernel
