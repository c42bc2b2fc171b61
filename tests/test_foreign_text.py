"""JSON and TOML of strangers: the value within the bounds, or one exception of one line."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thinbox.errors import InputError
from thinbox.foreign_text import MAX_DEPTH, MAX_JSON_VALUES, MAX_TOML_BYTES, parse_json, parse_toml


def refusal(parse: object, data: object) -> str:
    with pytest.raises(InputError) as caught:
        parse(data, "x")  # type: ignore[operator]
    line = str(caught.value)
    assert line.startswith("x ") and line.isprintable() and len(line) < 400
    assert type(caught.value) is InputError
    return line


def depth(value: object) -> int:
    level, deep = [value], 0
    while level := [inner for each in level if isinstance(each, dict | list) for inner in
                    (each.values() if isinstance(each, dict) else each)]:  # fmt: skip
        deep += 1
    return deep


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no JSON"),
        (b'{"a": [1', "no JSON"),
        (b"]]", "no JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested too deeply"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "nested too deeply"),
        (b"9" * 5000, "64 bits"),
        (b"[18446744073709551616]", "64 bits"),
        (b"[-9223372036854775809]", "64 bits"),
        (b"[1e999]", "too large"),
        (b"[NaN]", "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', "the key 'c' twice"),
        (b'"\\ud800"', "lone surrogate"),
        (b'{"\\udfff": 1}', "lone surrogate"),
        (b'"\xff"', "utf-8"),
        (b'"\xed\xa0\x80"', "utf-8"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        ("{}".encode("utf-16"), "utf-8"),
        (b"[" + b"0," * MAX_JSON_VALUES + b"0]", "more than"),
    ],
)
def test_json_that_is_refused(data: bytes, says: str) -> None:
    assert says in refusal(parse_json, data)


@pytest.mark.parametrize(
    "text",
    [
        "[" * MAX_DEPTH + "]" * MAX_DEPTH,
        '{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH,
        json.dumps("[{" * 1000 + '\\"' + "[" * 1000),
        '["\\\\", "[[", "\\"["]',
        "[18446744073709551615, -9223372036854775808]",
        f'"{"9" * 5000}"',
        '"\\ud83d\\ude00 \\udcff"',
    ],
)
def test_json_within_the_bounds_is_what_python_reads(text: str) -> None:
    assert parse_json(text.encode(), "x") == json.loads(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[calls", "not TOML"),
        ("x = " + "[" * 100_000, "nested too deeply"),
        ("x = " + "[" * MAX_DEPTH + "]" * MAX_DEPTH, "nested too deeply"),
        ("a." * 50_000 + "a = 1", "parts"),
        ("x = { " + "a . " * 5_000 + "a = 1 }", "parts"),
        ("'a'." * 5_000 + "a = 1", "parts"),
        ("x = " + "9" * 5_000, "not TOML"),
        ("x = 0x" + "f" * 5_000, "64 bits"),
        ("x = [[0b1" + "0" * 64 + "]]", "64 bits"),
        ("x = nan", "nan"),
        ("x = -inf", "-inf"),
        ("x = 1e999", "too large"),
        ("x = 1\nx = 2", "not TOML"),
        (b"x = '\xff'", "utf-8"),
        (b"\xef\xbb\xbfx = 1", "byte order mark"),
        ("x = '\udc80\ud800'", "surrogate"),
        ("#" * (MAX_TOML_BYTES + 1), "larger than"),
    ],
)
def test_toml_that_is_refused(text: str | bytes, says: str) -> None:
    assert says in refusal(parse_toml, text)


def test_toml_within_the_bounds_is_read() -> None:
    assert parse_toml(b"[a.b]\nx = 18446744073709551615\ny = '[[['", "x") == {
        "a": {"b": {"x": (1 << 64) - 1, "y": "[[["}}
    }


_JSON_PIECES = st.sampled_from(
    [b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b"\\ud800", b'"a"', b"1", b"-", b"9" * 25, b"e9", b"1e999", b"NaN",
     b"null", b"true", b" ", b"\n", b"\xff", b"\xef\xbb\xbf", b"\0"]
)  # fmt: skip
_TOML_PIECES = st.sampled_from(
    ["[", "]", "{", "}", "=", ".", ",", '"', '"""', "'", "'''", "\\", "\\ud800", "\\U00110000", "a", "1", "_", "-", "0x", "f" * 30,
     "9" * 25, "nan", "inf", "1e999", "1979-05-27", "T07:32:00Z", "99:99", "true", "#", " ", "\n", "\r\n", "\0", "\ud800", "\ufeff"]
)  # fmt: skip


@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.binary(max_size=60), st.lists(_JSON_PIECES, max_size=25).map(b"".join)))
def test_any_bytes_are_a_json_value_or_the_one_exception(data: bytes) -> None:
    try:
        value = parse_json(data, "x")
    except InputError as error:
        assert str(error).isprintable()
    else:
        assert depth(value) <= MAX_DEPTH
        assert value == json.loads(data)


@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.binary(max_size=60), st.lists(_TOML_PIECES, max_size=25).map("".join)))
def test_any_text_is_a_toml_table_or_the_one_exception(data: str | bytes) -> None:
    try:
        table = parse_toml(data, "x")
    except InputError as error:
        assert str(error).isprintable()
    else:
        assert isinstance(table, dict) and depth(table) <= MAX_DEPTH
        repr(table)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=25,
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(_VALUES, st.booleans())
def test_every_value_that_python_writes_is_read_back(value: object, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "strict"), "x") == value
