"""Build the site of the documents in build/site: `python -m tools.site`, or `make docs`.

The pages are staged as they lie in the tree, README.md and its neighbours above docs, so that a link that works there
works in the site. A file that a page links to and that is no page (a test, a record) is staged too. The navigation is
that of docs/index.md: its headings are the groups, its links the pages.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
SOURCE = BUILD / "site-source"
_LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")


def stage() -> None:
    """Copy the pages, and what they link to, into build/site-source."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(ROOT / "docs", SOURCE / "docs")
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        linked = [page.parent / target for target in _LINK.findall(page.read_text()) if "://" not in target]
        for path in (page, *linked):
            place = SOURCE / path.resolve().relative_to(ROOT)
            if path.is_file() and not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, place)


def navigation() -> list[object]:
    """Return mkdocs' `nav`: README.md, then a group for each heading of docs/index.md, pages as linked there."""
    docs = ROOT / "docs"
    found: list[object] = [{"thinbox": "README.md"}]
    first, *groups = re.split(r"^## ", (docs / "index.md").read_text(), flags=re.MULTILINE)
    found.append({re.sub("^# ", "", first.splitlines()[0]): "docs/index.md"})
    for text in groups:
        pages: list[object] = []
        for title, target in re.findall(r"\[([^\]]+)\]\(([^)#]+\.md)\)", text):
            path = (docs / target).resolve().relative_to(ROOT)
            if path == Path("README.md"):
                continue
            below = sorted(page for page in (ROOT / path).parent.glob("*.md") if page.name != "index.md")
            inside = [page.relative_to(ROOT).as_posix() for page in below] if path.name == "index.md" else []
            pages.append({title.replace("`", ""): [path.as_posix(), *inside] if inside else path.as_posix()})
        found.append({text.splitlines()[0]: pages})
    return found


def main() -> int:
    """Stage, write the configuration, build; a broken link or anchor is status 1."""
    stage()
    configuration = BUILD / "mkdocs.yml"
    # JSON is YAML.
    configuration.write_text(json.dumps({"INHERIT": "../mkdocs.yml", "nav": navigation()}))
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(configuration)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    status = subprocess.run(words, env=quiet, check=False).returncode
    if status == 0:
        sys.stdout.write(f"the site is in {BUILD.relative_to(ROOT)}/site; open {BUILD / 'site' / 'index.html'}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
