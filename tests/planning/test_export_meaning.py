"""Every export, read back by a reader of its own, allows what its plan allows: no more, and where it can, no less."""

import errno

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.support.seccomp_readers import READERS, read_docker
from thinbox.errors import InputError
from thinbox.planning.exports import EXPORTS
from thinbox.planning.filters import make_filter
from thinbox.planning.runtime_calls import RUNTIMES
from thinbox.sandbox.arguments import WORD
from thinbox.sandbox.plan import Disposition
from thinbox.sandbox.plan_file import load_plan, parse_plan
from thinbox.syscalls.table import all_calls, call_number

ARGUMENTS = {
    "socket": ("family", "type"), "mmap": ("prot", "flags"), "clone": ("clone_flags",), "ioctl": ("fd", "cmd"),
    "prctl": ("option", "arg2"), "ptrace": ("request",), "unshare": ("unshare_flags",), "lseek": ("offset", "whence"),
    "read": ("fd", "count"), "getpid": (),
}  # fmt: skip
NUMBERS = (0, 1, 2, 4, 10, 17, 0x11, 0x7F, 0x20000, 0x10000000, 0x5401, 1 << 32, (1 << 32) | 2, 1 << 62, 1 << 63, WORD)
MASKS = (1, 6, 0x7F, 0xFFFFFFFF, 1 << 63, WORD, WORD ^ 0x7F, WORD ^ 0x3F, WORD ^ 0x22, WORD ^ 0x7FF)


@st.composite
def conditions(draw, names):
    out = []
    for name in draw(st.lists(st.sampled_from(names), unique=True, max_size=2)) if names else ():
        if draw(st.booleans()):
            values = draw(st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=3))
            out.append(f"{name} = {[_number(value) for value in values]}")
        else:
            mask = draw(st.sampled_from(MASKS))
            out.append(f"{name} = {{ mask = {_number(mask)}, is = {_number(draw(st.sampled_from(NUMBERS)) & mask)} }}")
    return "{ " + ", ".join(out) + " }"


def _number(value):
    """TOML's integers are signed; the plan takes them as registers."""
    return value - (1 << 64) if value >> 63 else value


@st.composite
def plans(draw):
    default = draw(st.sampled_from(("deny:ENOSYS", "deny:EPERM", "kill")))
    lines = [f'schema = "thinbox.plan/1"\nname = "p"\ndefault = "{default}"\n[calls]']
    for call in draw(st.lists(st.sampled_from(sorted(ARGUMENTS)), unique=True, max_size=5)):
        rules = []
        for _ in range(draw(st.integers(1, 3))):
            answer = draw(
                st.sampled_from(('do = "isolate"', 'do = "pass"', 'do = "deny", errno = "EACCES"', 'do = "kill"'))
            )
            when = draw(conditions(ARGUMENTS[call]))
            rules.append(f"{{ {answer} }}" if when == "{  }" else f"{{ {answer}, when = {when} }}")
        lines.append(f"{call} = [{', '.join(rules)}]")
    try:
        return parse_plan("\n".join(lines), "p.toml", None)
    except InputError as error:
        # A value that lies outside its mask once both are cut to the argument's width.
        assert "outside its mask" in str(error), error
        assume(False)  # noqa: FBT003


calls = st.tuples(
    st.sampled_from((*ARGUMENTS, "openat", "execve", "getuid", "brk", "mount")),
    st.tuples(*[st.sampled_from(NUMBERS) for _ in range(6)]),
)


def plan_allows(plan, name, args):
    answer = plan.decide(call_number(name), args).answer
    return answer.disposition.reaches_kernel or answer.disposition is Disposition.EMULATE


def render(kind, made):
    """Return the export, or None where the format says that it cannot say this."""
    try:
        return EXPORTS[kind](made)
    except InputError as error:
        assert kind == "spo" and "63 bits" in str(error), error
        assert any((c.mask if not c.exact else c.value) >> 63 for rule in made.rules for c in rule.compares)
        return None


@pytest.mark.slow
@settings(deadline=None, max_examples=250)
@given(plans(), st.lists(calls, min_size=1, max_size=12))
def test_no_export_allows_what_its_plan_refuses_nor_refuses_what_it_allows(plan, made_calls):
    try:
        made = make_filter(plan)
    except InputError as error:
        assert "behind a rule that refuses" in str(error), error
        return
    texts = {kind: render(kind, made) for kind in EXPORTS}
    readers = {kind: READERS[kind](text) for kind, text in texts.items() if text is not None}
    readers["docker 20.10"] = read_docker(texts["docker"], default_errno=False)
    for name, args in made_calls:
        nr, wanted = call_number(name), plan_allows(plan, name, args)
        for kind, reader in readers.items():
            allowed = reader(nr, name, args) == "allow"
            if kind == "systemd":
                # By name: never a call the plan allows in no form; every one it allows. A family is compared whole.
                assert not allowed or name in made.allowed(), (kind, name, args)
                assert allowed or not wanted or (name == "socket" and args[0] not in range(1, 64)), (kind, name, args)
            else:
                assert allowed == wanted, (kind, name, args)


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(plans(), calls)
def test_what_is_not_named_fails_as_the_default_says_in_every_format(plan, call):
    name, args = call
    assume(call_number(name) not in plan.rules)
    made = make_filter_or_none(plan)
    assume(made is not None)
    wanted = "kill" if plan.default.disposition is Disposition.KILL else plan.default.errno
    for kind in ("oci", "docker", "spo", "systemd", "bpf"):
        text = render(kind, made)
        if text is not None:
            assert READERS[kind](text)(call_number(name), name, args) == wanted, kind
    assert read_docker(render("docker", made), default_errno=False)(call_number(name), name, args) == wanted


def make_filter_or_none(plan):
    try:
        return make_filter(plan)
    except InputError:
        return None


@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize("runtime", sorted(RUNTIMES))
def test_with_a_runtime_an_export_allows_the_plan_s_calls_and_the_runtime_s(kind, runtime):
    plan = load_plan("nabla")
    made = make_filter(plan, (RUNTIMES[runtime],))
    reader = READERS[kind](EXPORTS[kind](made))
    for info in all_calls():
        mine = plan_allows(plan, info.name, (0,) * 6) or info.name in RUNTIMES[runtime].calls
        assert (reader(info.nr, info.name, (0,) * 6) == "allow") == mine, info.name


def test_an_empty_plan_allows_nothing_in_any_format():
    made = make_filter(parse_plan('schema = "thinbox.plan/1"\ndefault = "deny:EPERM"', "p", None))
    for kind, render_kind in EXPORTS.items():
        reader = READERS[kind](render_kind(made))
        for info in all_calls():
            assert reader(info.nr, info.name, (0,) * 6) == errno.EPERM, (kind, info.name)


def test_the_operator_s_signed_numbers_list_the_bits_or_say_they_cannot():
    text = 'schema = "thinbox.plan/1"\n[calls]\nmmap = {{ do = "isolate", when = {{ flags = {{ mask = "~{}", is = 0 }} }} }}'
    made = make_filter(parse_plan(text.format("MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED"), "p", None))
    reader = READERS["spo"](EXPORTS["spo"](made))
    for flags in (0, 0x22, 0x32, 0x30):
        assert reader(9, "mmap", (0, 0, 0, flags, 0, 0)) == "allow"
    for flags in (1, 0x23, 0x22 | 1 << 63, 0x122, WORD):
        assert reader(9, "mmap", (0, 0, 0, flags, 0, 0)) != "allow"
    with pytest.raises(InputError, match="mmap compares more than 63 bits"):
        EXPORTS["spo"](make_filter(parse_plan(text.format("0x3ff"), "p", None)))
