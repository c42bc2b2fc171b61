"""`thinbox report`: records in, one page out."""

import sys
from pathlib import Path

import click

from thinbox.errors import InputError

DEFAULT_TITLE = "thinbox report"


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN.json…")
@click.option("--output", "-o", required=True, metavar="FILE.html", help="Where the page goes (- for stdout).")
@click.option("--title", default=DEFAULT_TITLE, show_default=True, metavar="TEXT", help="The page's title.")
def report(inputs: tuple[Path, ...], output: str, title: str) -> None:
    """Make one self-contained HTML page of what runs, audits, attacks and comparisons wrote.

    It shows verdicts in words, calls with their faults, violations with what to do about them, and whatever else the
    records hold: surface, coverage, phases, cost. Runs of the same command stand side by side, and so do audits.

    RUN.json is what `run`, `audit`, `attack`, `compare` or `cost` wrote with --json, or `run --coverage`; a plan
    (.toml) may be among them. The page loads nothing and runs no script, so it can be mailed. Same files, same bytes.

    \b
    thinbox run --json sci.json --surface --policy sci -- ls -l /
    thinbox run --json live.json --surface --policy live -- ls -l /
    thinbox report sci.json live.json -o ls.html
    thinbox attack --all --json attacks.json; thinbox report attacks.json -o attacks.html
    """
    from thinbox.report.page.contents import contents_of
    from thinbox.report.page.document import load_documents
    from thinbox.report.page.html_page import render_html

    if output != "-":
        for path in inputs:
            if _is_same_file(path, Path(output)):
                raise InputError(f"{output} is one of the records; give -o another file")
    page = render_html(contents_of(load_documents(inputs), title))
    try:
        if output == "-":
            sys.stdout.buffer.write(page)
            sys.stdout.buffer.flush()
        else:
            Path(output).write_bytes(page)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}; give -o another file") from error


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
