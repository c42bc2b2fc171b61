"""Text of strangers: every character is seen, cuts are said."""

from hypothesis import given
from hypothesis import strategies as st
from thinbox.report.page.visible import command_line, shorten, visible


def test_hidden_characters_are_written_out_and_others_stay():
    assert visible("a\u202eb\x1b[0m\u200b\x00") == "a\\u202eb\\x1b[0m\\u200b\\x00"
    assert visible("naïve 日本 \U0001f600\n\t") == "naïve 日本 \U0001f600\n\t"
    assert visible(b"caf\xe9".decode("utf-8", "surrogateescape")) == "caf\\xe9"
    assert visible("\ud800") == "\\ud800"


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_any_text_can_be_written_once_it_is_visible(text):
    shown = visible(text)
    shown.encode("utf-8")
    assert visible(shown) == shown


def test_cuts_say_how_much_is_gone():
    assert shorten("abc", 3) == "abc"
    assert shorten("abcdef", 3) == "abc… (3 more characters)"
    assert command_line(("sh", "-c", "a b"), 80) == "sh -c 'a b'"
    assert command_line(("sh", "-c", "x" * 10), 8) == "sh -c xxxx… (6 more characters)".replace("xxxx…", "'xxxx…'")
    assert command_line(["y"] * 10, 3) == "y y y … (7 more words)"
