"""Exports: valid by the schemas of those who read them, and never more than the plan allows."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from referencing import Registry, Resource
from thinbox.errors import InputError
from thinbox.planning.exports import EXPORTS, render_evidence
from thinbox.planning.exports.oci import GENERIC, seccomp_object
from thinbox.planning.filters import make_filter
from thinbox.planning.profile_file import parse_profile
from thinbox.planning.profile_import import compare_profile
from thinbox.planning.runtime_calls import RUNTIMES, find_runtimes
from thinbox.sandbox.plan_file import load_plan, parse_plan
from thinbox.syscalls.table import all_calls

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
CONDITIONS = """schema = "thinbox.plan/1"
[calls]
clone = { do = "isolate", when = { clone_flags = { mask = "~CLONE_CHILD_SETTID|CLONE_CHILD_CLEARTID|0x7f", is = 0 } } }
mmap = { do = "isolate", when = { flags = { mask = "~MAP_PRIVATE|MAP_FIXED|MAP_ANONYMOUS", is = 0 } } }
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


def test_of_two_refusals_of_one_form_the_first_is_said():
    calls = 'ptrace = [{ do = "deny", errno = "EACCES", when = { request = [0, 1] } }, { do = "kill" }]'
    made = make_filter(plan(f'schema = "thinbox.plan/1"\n[calls]\n{calls}\n'))
    assert [(rule.action, rule.errno, len(rule.compares)) for rule in made.rules] == [("errno", 13, 1)] * 2
    calls = calls.replace('{ do = "kill" }', '{ do = "kill", when = { request = 2 } }')
    made = make_filter(plan(f'schema = "thinbox.plan/1"\n[calls]\n{calls}\n'))
    assert [rule.action for rule in made.rules] == ["errno", "errno", "kill"]


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
    other, extra = found["syscalls"][-2:]
    assert extra["names"] == ["openat"] and extra["includes"] == {"arches": ["arm64"]}
    # docker 20.10 has no defaultErrnoRet.
    assert (other["errnoRet"], other["includes"]) == (38, {"arches": ["amd64"]})
    assert "openat" in other["names"] and not {"open", "read"} & set(other["names"])
    names = {info.name for info in all_calls()}
    assert set(GENERIC) | set(GENERIC.values()) <= names


ACTION = {
    "enum": [f"SCMP_ACT_{name}" for name in "KILL KILL_PROCESS KILL_THREAD TRAP ERRNO TRACE ALLOW LOG NOTIFY".split()]
}
SIGNED = {"type": "integer", "minimum": 0, "maximum": (1 << 63) - 1}


def closed(required, **properties):
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def listed(items, **more):
    return {"type": "array", "items": items} | more


OPERATOR = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "security-profiles-operator.x-k8s.io/v1beta1"},
    kind={"const": "SeccompProfile"},
    metadata=closed(["name"], name={"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}),
    spec=closed(
        ["defaultAction"],
        defaultAction=ACTION,
        architectures=listed({"enum": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]}, uniqueItems=True),
        syscalls=listed(
            closed(
                ["action", "names"],
                action=ACTION,
                names=listed({"type": "string"}, minItems=1, uniqueItems=True),
                errnoRet={"type": "integer", "minimum": 0, "maximum": 4095},
                args=listed(
                    closed(
                        ["index", "op"],
                        index={"type": "integer", "minimum": 0, "maximum": 5},
                        op={"enum": [f"SCMP_CMP_{name}" for name in "NE LT LE EQ GE GT MASKED_EQ".split()]},
                        value=SIGNED,
                        valueTwo=SIGNED,
                    ),
                    maxItems=6,
                ),
            )
        ),
    ),
)
"""The operator's own definition, written down here from its Go types (api/seccompprofile, v1beta1 and v1, of which the
stricter counts; August 2026). Closed: a server refuses fields it does not know."""


def test_the_operator_s_manifest_is_valid_by_its_definition():
    validate = jsonschema.Draft202012Validator(OPERATOR).validate
    plans = [plan(), plan(CONDITIONS), *map(load_plan, ("nabla", "gvisor-ptrace-sentry"))]
    for one in plans:
        validate(yaml.safe_load(EXPORTS["spo"](make_filter(one, find_runtimes(("runc",))))))
    found = yaml.safe_load(EXPORTS["spo"](make_filter(plan(CONDITIONS))))
    assert {entry["names"][0] for entry in found["spec"]["syscalls"] if "args" in entry} == {"clone", "mmap"}
    for bad in ({"defaultErrnoRet": 38}, {"defaultAction": "SCMP_ACT_DENY"}):
        with pytest.raises(jsonschema.ValidationError):
            validate(found | {"spec": found["spec"] | bad})


def test_the_operator_s_manifest_has_its_evidence_and_a_fit_name():
    text = EXPORTS["spo"](make_filter(plan())).decode()
    assert yaml.safe_load(text)["metadata"]["name"] == "my-web-app"
    assert "# no kernel: '#' and \"quotes\"" in text


def test_systemd_s_drop_in_lists_each_call_with_its_evidence():
    text = EXPORTS["systemd"](make_filter(plan())).decode()
    settings = [line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#")]
    listed = [value for key, value in settings if key == "SystemCallFilter"]
    assert listed[:3] == ["", "execve", "~@default execve"]
    assert listed[3:] == ["bind", "getuid", "mmap", "read", "socket", "~ptrace:kill", "~mount:EACCES"]
    assert ["SystemCallErrorNumber", "EPERM"] in settings and ["SystemCallArchitectures", "native"] in settings
    assert [value for key, value in settings if key == "RestrictAddressFamilies"] == ["none", "AF_INET", "AF_UNIX"]
    assert "RestrictNamespaces=yes" not in text
    assert all(line.startswith(("#", "[Service]", "SystemCall", "Restrict")) for line in text.splitlines())


@pytest.mark.parametrize(
    ("calls", "limited"),
    [
        ('clone = { do = "isolate", when = { clone_flags = { mask = "~CLONE_VM|0x7f", is = 0 } } }', True),
        ('clone = { do = "isolate", when = { clone_flags = { mask = "~CLONE_NEWNET|0x7f", is = 0 } } }', False),
        ('clone = "isolate"', False),
        ('clone = { do = "isolate", when = { clone_flags = 17 } }\nclone3 = "isolate"', False),
        ('clone = { do = "isolate", when = { clone_flags = 17 } }\nunshare = "isolate"', False),
        ('clone = { do = "isolate", when = { clone_flags = 17 } }\nunshare = "kill"', True),
        ('read = "isolate"', False),
    ],
)
def test_systemd_refuses_namespaces_where_the_plan_refuses_every_one(calls, limited):
    text = EXPORTS["systemd"](make_filter(plan(f'schema = "thinbox.plan/1"\n[calls]\n{calls}\n'))).decode()
    assert ("RestrictNamespaces=yes" in text) == limited


def test_gvisor_s_list_has_a_matcher_for_every_call():
    made = make_filter(plan())
    text = EXPORTS["gvisor"](made).decode()
    listed = re.findall(r"^\tunix\.SYS_(\w+): seccomp\.", text, re.MULTILINE)
    assert listed == [name.upper() for name in made.allowed()]
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
    none = (0,) * 6
    report = compare_profile(parse_profile(docker), {"read": [none], "clone": [(1, *none[1:])], "openat": [none]})
    assert report.unused == ("arch_prctl", "mkdir", "write") and report.missing == {"openat": "EPERM"}
    assert report.conditional == {"clone": "allowed if clone_flags == 1; otherwise EPERM; the calls made pass"}
    assert report.unused_conditional == {"mount": "with CAP_SYS_ADMIN: allowed; otherwise EPERM"}
    assert parse_profile(docker).unknown == ("no_such_call",)
