"""Plans as text: what is understood comes back the same, what is not is refused with one line."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thinbox.errors import InputError
from thinbox.sandbox.arguments import DECIDING
from thinbox.sandbox.plan import Answer, Condition, Disposition, Phase, Plan, Rule, argument_index
from thinbox.sandbox.plan_file import SHIPPED, load_plan, parse_plan
from thinbox.sandbox.plan_text import render_plan
from thinbox.syscalls.table import all_calls, call_number

HEAD = 'schema = "thinbox.plan/1"\n'


def parse(text):
    return parse_plan(HEAD + text, "p.toml", lambda path: b"")


def without_lines(plan):
    return dataclasses.replace(
        plan,
        rules={nr: tuple(dataclasses.replace(r, line=0) for r in rules) for nr, rules in plan.rules.items()},
        default_line=0,
        compat_line=0,
    )


@pytest.mark.parametrize("name", sorted(file.stem for file in SHIPPED.glob("*.toml")))
def test_shipped_plans_are_read_and_say_where_they_come_from(name):
    plan = load_plan(name)
    assert plan.source and plan.date and plan.name == name
    assert plan.default.disposition is Disposition.DENY
    assert without_lines(parse_plan(render_plan(plan), name, None)) == without_lines(plan)


def test_the_shipped_lists_have_the_sizes_that_were_measured():
    sizes = {file.stem: len(load_plan(file.stem).rules) for file in SHIPPED.glob("*.toml")}
    assert sizes == {
        "nabla": 7,
        "gvisor-ptrace-sentry": 69,
        "gvisor-ptrace-gofer": 59,
        "gvisor-systrap-sentry": 85,
        "gvisor-systrap-gofer": 46,
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('default = "maybe"', "line 2: 'maybe' is no disposition"),
        ('default = "emulate"', "line 2: default cannot be emulate"),
        ('default = "isolate:EPERM"', "only deny takes an errno"),
        ("colour = 1", "unknown key 'colour'"),
        ("[calls]\nopne = 'isolate'", "line 3: no x86-64 system call is named 'opne'; did you mean open"),
        ("[calls]\nmount = 'emulate'", "line 3: thinbox has no emulation of mount"),
        ("[calls]\nmount = { do = 'deny', errno = 'EWHAT' }", "line 3: 'EWHAT' is no errno"),
        ("[calls]\nmount = { do = 'deny:EPERM', emulate = 'a:b' }", "and not both"),
        ("[calls]\nmount = { }", "a rule needs do"),
        ("[calls]\nmount = []", "an empty list"),
        ("[calls]\nmount = 3", "takes a disposition"),
        ("[calls]\nmount = { do = 'pass', errno = 'EPERM' }", "errno goes with deny only"),
        ("[calls]\nmount = { do = 'pass', otherwise = 'deny' }", "otherwise goes with emulate"),
        ("[calls]\nmount = { do = 'pass', phase = 'later' }", "'later' is no phase"),
        ("[calls]\nmount = { emulate = 'nocolon' }", "package.module:function"),
        ("[calls]\nsocket = { do = 'pass', when = { domain = 1 } }", "socket has no argument 'domain'; it has family"),
        ("[calls]\nsocket = { do = 'pass', when = { family = 'AF_MOON' } }", "'AF_MOON' is not known as a value here"),
        ("[calls]\nsocket = { do = 'pass', when = { family = [] } }", "an empty list of values"),
        ("[calls]\nsocket = { do = 'pass', when = { family = { mask = 1, is = 2 } } }", "would never match"),
        ("[calls]\nsocket = { do = 'pass', when = { family = { mask = 1 } } }", "needs mask and is"),
        ("[calls]\n[[calls.socket]]\ndo = 'pass'\n[[calls.socket]]\ndo = 'nope'", "line 5: 'nope' is no disposition"),
        ("phase_marker = 'never'", "line 2: no x86-64 system call is named 'never'"),
        ("seed = 'x'", "seed must be an integer"),
        ("[[file]]\npath = 'relative'\ntext = ''", "a file needs path, an absolute one"),
        ("[[file]]\npath = '/x'", "either from"),
        ("[[file]]\npath = '/x'\ntext = ''\nmode = 1", "unknown key of a file 'mode'"),
        ("calls = 1", "calls must be a table"),
        ("[calls", "is not TOML"),
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(text, says):
    with pytest.raises(InputError) as caught:
        parse(text)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_another_schema_is_refused():
    with pytest.raises(InputError, match="thinbox.plan/1"):
        parse_plan('schema = "thinbox.plan/2"', "p.toml", None)


def test_lines_are_those_of_the_rules():
    text = (
        'default = "kill"\n[calls]\ngetpid = "isolate"\nsocket = [\n  { do = "isolate", when = { family = 1 } },\n'
        '  { do = "deny", when = { family = 2 } },\n]\n[calls.mount]\ndo = "deny"\n[[calls.clone]]\ndo = "isolate"\n'
    )
    lines = {(rule.name, i): rule.line for rules in parse(text).rules.values() for i, rule in enumerate(rules)}
    assert lines == {("getpid", 0): 4, ("socket", 0): 6, ("socket", 1): 7, ("mount", 0): 9, ("clone", 0): 11}


def test_an_int_argument_is_judged_by_its_lower_half_and_a_long_by_all():
    plan = parse(
        '[calls]\nsocket = { do = "isolate", when = { family = 1 } }\nptrace = { do = "isolate", when = { request = 1 } }'
    )
    high = 1 << 40 | 1
    assert plan.decide(call_number("socket"), (high, 0, 0, 0, 0, 0)).answer.disposition is Disposition.ISOLATE
    assert plan.decide(call_number("ptrace"), (high, 0, 0, 0, 0, 0)).answer.disposition is Disposition.DENY


def test_of_clone_s_flags_the_lower_half_is_judged_as_the_kernel_takes_it():
    plan = parse('[calls]\nclone = { do = "pass", when = { clone_flags = { mask = "~CLONE_VM|0x7f", is = 0 } } }')
    nr = call_number("clone")
    for flags, passes in ((0x111, True), (1 << 40 | 0x111, True), (0x20011, False)):
        answer = plan.decide(nr, (flags, 0, 0, 0, 0, 0)).answer
        assert (answer.disposition is Disposition.PASS) == passes, hex(flags)
    assert 'mask = "~CLONE_VM|0x7f"' in render_plan(plan)


def test_names_of_deciding_arguments_are_positions_the_table_has():
    for name, deciding in DECIDING.items():
        info = next(info for info in all_calls() if info.name == name)
        assert deciding.index < len(info.args)


_TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=20)
_ERRNO = st.sampled_from((1, 13, 38, 97))
_REACHING = st.sampled_from((Answer(Disposition.ISOLATE), Answer(Disposition.PASS), Answer(Disposition.KILL)))
_ANSWER = st.one_of(_REACHING, _ERRNO.map(lambda n: Answer(Disposition.DENY, n)))


@st.composite
def rules(draw):
    info = draw(st.sampled_from([info for info in all_calls() if info.args]))
    when = []
    for index in draw(st.sets(st.integers(0, len(info.args) - 1), max_size=2)):
        name = info.args[index].name
        if argument_index(info.nr, name) != index:
            continue
        from thinbox.sandbox.arguments import width_mask

        mask = draw(st.one_of(st.just(width_mask(info.nr, index)), st.integers(1, width_mask(info.nr, index))))
        values = draw(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=3))
        when.append(Condition(index, name, mask, tuple(v & mask for v in values)))
    return Rule(
        info.nr,
        draw(_ANSWER),
        tuple(when),
        None,
        draw(st.sampled_from(Phase)),
        0,
        draw(_TEXT),
        {"times": draw(st.integers(0, 9))},
    )


@given(st.lists(rules(), max_size=6), _ANSWER, st.integers(0, 1 << 30), _TEXT)
def test_any_plan_comes_back_from_its_text(made, default, seed, name):
    by_number = {}
    for rule in made:
        by_number[rule.nr] = (*by_number.get(rule.nr, ()), rule)
    plan = Plan(name, by_number, default, default, seed)
    assert without_lines(parse_plan(render_plan(plan), "x", None)) == plan


# -- files of the host that a plan names ----------------------------------------------------------------------


def plan_with(folder, *origins):
    path = folder / "p.toml"
    path.write_text(HEAD + "".join(f'[[file]]\npath = "/x{i}"\nfrom = "{each}"\n' for i, each in enumerate(origins)))
    return str(path)


def test_a_file_below_the_plan_is_read(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "hosts").write_bytes(b"data")
    assert [file.data for file in load_plan(plan_with(tmp_path, "sub/hosts")).files] == [b"data"]


@pytest.mark.parametrize(
    "origin", ["/etc/passwd", "../secret", "link", "folder/secret", "fifo", "/dev/zero", "zero", ".", "no"]
)
def test_a_plan_reads_nothing_else_of_the_host(tmp_path, origin):
    import os

    folder = tmp_path / "plans"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "link").symlink_to("../secret")
    (folder / "folder").symlink_to("..")
    (folder / "zero").symlink_to("/dev/zero")
    os.mkfifo(folder / "fifo")
    with pytest.raises(InputError, match=r"p.toml: file /x0: ") as caught:
        load_plan(plan_with(folder, origin))
    assert str(caught.value).isprintable()


def test_files_of_a_plan_are_bounded_each_together_and_in_number(tmp_path, monkeypatch):
    import os

    from thinbox.sandbox import plan_file

    (tmp_path / "big").touch()
    os.truncate(tmp_path / "big", (64 << 20) + 1)
    with pytest.raises(InputError, match="larger than 64 MiB"):
        load_plan(plan_with(tmp_path, "big"))
    (tmp_path / "small").write_bytes(b"x" * 10)
    monkeypatch.setattr(plan_file, "ALL_FILES_BYTES", 25)
    load_plan(plan_with(tmp_path, "small", "small"))
    with pytest.raises(InputError, match="MiB together"):
        load_plan(plan_with(tmp_path, "small", "small", "small"))
    with pytest.raises(InputError, match="at most 1024"):
        load_plan(plan_with(tmp_path, *["small"] * 1025))


@pytest.mark.parametrize(
    "text",
    ["x = " + "[" * 100_000, "seed = " + "9" * 5_000, "seed = 0x" + "f" * 5_000, "seed = nan", "a." * 50_000 + "a = 1",
     "[calls]\nsocket = { do = 'pass', when = { family = '" + "9" * 5_000 + "' } }"],
)  # fmt: skip
def test_what_breaks_parsers_is_one_line(text):
    with pytest.raises(InputError) as caught:
        parse(text)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 6_000


def test_a_plan_that_cannot_be_read_is_one_line(tmp_path):
    import os

    os.mkfifo(tmp_path / "fifo.toml")
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    for name in ("fifo.toml", "latin.toml", "none.toml"):
        with pytest.raises(InputError) as caught:
            load_plan(str(tmp_path / name))
        assert str(caught.value).isprintable()
    with pytest.raises(InputError):
        load_plan("/dev/zero")
