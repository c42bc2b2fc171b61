"""A page read as a browser's parser would: elements with their attributes, text, tables. By the standard library's parser."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input", "base", "area", "col", "embed", "source", "track", "wbr"}


@dataclass
class Element:
    tag: str
    attributes: dict
    parent: "Element | None" = None
    children: list = field(default_factory=list)

    def all(self, *tags):
        for child in self.children:
            if isinstance(child, Element):
                if not tags or child.tag in tags:
                    yield child
                yield from child.all(*tags)

    @property
    def text(self):
        return "".join(child.text if isinstance(child, Element) else child for child in self.children)


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.root = self.here = Element("#root", {})
        self.unclosed = []

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _value in attrs}) == len(attrs), f"attribute twice in {self.get_starttag_text()}"
        made = Element(tag, dict(attrs), self.here)
        self.here.children.append(made)
        if tag not in VOID:
            self.here = made

    def handle_startendtag(self, tag, attrs):
        self.here.children.append(Element(tag, dict(attrs), self.here))

    def handle_endtag(self, tag):
        assert self.here.tag == tag, f"</{tag}> closes <{self.here.tag}>"
        self.here = self.here.parent

    def handle_data(self, data):
        self.here.children.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    def handle_pi(self, data):
        raise AssertionError(f"a processing instruction: {data}")


def read_page(page):
    """Return the root element of a page in bytes; every element must be closed in order."""
    reader = _Reader()
    reader.feed(page.decode("utf-8"))
    reader.close()
    assert reader.here is reader.root, f"<{reader.here.tag}> is not closed"
    return reader.root


def table(root, caption):
    """Return the rows of the table with this caption as lists of text, the headings first."""
    (found,) = [each for each in root.all("table") if next(each.all("caption")).text == caption]
    return [[cell.text for cell in row.all("th", "td")] for row in found.all("tr")]


def shape(root):
    """Return tags and names of attributes in document order: what no value of a record may change."""
    return [(element.tag, tuple(element.attributes)) for element in root.all()]
