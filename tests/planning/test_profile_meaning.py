"""What `--import` says of a profile is what libseccomp's compiled filter does, for any profile and any call."""

import json
import random
from itertools import product

import pytest
from thinbox.errors import InputError
from thinbox.planning.classic_bpf import call_words, filter_answers, parse_program
from thinbox.planning.libseccomp import LibraryRule, compile_apart, compile_rules
from thinbox.planning.profile_file import parse_profile
from thinbox.planning.profile_import import compare_profile
from thinbox.planning.profile_law import Library, call_law, describe_law
from thinbox.planning.seccomp_profile import (
    ACTIONS,
    ALLOW,
    EQ,
    MASKED_EQ,
    NE,
    OPERATORS,
    Comparison,
    Container,
    Law,
    Action,
)
from thinbox.syscalls.table import call_number

CALLS = ("read", "socket", "clone", "personality", "mmap")
CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_AUDIT_WRITE")
KERNELS = ((4, 4), (4, 8), (6, 1))
VALUES = (0, 1, 2, 3, 1 << 32, (1 << 32) | 1, (1 << 32) | 2, (2 << 32) | 1, 1 << 63, (1 << 64) - 1)
MASKS = (0, 1, 3, 0xFFFFFFFF, 0xFFFFFFFF << 32, (1 << 64) - 1, 1 << 32, 2)


def some_args(rng, simple):
    """Comparisons as strangers write them; `simple` ones are those that libseccomp is known to keep to."""
    found = []
    for index in rng.sample(range(3), rng.choice((0, 0, 1, 1, 2, 3))):
        op = rng.choice(("SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ") if simple else tuple(OPERATORS))
        value = rng.choice(MASKS if op == "SCMP_CMP_MASKED_EQ" else VALUES)
        found.append({"index": index, "op": op, "value": value, "valueTwo": rng.choice(VALUES)})
    if found and rng.random() < 0.15:
        found.append({**found[0], "value": rng.choice(VALUES)})
    return found


def some_profile(rng, *, simple):
    entries = []
    for _ in range(rng.randint(0, 8)):
        entry = {"action": rng.choice(tuple(ACTIONS)), "args": some_args(rng, simple)}
        names = rng.sample(CALLS, rng.randint(0, 3))
        if names and rng.random() < 0.2:
            entry["name"] = names[0]
        else:
            entry["names"] = names
        if entry["action"] in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE") and rng.random() < 0.6:
            entry["errnoRet"] = rng.choice((0, 1, 5, 38, 4094))
        if entry["action"] == "SCMP_ACT_NOTIFY":
            entry["action"] = "SCMP_ACT_ALLOW"  # a filter of two NOTIFYs depends on the kernel that compiles it
        for key in ("includes", "excludes"):
            if rng.random() < 0.25:
                entry[key] = {"caps": rng.sample(CAPABILITIES, rng.randint(0, 2))}
                if rng.random() < 0.4:
                    entry[key]["arches"] = rng.sample(("amd64", "arm64", "x86", "s390x"), rng.randint(0, 2))
                if rng.random() < 0.3:
                    entry[key]["minKernel"] = rng.choice(("4.8", "5.0"))
        entries.append(entry)
    default = rng.choice(
        ("SCMP_ACT_ERRNO", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_ALLOW", "SCMP_ACT_LOG")
    )
    made = {"defaultAction": default, "syscalls": entries}
    if rng.random() < 0.5:
        made["defaultErrnoRet"] = rng.choice((1, 38))
    return made


def filter_of(profile, capabilities, kernel):
    """The program that docker and runc make of a profile, by their code, line by line (`setupSeccomp`, `matchCall`)."""
    oci = []
    for call in profile["syscalls"]:
        names = [call["name"]] if call.get("name") else call["names"]
        excludes, includes = call.get("excludes") or {}, call.get("includes") or {}
        if "amd64" in excludes.get("arches", ()) or any(cap in capabilities for cap in excludes.get("caps", ())):
            continue
        if "minKernel" in excludes and kernel >= version(excludes["minKernel"]):
            continue
        if includes.get("arches") and "amd64" not in includes["arches"]:
            continue
        if any(cap not in capabilities for cap in includes.get("caps", ())):
            continue
        if "minKernel" in includes and not kernel >= version(includes["minKernel"]):
            continue
        oci += [(name, call) for name in names]
    default = action_of(profile["defaultAction"], profile.get("defaultErrnoRet"))
    rules = []
    for name, call in oci:
        action = action_of(call["action"], call.get("errnoRet"))
        if action == default:
            continue
        conditions = [(a["index"], OPERATORS[a["op"]], a["value"], a["valueTwo"]) for a in call["args"]]
        indexes = [condition[0] for condition in conditions]
        if len(set(indexes)) < len(indexes):
            rules += [LibraryRule(name, call_number(name), action, (condition,)) for condition in conditions]
        else:
            rules.append(LibraryRule(name, call_number(name), action, tuple(conditions)))
    return default, rules


def version(text):
    return tuple(map(int, text.split(".")))


def action_of(name, errno):
    return ACTIONS[name] | ((1 if errno is None else errno) if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE") else 0)


def answer(program, name, args):
    (code,) = filter_answers(program, call_words(call_number(name), args))
    return code


def check_profile(rng, profile, compile_filter, *, all_known):
    """Count answers that were open; every other one is the filter's."""
    found, library, still_open = parse_profile(json.loads(json.dumps(profile))), Library(), 0
    laws = {name: call_law(found, name, KERNELS) for name in CALLS}
    for count, kernel in product(range(len(CAPABILITIES) + 1), KERNELS):
        capabilities = frozenset(rng.sample(CAPABILITIES, count))
        default, rules = filter_of(profile, capabilities, kernel)
        for name in CALLS:
            mine = [rule for rule in rules if rule.name == name]
            law = found.law(name, Container(capabilities, kernel))
            try:
                program = parse_program(compile_filter(default, mine))
            except InputError as error:
                assert "refuses" in str(error) or "did not end" in str(error), error
                assert isinstance(library.program(name, law), str) or law.is_plain
                continue
            for _ in range(8):
                args = tuple(rng.choice(VALUES) for _ in range(6))
                said = library.answer(name, law, args) if all_known else law.decide(args)
                still_open += said is None
                if said is not None:
                    assert said.code == answer(program, name, args), (profile, name, args, capabilities, kernel)
            fixed = laws[name].fixed
            if fixed is not None:
                assert {answer(program, name, [rng.choice(VALUES) for _ in range(6)]) for _ in range(4)} == {fixed.code}
    for name in CALLS:
        assert "\n" not in describe_law(laws[name], library)
    return still_open


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_what_is_said_of_simple_entries_is_what_the_filter_does(seed):
    rng = random.Random(seed)
    for _ in range(4):
        check_profile(rng, some_profile(rng, simple=True), compile_rules, all_known=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_what_is_said_of_any_entries_is_what_the_filter_does(seed):
    rng = random.Random(1000 + seed)

    def compile_filter(default, rules):
        return compile_apart(default, rules, limit_s=3) if rules else compile_rules(default, rules)

    check_profile(rng, some_profile(rng, simple=False), compile_filter, all_known=True)


# -- where libseccomp does not keep to what is written -------------------------------------------------------


def law_of(*rules):
    return Law(Action(0x50026), tuple((clause, Action(action)) for clause, action in rules))


def test_entries_that_libseccomp_loses_are_not_called_plain():
    """LE 0 beside GE 2^33 + 1 lets 3 pass, in libseccomp 2.5.4; so nothing is said without asking it."""
    sizes = law_of(
        ((Comparison(1, OPERATORS["SCMP_CMP_LE"], 0),), ALLOW),
        ((Comparison(1, OPERATORS["SCMP_CMP_GE"], (2 << 32) | 1),), ALLOW),
    )
    assert not sizes.is_plain and sizes.decide((0, 3, 0, 0, 0, 0)) is None
    said = Library().answer("mmap", sizes, (0, 3, 0, 0, 0, 0))
    program = parse_program(
        compile_rules(
            0x50026,
            [
                LibraryRule("mmap", 9, ALLOW, ((1, 3, 0, 0),)),
                LibraryRule("mmap", 9, ALLOW, ((1, 5, (2 << 32) | 1, 0),)),
            ],
        )
    )
    assert said.code == answer(program, "mmap", (0, 3, 0, 0, 0, 0))


HANGS = law_of(
    ((Comparison(1, EQ, 1 << 32), Comparison(2, NE, (1 << 32) | 2), Comparison(0, NE, 2)), ALLOW),
    ((Comparison(0, NE, 2), Comparison(1, EQ, (1 << 64) - 1)), ALLOW),
)


@pytest.mark.slow
def test_rules_on_which_libseccomp_never_ends_end_in_one_line():
    rules = [
        LibraryRule("clone", 56, a.code, tuple((c.index, c.op, c.value, 0) for c in clause))
        for clause, a in HANGS.rules
    ]
    try:
        parse_program(compile_apart(0x50026, rules, limit_s=2))
    except InputError as error:
        assert str(error) == "libseccomp did not end within 2 s on the rules for clone"


def test_two_refusals_of_one_form_are_open_and_said_so():
    same = law_of(((Comparison(0, EQ, 1),), 0x50001), ((Comparison(0, EQ, 1),), 0x50005))
    assert same.decide((1, 0, 0, 0, 0, 0)) is None and same.decide((2, 0, 0, 0, 0, 0)) == Action(0x50026)
    text = describe_law(call_law(parse_profile(both("read", same)), "read"), Library())
    assert "open: libseccomp refuses read: File exists" in text


def both(name, law):
    names = {value: key for key, value in OPERATORS.items()}
    return {
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
        "syscalls": [
            {"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": action.errno,
             "args": [{"index": c.index, "op": names[c.op], "value": c.value, "valueTwo": c.value_two} for c in clause]}
            for clause, action in law.rules
        ],
    }  # fmt: skip


def test_a_mask_of_no_bits_asks_nothing_as_in_libseccomp():
    empty = Comparison(0, MASKED_EQ, 0, 5)
    profile = parse_profile(
        {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW",
         "args": [{"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 0, "valueTwo": 5}]}]}
    )  # fmt: skip
    assert empty.is_empty and call_law(profile, "read").fixed == Action(ALLOW)
    assert (
        answer(
            parse_program(compile_rules(0x50001, [LibraryRule("read", 0, ALLOW, ((0, 7, 0, 5),))])), "read", (0,) * 6
        )
        == ALLOW
    )


# -- reports ------------------------------------------------------------------------------------------------


def allow(*names, **more):
    return {"names": list(names), "action": "SCMP_ACT_ALLOW", **more}


def test_alternatives_of_one_call_are_all_told():
    """The containers' default profile, as it is about sockets."""
    arg = {"index": 0, "value": 16, "op": "SCMP_CMP_NE"}, {"index": 2, "value": 9, "op": "SCMP_CMP_NE"}
    eq = [{**arg[0], "op": "SCMP_CMP_EQ"}, {**arg[1], "op": "SCMP_CMP_EQ"}]
    without = {"excludes": {"caps": ["CAP_AUDIT_WRITE"]}}
    profile = parse_profile(
        {
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "syscalls": [
                {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22, "args": eq, **without},
                allow("socket", args=[arg[1]], **without), allow("socket", args=[arg[0]], **without),
                allow("socket", includes={"caps": ["CAP_AUDIT_WRITE"]}),
            ],
        }
    )  # fmt: skip
    calls = {"socket": [(16, 3, 9, 0, 0, 0), (2, 1, 0, 0, 0, 0)]}
    assert compare_profile(profile, calls).conditional["socket"] == (
        "with CAP_AUDIT_WRITE: allowed; otherwise allowed if protocol != 9, or if family != AF_NETLINK; "
        "EINVAL if family == AF_NETLINK and protocol == 9; otherwise ENOSYS; the calls made pass with CAP_AUDIT_WRITE"
    )
    assert "the calls made pass" not in compare_profile(profile, {"socket": []}).missing
    assert (
        compare_profile(profile, {"socket": [(2, 1, 0, 0, 0, 0)]})
        .conditional["socket"]
        .endswith("; the calls made pass")
    )


def test_what_no_container_gets_is_missing_with_its_arguments():
    vsock = [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]
    profile = parse_profile(
        {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [allow("socket", args=vsock), allow("read")]}
    )
    report = compare_profile(
        profile, {"socket": [(40,) + (0,) * 5, (2,) + (0,) * 5], "mount": [(0,) * 6], "read": [(0,) * 6]}
    )
    assert report.missing == {"mount": "EPERM", "socket": "family=AF_VSOCK: EPERM"}
    assert report.conditional == {"socket": "allowed if family != AF_VSOCK; otherwise EPERM; the other calls made pass"}
    assert "made and not allowed: mount (EPERM), socket (family=AF_VSOCK: EPERM)" in report.render()


def test_the_first_entry_without_arguments_wins_over_all():
    one = [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]
    refuse = {"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5}
    profile = parse_profile(
        {"defaultAction": "SCMP_ACT_KILL", "syscalls": [allow("read", args=one), refuse, allow("read")]}
    )
    assert compare_profile(profile, {"read": [(1,) + (0,) * 5]}).missing == {"read": "EIO"}


def test_refusing_entries_ask_for_capabilities_and_architectures_too():
    refuse = {"names": ["read", "mount"], "action": "SCMP_ACT_ERRNO"}
    elsewhere = parse_profile(
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{**refuse, "includes": {"arches": ["arm64"]}}]}
    )
    assert not compare_profile(elsewhere, {"read": [(0,) * 6]}).missing
    bounded = parse_profile(
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{**refuse, "excludes": {"caps": ["CAP_SYS_ADMIN"]}}]}
    )
    assert compare_profile(bounded, {}).unused_conditional["mount"] == "with CAP_SYS_ADMIN: allowed; otherwise EPERM"


def test_a_tracer_and_a_supervisor_allow_nothing_a_log_does():
    actions = {"read": "TRACE", "write": "NOTIFY", "open": "LOG", "close": "TRAP", "stat": "KILL_THREAD"}
    del actions["write"]
    entries = [{"names": [name], "action": f"SCMP_ACT_{action}"} for name, action in actions.items()]
    entries.append({"names": ["fstat"], "action": "SCMP_ACT_NOTIFY"})
    profile = parse_profile({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": entries})
    report = compare_profile(profile, dict.fromkeys((*actions, "fstat"), [(0,) * 6]))
    assert report.allowed == 1 and report.missing == {
        "read": "left to a tracer", "close": "SIGSYS", "stat": "its thread killed", "fstat": "left to a supervisor",
    }  # fmt: skip


def test_too_many_capabilities_are_named_and_nothing_is_claimed():
    entries = [allow("read", includes={"caps": [f"CAP_{index}"]}) for index in range(7)]
    report = compare_profile(
        parse_profile({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": entries}), {"read": [(0,) * 6]}
    )
    assert not report.missing and report.conditional["read"].startswith("hangs on 7 capabilities: CAP_0, CAP_1")
