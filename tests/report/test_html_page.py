"""The page: self-contained, inert whatever the records hold, readable by everyone, the same bytes each time."""

import base64
import copy
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.page_reader import read_page, shape
from tests.support.written_records import killed_record, plan_text, run_record, written
from thinbox.report.page.contents import contents_of
from thinbox.report.page.document import parse_document
from thinbox.report.page.html_page import TEMPLATES, render_html

RECORDS = written()
FREE_KEYS = {"tenants", "not_exercised", "made", "ns", "gvisor_ns", "cheaper"}
"""Objects whose keys are chosen by whoever made the record."""
FIXED = {"schema", "outcome", "clock", "columns"}
"""Of these the reader takes known words only, or other parts of the record refer to them."""
ROOT = Path(__file__).resolve().parents[2]

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)//",
    "</title><script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "</code></td></table><iframe src='javascript:alert(1)'>",
    "</desc></svg><svg onload=alert(1)>",
    '"><b autofocus onfocus=alert(1)>',
    '" onmouseover=alert(1) x="',
    "' style='background:url(//a.example/x)",
    "<!--",
    "-->",
    "]]>",
    "&lt;script&gt;&#60;b&#62;",
    "{{ 7 * 7 }}{% include 'page.html.j2' %}{# #}",
    "http://a.example/ javascript:alert(1)",
    "\\u003cscript\\u003e",
    "\x00\x08\x1b]0;x\x07\x7f\x9b",
    "\u202etxt.exe\u2066\u200b\ufeff\u2028",
    "\ud800\udfff\udcff",
    "a\nb\tc\r",
]


def page_of(*records, title="thinbox report", plan=None):
    documents = [parse_document(json.dumps(each).encode(), f"{at}.json") for at, each in enumerate(records)]
    if plan:
        documents.append(parse_document(plan.encode(), "web.toml", plan=True))
    return render_html(contents_of(documents, title))


def with_suffix(value, suffix, key="", free=False):
    """Every string in a record with `suffix` behind it, and the keys that are free too."""
    if isinstance(value, str):
        return value if key in FIXED else value + suffix
    if isinstance(value, list):
        return [with_suffix(each, suffix, key) for each in value]
    if isinstance(value, dict):
        inner = key == "made" and not free
        return {
            (name + suffix if key in FREE_KEYS or free else name): with_suffix(
                each, suffix, "" if key in FREE_KEYS or free else name, inner
            )
            for name, each in value.items()
        }
    return value


EVERYTHING = page_of(*RECORDS.values(), killed_record().to_json(), plan=plan_text())


def test_every_kind_of_record_is_on_one_page():
    root = read_page(EVERYTHING)
    kinds = {each.text.partition(":")[0] for each in root.all("span") if each.attributes.get("class") == "kind"}
    assert kinds == {
        "Run", "Tenants", "Tenant web", "Tenant batch", "Audit", "Attacks", "Comparison", "Costs of single calls",
        "Coverage", "Cost", "Plan",
    }  # fmt: skip


# -- nothing from elsewhere, nothing that runs ---------------------------------------------------------


def test_the_page_refers_to_nothing_but_itself():
    root = read_page(EVERYTHING)
    ids = {each.attributes["id"] for each in root.all() if "id" in each.attributes}
    links = [each.attributes["href"] for each in root.all() if "href" in each.attributes]
    assert links
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    loading = {
        "src",
        "srcset",
        "data",
        "action",
        "formaction",
        "poster",
        "background",
        "xlink:href",
        "ping",
        "manifest",
    }
    assert not [each.tag for each in root.all() if loading & each.attributes.keys()]
    forbidden = {"script", "link", "iframe", "object", "embed", "img", "base", "form", "audio", "video", "use", "image",
                 "foreignobject", "animate", "set"}  # fmt: skip
    assert not forbidden & {each.tag for each in root.all()}
    (style,) = root.all("style")
    assert not re.search(r"url\(|@import|image-set|src\(|http|expression", style.text)


def test_the_policy_forbids_all_but_the_page_s_own_style_by_its_hash():
    root = read_page(EVERYTHING)
    (policy,) = [each for each in root.all("meta") if each.attributes.get("http-equiv") == "Content-Security-Policy"]
    (style,) = root.all("style")
    digest = base64.b64encode(hashlib.sha256(style.text.encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.attributes["content"].split(";"))
    assert rules == {
        "default-src": "'none'", "style-src": f"'sha256-{digest}'", "base-uri": "'none'", "form-action": "'none'"
    }  # fmt: skip
    before = EVERYTHING.partition(b"Content-Security-Policy")[0]
    assert re.findall(rb"<(\w+)", before) == [b"html", b"head", b"meta", b"meta"], (
        "it comes before anything it is about"
    )


def test_no_element_has_a_style_or_a_handler_of_its_own():
    for element in read_page(EVERYTHING).all():
        assert not [name for name in element.attributes if name == "style" or name.startswith("on")]


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_hostile_text_in_every_string_of_every_record_changes_no_element(hostile):
    harmless = "x" * len(hostile)
    pages = [
        page_of(*(with_suffix(record, suffix) for record in RECORDS.values()), title=f"page {suffix}")
        for suffix in (hostile, harmless)
    ]
    ours, theirs = map(read_page, pages)
    assert shape(ours) == shape(theirs)
    classes = [each.attributes.get("class") for each in ours.all()]
    assert classes == [each.attributes.get("class") for each in theirs.all()]


@pytest.mark.parametrize("hostile", HOSTILE[:16], ids=ascii)
def test_hostile_text_is_still_there_to_be_read(hostile):
    record = run_record(command=("sh", "-c", f"echo {hostile}")).to_json()
    (command,) = [each for each in read_page(page_of(record)).all("dd") if "echo" in each.text]
    assert hostile in command.text.replace("'\"'\"'", "'")


def test_no_character_of_a_page_hides_or_turns_the_text_round():
    for hostile in HOSTILE[-4:]:
        page = page_of(*(with_suffix(record, hostile) for record in RECORDS.values()), title=hostile).decode("utf-8")
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]", page)


def test_hostile_text_in_a_plan_changes_no_element():
    def plan(text):
        return plan_text().replace("nothing else", text).replace("a run", text)

    hostile = "<script>alert(1)</script></td>"
    ours, theirs = read_page(page_of(plan=plan(hostile))), read_page(page_of(plan=plan("x" * len(hostile))))
    assert shape(ours) == shape(theirs)
    assert hostile in ours.text


def test_long_text_is_cut_and_says_so():
    record = killed_record(command=("sh", "-c", "y" * 1_000_000), policy="p").to_json()
    record["kills"][0]["reason"] = record["calls"][0]["name"] = "z" * 1_000_000
    page = page_of(record)
    assert len(page) < 100_000
    assert b"more characters" in page


@pytest.mark.slow
def test_a_record_of_very_many_names_kills_and_refusals_makes_no_endless_page():
    record = killed_record().to_json()
    call, kill = record["calls"][0], record["kills"][0]
    record["calls"] = [call | {"seq": at, "name": f"made up {at}"} for at in range(20_000)]
    record["kills"] = [kill] * 20_000
    record["totals"] |= {
        "calls": 20_000, "isolated": 20_000, "killed": 20_000, "code_faults": 20_000 * call["code_faults"],
        "data_faults": 20_000 * call["data_faults"],
    }  # fmt: skip
    root = read_page(page_of(record))
    assert sum(1 for _row in root.all("tr")) < 1200
    assert "19,600 others" in root.text
    assert "19,800 more are in the record" in root.text


# -- for everyone --------------------------------------------------------------------------------------


def test_tables_have_captions_and_headings_with_their_scope():
    tables = list(read_page(EVERYTHING).all("table"))
    assert len(tables) > 30
    for each in tables:
        assert [child.tag for child in each.all("caption")] == ["caption"]
        head, *rows = each.all("tr")
        width = len(list(head.all("th")))
        assert all(cell.attributes["scope"] == "col" for cell in head.all("th"))
        for row in rows:
            first, *others = row.all("th", "td")
            assert (first.tag, first.attributes["scope"]) == ("th", "row")
            assert {cell.tag for cell in others} <= {"td"}
            assert 1 + len(others) == width


def test_charts_have_titles_and_descriptions_and_ids_are_unique():
    root = read_page(EVERYTHING)
    ids = [each.attributes["id"] for each in root.all() if "id" in each.attributes]
    assert len(ids) == len(set(ids))
    charts = list(root.all("svg"))
    assert len(charts) >= 8
    for chart in charts:
        named = chart.attributes["aria-labelledby"].split()
        assert [each.attributes["id"] for each in chart.all("title", "desc")] == named
        assert all(each.text.strip() for each in chart.all("title", "desc"))
    for each in root.all():
        for name in each.attributes.get("aria-labelledby", "").split():
            assert name in ids


def test_headings_skip_no_level_and_language_and_landmarks_are_there():
    root = read_page(EVERYTHING)
    levels = [int(each.tag[1]) for each in root.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    assert next(root.all("html")).attributes["lang"] == "en"
    assert [each.tag for each in root.all("header", "nav", "main", "footer")] == ["header", "nav", "main", "footer"]


def test_a_verdict_is_never_colour_alone():
    root = read_page(EVERYTHING)
    for each in root.all("td", "th", "div", "p"):
        if {"bad", "warn", "good"} & set(each.attributes.get("class", "").split()):
            assert re.search(r"[\w]", each.text)
    for mark in (each for each in root.all("span") if "mark" in each.attributes.get("class", "")):
        assert mark.attributes["aria-label"]


def test_the_style_has_dark_and_print():
    style = (TEMPLATES / "style.css").read_text()
    assert "@media (prefers-color-scheme: dark)" in style
    assert "@media print" in style
    names = [set(re.findall(r"(--[\w-]+):", part)) for part in re.findall(r":root \{(.*?)\}", style, re.DOTALL)]
    assert len(names) == 3
    assert names[0] == names[1] == names[2], "a colour that dark or print lacks"
    assert set(re.findall(r"var\((--[\w-]+)\)", style)) == names[0]


def luminance(colour):
    colour = colour if len(colour) == 7 else "#" + "".join(2 * digit for digit in colour[1:])
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "print"])
def test_text_stands_out_from_what_is_behind_it(scheme):
    """WCAG 2.1 AA: 4.5 to 1 for text, 3 to 1 for what a chart draws."""
    style = (TEMPLATES / "style.css").read_text()
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", re.findall(r":root \{(.*?)\}", style, re.DOTALL)[scheme]))
    pairs = [(ink, paper, 4.5) for ink in ("ink", "quiet", "link") for paper in ("paper", "band")]
    pairs += [(tone, f"{tone}-back", 4.5) for tone in ("bad", "warn", "good", "plain")]
    pairs += [(series, "paper", 3.0) for series in ("code-series", "data-series")]
    for ink, paper, wanted in pairs:
        light, dark = sorted((luminance(colours[ink]), luminance(colours[paper])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= wanted, (ink, paper)


# -- the same bytes ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_records_give_the_same_bytes_whatever_the_hash_seed_clock_and_place(tmp_path):
    pages = set()
    for at, seed in enumerate(("0", "1", "77")):
        folder = tmp_path / f"somewhere{at}"
        folder.mkdir()
        names = []
        for name, record in RECORDS.items():
            names.append(f"{name.replace(' ', '-')}.json")
            (folder / names[-1]).write_text(json.dumps(record))
        zone = {"PYTHONHASHSEED": seed, "TZ": f"UTC{at}", "PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(
            [sys.executable, "-m", "thinbox", "report", *names, "-o", "-"],
            cwd=folder, env=os.environ | zone, capture_output=True, timeout=600, check=True,
        )  # fmt: skip
        pages.add(done.stdout)
        assert str(tmp_path).encode() not in done.stdout
    assert len(pages) == 1


def test_the_order_of_the_files_is_the_order_on_the_page():
    one, other = RECORDS["audit"], RECORDS["attack"]
    titles = [[each.text for each in read_page(page).all("h2")] for page in (page_of(one, other), page_of(other, one))]
    assert [title.partition(":")[0] for title in titles[0]] == ["Audit", "Attacks"]
    assert [title.partition(":")[0] for title in titles[1]] == ["Attacks", "Audit"]


def test_records_are_not_changed():
    record = RECORDS["killed"]
    kept = copy.deepcopy(record)
    page_of(record)
    assert record == kept
