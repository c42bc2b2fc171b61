"""`python -m benchmarks.study [--jobs N] [--page-only]`: measure (20 minutes), or only write the page."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default 2)")
    parser.add_argument("--page-only", action="store_true", help="write docs/study.md from docs/study/study.json")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep what was measured here, and go on from it")
    options = parser.parse_args()
    folder = DOCS / "study"
    folder.mkdir(exist_ok=True)
    from benchmarks.study.page import write_page

    if not options.page_only:
        from benchmarks.study.collect import collect, save
        from thinbox.cli.progress import ProgressLine

        progress = ProgressLine(quiet=False)
        with tempfile.TemporaryDirectory(prefix="thinbox-study-") as scratch:
            work = options.work or Path(scratch)
            work.mkdir(parents=True, exist_ok=True)
            data = collect(work, options.jobs, progress.step)
        progress.clear()
        save(data, folder / "study.json")
    write_page(json.loads((folder / "study.json").read_text()), DOCS / "study.md", folder)
    sys.stderr.write(f"wrote {DOCS / 'study.md'}\n")


if __name__ == "__main__":
    main()
