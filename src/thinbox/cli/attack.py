"""`thinbox attack`: exploits against policies."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from thinbox.cli.options import bare_machine_options
from thinbox.cli.output import write_output
from thinbox.cli.progress import ProgressLine
from thinbox.errors import InputError
from thinbox.host.files import load_json, read_file

if TYPE_CHECKING:
    from thinbox.image.companions import KernelSpec

EXIT_BROKEN = 1
_LARGEST_DOCUMENT_BYTES = 16 << 20


@click.command()
@bare_machine_options
@click.option("--all", "everything", is_flag=True, help="The whole library, under every policy and view unless named.")
@click.option(
    "--policy", metavar="NAME,…", help="Policies to try under; `profile` is learned in advance. [default: none,live]"
)
@click.option(
    "--view", metavar="NAME,…", help="Views to try under: what of other tenants' data is hidden. [default: none]"
)
@click.option("--jobs", "-j", default=1, show_default=True, metavar="N", help="How many processes to use.")
@click.option(
    "--on-violation",
    type=click.Choice(["undo", "oops"]),
    default="undo",
    show_default=True,
    help="undo rolls a violating call back; oops kills as a kernel oops does.",
)
@click.option("--list", "listing", is_flag=True, help="List the library, run nothing.")
@click.option("--json", "json_path", metavar="FILE", help="Write the rows as JSON (- for stdout).")
@click.option("--document", type=click.Path(path_type=Path), metavar="FILE", help="Rewrite the matrix in a document.")
@click.option(
    "--audit",
    "audits",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON of `thinbox audit --all`, for the document's false kills; repeatable.",
)
@click.argument("names", nargs=-1, metavar="[NAME…]")
def attack(
    kernel_spec: "KernelSpec",
    cpu: str,
    memory: int,
    append: str,
    quiet: bool,
    everything: bool,
    policy: str | None,
    view: str | None,
    jobs: int,
    on_violation: str,
    listing: bool,
    json_path: str | None,
    document: Path | None,
    audits: tuple[Path, ...],
    names: tuple[str, ...],
) -> None:
    """Try exploits against the running kernel: unisolated, and under isolation policies.

    The bugs are presumed; payloads are built from the kernel's live text; the guest itself shows whether a goal was
    reached. Exit status 1: an attack does not succeed even on the unisolated kernel.

    \b
    thinbox attack rop-commit-creds fault-in --policy none,sci,transfer
    thinbox attack --all --jobs 2 --json attacks.json
    """
    from thinbox.attacks.exploit import all_exploits, choose_exploits
    from thinbox.attacks.matrix import POLICIES, MatrixOptions, run_matrix
    from thinbox.attacks.views import VIEWS

    if listing:
        for exploit in choose_exploits(names):
            click.echo(f"{exploit.name:22} {exploit.goal}")
        return
    if everything == bool(names):
        raise InputError("name the attacks to try, or use --all (and not both); `thinbox attack --list` shows them")
    if document is not None and not everything:
        raise InputError("--document shows the whole matrix; use --all")
    policies = _split(policy) if policy else POLICIES if everything else ("none", "live")
    views = _split(view) if view else VIEWS if everything else VIEWS[:1]
    choose_exploits(names)
    from thinbox.boot.params import BootParams
    from thinbox.boot.ready import prepare

    progress = ProgressLine(quiet=quiet)
    try:
        guest = prepare(kernel_spec, BootParams(memory, append, cpu=cpu), progress.say)
        options = MatrixOptions(names, policies, views, jobs, on_violation, progress.say, progress.step)
        record = run_matrix(guest, options)
    finally:
        progress.clear()
    if json_path:
        write_output(json_path, json.dumps(record.to_json(), indent=1) + "\n")
    if document is not None:
        from thinbox.report.attack import render_markdown

        _rewrite(document, render_markdown(record, all_exploits(), _false_kills(audits)))
    if json_path != "-":
        from thinbox.report.attack import render_attacks

        click.echo(render_attacks(record))
    if record.broken:
        raise click.exceptions.Exit(EXIT_BROKEN)


def _split(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise InputError("--policy and --view take names separated by commas")
    return names


def _rewrite(path: Path, generated: str) -> None:
    from thinbox.report.attack import BEGIN, replace_generated

    try:
        path.write_text(replace_generated(read_file(path, _LARGEST_DOCUMENT_BYTES).decode(), generated))
    except OSError as error:
        raise InputError(f"cannot rewrite {path}: {error.strerror}") from error
    except ValueError:
        raise InputError(f"{path} has no line {BEGIN!r} to put the matrix behind") from None


def _false_kills(audits: tuple[Path, ...]) -> dict[str, tuple[int, int]]:
    """Return (killed, cases) by policy from records of `thinbox audit --json`."""
    found = {}
    for path in audits:
        try:
            record = load_json(path)
            found[str(record["policy"])] = (int(record["totals"]["killed"]), len(record["entries"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no record of `thinbox audit --json`: {error}") from error
    return found
