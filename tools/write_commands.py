"""Write docs/commands and man: `python -m tools.write_commands`, or `make docs-commands`.

`files()` is what they hold, so that a test can tell whether they are stale.
"""

import re
import sys
from pathlib import Path

from tools.command_page import render_list, render_page
from tools.man_page import render_man_page
from tools.manual import read_manual

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "docs" / "commands", ROOT / "man")
"""What lies in them is generated, all of it."""


def titles() -> dict[str, str]:
    """Return the title of each page of docs, by its path there."""
    docs = ROOT / "docs"
    found = {}
    for path in docs.rglob("*.md"):
        title = re.search(r"^# (.*)$", path.read_text(), re.MULTILINE)
        found[path.relative_to(docs).as_posix()] = title[1] if title else path.stem
    return found


def files() -> dict[Path, str]:
    """Return the text of every generated file."""
    manual, named = read_manual(), titles()
    pages, man = FOLDERS
    made = {pages / "index.md": render_list(manual)}
    every = tuple(child.name for child in manual.children)
    made[man / "thinbox.1"] = render_man_page(manual, every)
    for child in manual.children:
        made[pages / f"{child.name}.md"] = render_page(child, named)
        others = ("thinbox", *(name for name in every if name != child.name))
        made[man / f"{child.name}.1"] = render_man_page(child, others)
    return made


def main() -> None:
    """Write what differs, and remove what no command has any more."""
    wanted = files()
    for folder in FOLDERS:
        folder.mkdir(exist_ok=True)
        for path in set(folder.iterdir()) - wanted.keys():
            path.unlink()
    for path, text in wanted.items():
        path.write_text(text)
    sys.stdout.write(f"{len(wanted)} files in {' and '.join(folder.name for folder in FOLDERS)}\n")


if __name__ == "__main__":
    main()
