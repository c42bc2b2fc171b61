"""YAML of strangers: what JSON has, within bounds, or one line; where both read it, PyYAML's own value."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from thinbox.errors import InputError
from thinbox.foreign_yaml import MAX_YAML_VALUES, parse_yaml

words = st.text(
    st.characters(codec="utf-8", exclude_characters="\x7f\x85\u2028\u2029\ufeff", exclude_categories=("Cc", "Cs")),
    max_size=8,
)
scalars = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | words
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words.filter(lambda w: w != "<<"), inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_what_is_written_is_read_in_every_style(value):
    for text in (
        yaml.safe_dump(value),
        yaml.safe_dump(value, default_flow_style=True),
        json.dumps(value, ensure_ascii=False),
    ):
        assert parse_yaml(text, "x") == [value], text


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_anything_is_values_or_one_line(text):
    try:
        parse_yaml(text, "x")
    except InputError as error:
        assert str(error).startswith("x is no YAML") and "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 0x10", {"a": 16}), ("a: 0o17", {"a": 15}), ("a: 017", {"a": 15}), ("a: -5", {"a": -5}), ("a: yes", {"a": True}),
        ("a: 'yes'", {"a": "yes"}), ("on: 1", {"on": 1}), ("1: 2", {"1": 2}), ("a: 2020-01-01", {"a": "2020-01-01"}),
        ("a: !!str 5", {"a": "5"}), ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}), ("a: ~", {"a": None}), ("a: 1.5", {"a": 1.5}),
        ("a: 089", {"a": 89.0}), ("", None),
    ],
)  # fmt: skip
def test_words_and_numbers(text, value):
    assert parse_yaml(text, "x") == ([] if value is None else [value])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100 + "]" * 100, "nested too deeply"), ("a: 1\na: 2", "the key 'a' twice"), ("a: 99999999999999999999", "64 bits"),
        ("a: .inf", "too large, or none"), ("a: !!python/name:os.system x", "the tag"), ("<<: {a: 1}", "merge keys"),
        ("a: *b", "alias"), ("a: [", "line"), ("? {}\n: 1", "a key is no word"),
        ("&a [" + "1," * 100 + "]", None),
    ],
)  # fmt: skip
def test_what_is_not_read_is_told(text, message):
    if message is None:
        assert parse_yaml(text, "x") == [[1] * 100]
        return
    with pytest.raises(InputError, match=message):
        parse_yaml(text, "x")


def test_aliases_are_counted_as_what_they_stand_for():
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    with pytest.raises(InputError, match=f"more than {MAX_YAML_VALUES} values"):
        parse_yaml("\n".join(lines), "x")
    deep = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 80)]
    with pytest.raises(InputError, match="nested too deeply"):
        parse_yaml("\n".join(deep), "x")
