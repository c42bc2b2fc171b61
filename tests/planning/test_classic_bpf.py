"""The evaluator agrees with the filters libseccomp compiles, with arguments known and unknown."""

import random
import struct

import pytest
from thinbox.errors import InputError
from thinbox.planning.classic_bpf import Reach, call_words, filter_answers, parse_program, reach_of
from thinbox.planning.exports.bpf import render_bpf
from thinbox.planning.filters import Compare, Filter, FilterRule
from thinbox.sandbox.arguments import WORD
from thinbox.syscalls.table import all_calls, call_number

ALLOW, ERRNO_38 = 0x7FFF0000, 0x00050026


def compiled(*rules, compat=False):
    return parse_program(render_bpf(Filter("f", "errno", 38, compat, rules, ())))


def some_rules(rng):
    """Rules of forty calls: some free, some with one or two values of one or two arguments."""
    rules = []
    # Not the newest, which a libseccomp may not know.
    for call in rng.sample([call for call in all_calls() if call.nr < 335], 40):
        if rng.random() < 0.4:
            rules.append(FilterRule(call.name, call.nr, "allow"))
            continue
        for _ in range(rng.randint(1, 3)):
            indexes = rng.sample(range(6), rng.randint(1, 2))
            masks = [rng.choice((WORD, 0xFFFFFFFF, 0x7F, 0xFF << 32)) for _ in indexes]
            compares = tuple(Compare(i, m, rng.getrandbits(64) & m) for i, m in zip(indexes, masks, strict=True))
            rules.append(FilterRule(call.name, call.nr, "allow", 0, compares))
    return rules


def allowed_by_the_rules(rules, nr, args):
    mine = [rule for rule in rules if rule.nr == nr]
    return any(all(args[c.index] & c.mask == c.value for c in rule.compares) for rule in mine)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("compat", [False, True])
def test_a_compiled_filter_is_read_as_libseccomp_was_told(seed, compat):
    rng = random.Random(seed)
    rules = some_rules(rng)
    program = compiled(*rules, compat=compat)
    for call in all_calls():
        mine = [rule for rule in rules if rule.nr == call.nr]
        expected = Reach.REFUSED if not mine else Reach.ANY if not mine[0].compares else Reach.CHECKED
        assert reach_of([program], call.nr) is expected, call.name
        tries = [[rng.getrandbits(64) for _ in range(6)]]
        for rule in mine:
            args = [rng.getrandbits(64) for _ in range(6)]
            for c in rule.compares:
                args[c.index] = args[c.index] & ~c.mask | c.value
            tries.append(args)
        for args in tries:
            answer = ALLOW if allowed_by_the_rules(rules, call.nr, args) else ERRNO_38
            assert filter_answers(program, call_words(call.nr, args)) == {answer}, call.name


def test_of_several_filters_the_strictest_holds():
    read, write = call_number("read"), call_number("write")
    wide = compiled(FilterRule("read", read, "allow"), FilterRule("write", write, "allow"))
    narrow = compiled(FilterRule("read", read, "allow", 0, (Compare(0, WORD, 3),)))
    assert reach_of([wide], read) is Reach.ANY
    assert reach_of([wide, narrow], read) is reach_of([narrow, wide], read) is Reach.CHECKED
    assert reach_of([wide, narrow], write) is reach_of([narrow, wide], write) is Reach.REFUSED
    assert reach_of([], write) is Reach.ANY


def test_arithmetic_and_scratch_memory_are_those_of_the_machine():
    lines = [
        (0x20, 0, 0, 16), (0x54, 0, 0, 0xF0), (0x74, 0, 0, 4), (0x02, 0, 0, 3),  # M[3] = (arg0 & 0xf0) >> 4
        (0x01, 0, 0, 5), (0x60, 0, 0, 3), (0x1C, 0, 0, 0), (0x84, 0, 0, 0),  # A = -(M[3] - 5)
        (0x16, 0, 0, 0),
    ]  # fmt: skip
    program = parse_program(b"".join(struct.pack("<HBBI", *line) for line in lines))
    assert filter_answers(program, call_words(0, [0x93, 0, 0, 0, 0, 0])) == {-4 & 0xFFFFFFFF}
    with pytest.raises(InputError, match="cannot be followed"):
        filter_answers(program, call_words(0))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a BPF program"),
        (bytes(7), "not a BPF program"),
        (struct.pack("<HBBI", 0x20, 0, 0, 0), "leaves its end"),
        (struct.pack("<HBBI", 0x05, 0, 0, 9), "leaves its end"),
        (struct.pack("<HBBI", 0x20, 0, 0, 64), "unknown BPF instruction"),
        (struct.pack("<HBBI", 0x28, 0, 0, 0), "unknown BPF instruction"),
        (struct.pack("<HBBI", 0xF5, 0, 0, 0), "unknown BPF jump"),
    ],
)
def test_what_seccomp_would_not_load_is_refused(data, said):
    with pytest.raises(InputError, match=said):
        filter_answers(parse_program(data), call_words(0))
