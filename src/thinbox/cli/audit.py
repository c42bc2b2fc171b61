"""`thinbox audit`: every system call on its own, isolated and not."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from thinbox.cli.options import kaslr_options, machine_options
from thinbox.cli.output import write_output
from thinbox.cli.progress import ProgressLine
from thinbox.errors import InputError
from thinbox.foreign_text import MAX_JSON_BYTES
from thinbox.host.files import read_file

if TYPE_CHECKING:
    from thinbox.image.companions import KernelSpec
    from thinbox.records.audit import AuditRecord

EXIT_FOUND = 1


@click.command()
@machine_options
@kaslr_options
@click.option("--all", "everything", is_flag=True, help="Audit the whole corpus.")
@click.option("--policy", default="live", show_default=True, metavar="NAME", help="As for `thinbox run`.")
@click.option(
    "--view",
    type=click.Choice(("none", "permissive", "strict")),
    default="none",
    show_default=True,
    help="Run each case beside a second tenant, whose data is hidden.",
)
@click.option("--jobs", "-j", default=1, show_default=True, metavar="N", help="How many processes to use.")
@click.option("--prefault", type=click.Path(path_type=Path), metavar="FILE", help="As for `thinbox run`.")
@click.option("--save-profile", type=click.Path(path_type=Path), metavar="FILE", help="Write what each call touched.")
@click.option("--resume", is_flag=True, help="Go on where an interrupted audit stopped.")
@click.option("--list", "listing", is_flag=True, help="List calls and cases, run nothing.")
@click.option("--json", "json_path", metavar="FILE", help="Write the record as JSON (- for stdout).")
@click.option("--grants", is_flag=True, help="List every granted page in the JSON.")
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Compare with this baseline; status 1 for a new kill, difference or grant.",
)
@click.option("--update-baseline", is_flag=True, help="Write the --baseline file instead.")
@click.argument("calls", nargs=-1, metavar="[CALL…]")
def audit(
    kernel_spec: "KernelSpec",
    cpu: str,
    memory: int,
    append: str,
    kaslr: bool,
    kaslr_seed: int,
    quiet: bool,
    everything: bool,
    policy: str,
    view: str,
    jobs: int,
    prefault: Path | None,
    save_profile: Path | None,
    resume: bool,
    listing: bool,
    json_path: str | None,
    grants: bool,
    baseline: Path | None,
    update_baseline: bool,
    calls: tuple[str, ...],
) -> None:
    """Run system calls one by one from a clean snapshot, un-isolated and isolated, and compare.

    Compared are the result, errno, and the user memory written. Exit status 1: a case did not do even un-isolated
    what it must (and does not say that this kernel cannot), or the audit is worse than its --baseline.

    \b
    thinbox audit getpid open pipe clone execve mmap
    thinbox audit --all --jobs 2 --policy function --json audit.json
    """
    from thinbox.audit.run import AuditOptions
    from thinbox.audit.run import audit as run_audit

    if listing:
        _print_list(calls)
        return
    if everything == bool(calls):
        raise InputError("name the calls to audit, or use --all (and not both); `thinbox audit --list` shows them")
    if update_baseline and baseline is None:
        raise InputError("--update-baseline needs --baseline FILE")
    from thinbox.audit.run import choose_cases
    from thinbox.boot.params import BootParams
    from thinbox.boot.ready import prepare

    choose_cases(calls)
    from thinbox.records.profile import KnownPages

    known = None if prefault is None else KnownPages.load(prefault)
    progress = ProgressLine(quiet=quiet)
    try:
        params = BootParams(memory, append, kaslr=kaslr, kaslr_seed=kaslr_seed, cpu=cpu)
        guest = prepare(kernel_spec, params, progress.say)
        options = AuditOptions(calls, policy, view, jobs, resume, known, progress=progress.say, step=progress.step)
        record = run_audit(guest, options)
    finally:
        progress.clear()
    if save_profile:
        from thinbox.audit.run import touched_in
        from thinbox.cli.options import save_profile as save

        save(save_profile, touched_in(record), guest.facts)
    if json_path:
        _write_json(record, json_path, with_grants=grants)
    if json_path != "-":
        from thinbox.report.audit import render_audit

        click.echo(render_audit(record))
    worse = _compare(record, baseline, update=update_baseline) if baseline else []
    for line in worse:
        click.echo(f"thinbox: {line}", err=True)
    if worse or any(not entry.lacking for entry in record.broken):
        raise click.exceptions.Exit(EXIT_FOUND)


def _print_list(calls: tuple[str, ...]) -> None:
    from thinbox.audit.case import reasons_not_exercised
    from thinbox.audit.run import choose_cases

    for case in choose_cases(calls):
        click.echo(f"{case.call:24} {'success' if case.success else 'error  '}  {case.name}")
    if not calls:
        for name, reason in sorted(reasons_not_exercised().items()):
            click.echo(f"{name:24} no success path: {reason}")


def _write_json(record: "AuditRecord", path: str, *, with_grants: bool) -> None:
    write_output(path, json.dumps(record.to_json(with_grants=with_grants), indent=1) + "\n")


def _compare(record: "AuditRecord", path: Path, *, update: bool) -> list[str]:
    from thinbox.audit.baseline import compare_with_baseline, make_baseline

    try:
        if update:
            path.write_text(make_baseline(record))
            return []
    except OSError as error:
        raise InputError(f"cannot use the baseline {path}: {error.strerror}") from error
    return compare_with_baseline(record, read_file(path, MAX_JSON_BYTES))
