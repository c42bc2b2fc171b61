"""Policies `function`, `callgraph`, `profile` and combinations as pure functions."""

import json

import pytest
from tests.isolation.policies.fake_call import BASE, FakeCall, block
from thinbox.errors import InputError
from thinbox.isolation.callgraph import build_callgraph
from thinbox.isolation.policies import load_policy
from thinbox.isolation.policies.all_of import AllOf
from thinbox.isolation.policies.callgraph import Callgraph
from thinbox.isolation.policies.function import Function
from thinbox.isolation.policies.profile import Profile, build_profile
from thinbox.isolation.policies.sci import Sci
from thinbox.isolation.verdict import Access, AccessKind, Verdict

LOAD, OTHER, COLD = BASE + 0x800, BASE + 0x5000, BASE + 0x9000
CODE = {"load_module": (LOAD, b""), "other": (OTHER, b""), "load_module.cold": (COLD, b""), "end": (COLD + 0x3000, b"")}


def judge(policy, target, source, executed):
    call = FakeCall(CODE, executed, source)
    return policy.check_access(call.fetch(target), call)


def test_function_allows_any_page_from_inside_the_function():
    far = LOAD + 0x2900
    assert judge(Function(), far, block(LOAD, 8), (LOAD,)).granted, "a page was skipped"
    assert not judge(Sci(), far, block(LOAD, 8), (LOAD,)).granted
    assert not judge(Function(), far, block(OTHER, 8), (LOAD, OTHER)).granted, "it comes from another function"
    assert not judge(Function(), far, block(LOAD, 8), ()).granted, "its start was never reached"
    assert not judge(Function(), far, block(LOAD, 8), (LOAD,)).cacheable, "it holds for this call only"
    assert not judge(Function(), far, None, (LOAD,)).granted


def test_function_knows_cold_parts_by_their_function():
    assert judge(Function(), COLD + 0x332, block(LOAD + 0x40, 8), (LOAD,)).granted
    assert judge(Function(), LOAD + 0x2900, block(COLD + 0x332, 8), (LOAD,)).granted
    assert not judge(Function(), COLD + 0x332, block(OTHER, 8), (LOAD, OTHER)).granted
    assert not judge(Function(), COLD + 0x332, block(LOAD + 0x40, 8), ()).granted
    assert not judge(Function(), LOAD + 0x2900, block(COLD + 0x332, 8), (COLD,)).granted, "the whole was not entered"


def test_a_cold_part_goes_on_on_another_page_of_itself_if_its_function_was_entered():
    """Linux 7.3: load_module jumps to the second page of its cold part, which jumps back to its first."""
    near, far = COLD + 0x137, block(COLD + 0x13E2, 4)
    assert judge(Function(), near, far, (LOAD, COLD + 0x1000)).granted
    assert not judge(Function(), near, far, (COLD + 0x1000,)).granted, "the whole was not entered"
    assert not judge(Function(), near, block(OTHER, 8), (LOAD, OTHER)).granted, "it comes from another function"


def test_function_grants_what_sci_grants():
    assert judge(Function(), OTHER, block(LOAD, 8), ()).rule == "6a"
    assert judge(Function(), LOAD + 0x800, block(OTHER, 8), (LOAD,)).rule == "6b"


class Fixed:
    def __init__(self, name, verdict, **attributes):
        self.name, self.verdict, self.seen = name, verdict, 0
        self.__dict__.update(attributes)

    def check_access(self, _access, call):
        self.seen += 1
        call.notes["count"] = call.notes.get("count", 0) + 1
        self.count = call.notes["count"]
        return self.verdict


YES = Verdict(granted=True, rule="y", reason="yes", cacheable=True)
HERE = Verdict(granted=True, rule="h", reason="here", cacheable=True, per_source=True)
ONCE = Verdict(granted=True, rule="o", reason="once")
NO = Verdict(granted=False, rule="n", reason="never")


def test_all_of_grants_only_what_all_grant_and_names_who_refused():
    call = FakeCall(CODE, source=block(LOAD, 8))
    assert AllOf((Fixed("a", YES), Fixed("b", YES))).check_access(call.fetch(LOAD), call).granted
    last = Fixed("c", NO)
    verdict = AllOf((Fixed("a", YES), Fixed("b", NO), last)).check_access(call.fetch(LOAD), call)
    assert (verdict.granted, verdict.rule, verdict.reason, last.seen) == (False, "n of b", "never", 0)
    assert AllOf((Fixed("a", YES), Fixed("b", NO))).name == "a+b"


def test_all_of_remembers_as_narrowly_as_its_narrowest_part():
    call = FakeCall(CODE, source=block(LOAD, 8))

    def judged(*verdicts):
        parts = tuple(Fixed(str(i), verdict) for i, verdict in enumerate(verdicts))
        return AllOf(parts).check_access(call.fetch(LOAD), call)

    assert judged(YES, YES).cacheable and not judged(YES, YES).per_source
    assert judged(YES, HERE).cacheable and judged(YES, HERE).per_source
    assert not judged(YES, ONCE).cacheable


def test_all_of_gives_each_part_notes_of_its_own():
    parts = (Fixed("a", YES), Fixed("b", YES))
    call = FakeCall(CODE, source=block(LOAD, 8))
    for _ in range(2):
        AllOf(parts).check_access(call.fetch(LOAD), call)
    assert [part.count for part in parts] == [2, 2]


def test_all_of_asks_for_data_only_who_does_not_grant_it():
    call = FakeCall(CODE)
    free, strict = Fixed("free", NO, grants_all_data=True), Fixed("strict", NO)
    data = Access(1 << 63, AccessKind.WRITE, LOAD, None, 0, 0)
    assert AllOf((free,)).grants_all_data and AllOf((free,)).check_access(data, call).granted
    assert not AllOf((free, strict)).grants_all_data
    assert AllOf((free, strict)).check_access(data, call).rule == "n of strict"


def test_policies_are_joined_by_plus():
    policy = load_policy("function+transfer")
    assert [part.name for part in policy.parts] == ["function", "transfer"]
    assert policy.judges_stack and policy.grants_all_data and not policy.needs_graph
    assert load_policy("sci+callgraph").needs_graph
    for spec in ("sci+", "+", "sci+nosuch", "profile:x"):
        with pytest.raises(InputError):
            load_policy(spec)


LEARNED = [("write", LOAD - BASE, "load_module"), ("write", OTHER - BASE + 4, "other"), ("read", 0, "load_module")]


def test_profile_allows_what_was_learned_for_the_call_and_names_its_corpus():
    policy = Profile.from_json(build_profile(LEARNED, "k" * 64))
    granted = judge(policy, OTHER + 0x30, block(LOAD, 8), ())
    assert granted.granted and granted.cacheable and granted.per_syscall
    refused = judge(policy, COLD, block(LOAD, 8), ())
    assert not refused.granted
    assert policy.corpus_sha256[:12] in refused.reason and policy.corpus_sha256[:12] in policy.name
    call = FakeCall(CODE, source=block(LOAD, 8))
    call.name = "mount"
    assert "not in corpus" in policy.check_access(call.fetch(OTHER), call).reason
    data = Access(1 << 63, AccessKind.READ, LOAD, None, 0, 0)
    assert policy.check_access(data, call).granted


def test_profile_by_functions_allows_any_page_of_them():
    policy = Profile.from_json(build_profile(LEARNED, "k" * 64, by="functions"))
    assert judge(policy, OTHER + 0x2000, block(LOAD, 8), ()).granted
    assert not judge(policy, COLD, block(LOAD, 8), ()).granted


def test_a_profile_is_the_same_for_the_same_corpus_in_any_order():
    assert build_profile(LEARNED, "k") == build_profile(LEARNED[::-1] + LEARNED, "k")


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b"\xff", b'{"schema": "thinbox.profile/2", "by": "pages"}',
     json.dumps({"schema": "thinbox.profile/1", "by": "pages", "kernel": {}, "calls": {}}).encode(),
     json.dumps({"schema": "thinbox.profile/1", "by": "pages", "kernel": {"sha256": ""}, "calls": {"a": ["x"]}}).encode(),
     json.dumps({"schema": "thinbox.profile/1", "by": "pages", "kernel": {"sha256": ""}, "calls": [1]}).encode()],
)  # fmt: skip
def test_a_file_that_is_no_profile_is_refused(data):
    with pytest.raises(InputError):
        Profile.from_json(data)


def rel32(at, target):
    return (target - at - 4).to_bytes(4, "little", signed=True)


def graph_of():
    """a calls b, b jumps to c.cold's middle, d is named by lea in c, e by a pointer in data, f by nobody."""
    starts = {name: BASE + 0x100 * i for i, name in enumerate("abcdefgh")}
    text = bytearray(b"\xcc" * 0x800)

    def put(name, code):
        text[starts[name] - BASE : starts[name] - BASE + len(code)] = code

    put("a", b"\xe8" + rel32(starts["a"] + 1, starts["b"]) + b"\xc3")
    put("b", b"\x0f\x84" + rel32(starts["b"] + 2, starts["c"] + 5) + b"\xc3")
    put("c", b"\x48\x8d\x3d" + rel32(starts["c"] + 3, starts["d"]) + b"\xc3")
    put("d", b"\x48\xc7\xc7" + (starts["g"] & 0xFFFFFFFF).to_bytes(4, "little") + b"\xc3")
    text[starts["e"] - BASE : starts["f"] - BASE] = b"\x98" * 0x100  # runs on into f
    data = b"\1" * 8 + (starts["e"] + 1).to_bytes(8, "little")
    graph = build_callgraph(
        bytes(text), BASE, list(starts.values()), [data], (starts["a"],), (), (starts["h"], starts["a"])
    )
    return graph, starts


def test_callgraph_follows_calls_branches_names_and_running_on():
    graph, starts = graph_of()
    reached = "".join(name for name, vaddr in starts.items() if graph.reaches(1, vaddr))
    assert reached == "abcdg", "e and f are named by nobody: the pointer is not to its start"
    assert "".join(name for name, vaddr in starts.items() if graph.reaches(0, vaddr)) == "abcdgh"
    assert graph.reachable_count(0) == 6
    froms, tos = graph.froms.tolist(), graph.tos.tolist()
    assert set(zip(froms, tos, strict=True)) == {(0, 1), (1, 2), (4, 5)}
    assert not graph.reaches(0, BASE - 1)


def test_callgraph_cuts_the_edges_of_a_dispatcher():
    graph, starts = graph_of()
    from dataclasses import replace

    cut = replace(graph, dispatchers=(starts["a"],), _reached={})
    assert not cut.reaches(1, starts["b"])
    assert cut.reaches(-1, starts["b"]), "of a 32-bit call the handler is not known"


def test_callgraph_refuses_unreachable_functions_and_keeps_the_rule_of_function():
    graph, starts = graph_of()
    call = FakeCall({name: (vaddr, b"") for name, vaddr in starts.items()}, source=block(starts["a"], 5), graph=graph)
    granted = Callgraph().check_access(call.fetch(starts["b"]), call)
    assert granted.granted and granted.cacheable and granted.per_syscall
    assert Callgraph().check_access(call.fetch(starts["f"]), call).rule == "G"
    assert Callgraph().check_access(call.fetch(starts["b"] + 8), call).rule == "6b"
