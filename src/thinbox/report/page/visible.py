"""Text of a stranger as it may be shown: every character is seen, and none rearranges its neighbours.

Why it exists: escaping keeps markup out of a page; it does not keep out a right-to-left override that makes one path
look like another, nor a lone surrogate, which no file can hold. A tenant chooses its command's words.

Rules of this file: what is not visible is written as `\\xNN` or `\\uNNNN`. A newline or tab stays.
"""

import shlex
import unicodedata
from collections.abc import Sequence

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Controls, formats (bidirectional marks, zero widths), surrogates, private use, line and paragraph separators."""
_BYTE_FIRST, _BYTE_LAST = 0xDC80, 0xDCFF
"""A byte that was no UTF-8, as Python keeps it in a string (PEP 383)."""


def visible(text: str) -> str:
    """Return `text` with each hidden character written out."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_show(character) for character in text)


def _show(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in _HIDDEN:
        return character
    number = ord(character)
    if _BYTE_FIRST <= number <= _BYTE_LAST:
        number &= 0xFF
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def shorten(text: str, longest: int) -> str:
    """Return `text`, or its first characters and how many there are more."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]}… ({len(text) - longest:,} more characters)"


def command_line(words: Sequence[str], longest: int) -> str:
    """Return a command as a shell would take it, at most about `longest` characters of it."""
    shown: list[str] = []
    room = longest
    for at, word in enumerate(words):
        if room <= 0:
            shown.append(f"… ({len(words) - at:,} more words)")
            break
        cut = f" ({len(word) - room:,} more characters)" if len(word) > room else ""
        shown.append(shlex.quote(f"{word[:room]}…" if cut else word) + cut)
        room -= len(word)
    return " ".join(shown)
