"""What a Markdown page links to, and what can be linked to in it, read by a parser and not by patterns."""

import re
from urllib.parse import unquote

from markdown_it import MarkdownIt

_PARSER = MarkdownIt("commonmark").enable("table")


def tokens(text):
    return _PARSER.parse(text)


def links(text):
    """Targets of links and images, those in code left out."""
    found = []
    for token in tokens(text):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target is not None:
                found.append(unquote(target))
    return found


def slug(title):
    """The anchor of a heading on GitHub, and in the site (pymdownx.slugs.slugify)."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def anchors(text):
    """Anchors of headings. Of a title that stands twice only the first has one: the others' names differ by renderer."""
    parsed = tokens(text)
    titles = [parsed[at + 1] for at, token in enumerate(parsed) if token.type == "heading_open"]
    return {slug("".join(child.content for child in title.children)) for title in titles}


def broken_links(path, root):
    """Relative links of a page that lead to no file below `root`, or to no heading of the page they name."""
    broken = []
    for target in links(path.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (path.parent / name).resolve() if name else path
        is_there = place.exists() and place.is_relative_to(root)
        if not is_there or (anchor and anchor not in anchors(place.read_text())):
            broken.append(target)
    return broken
