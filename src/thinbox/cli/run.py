"""`thinbox run`: one program, one tenant."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from thinbox.cli.options import kaslr_options, machine_options, workload_options
from thinbox.cli.output import write_json
from thinbox.cli.progress import ProgressLine
from thinbox.errors import InputError

if TYPE_CHECKING:
    from thinbox.cli.terminal import UserTerminal
    from thinbox.guest.terminal import Terminal
    from thinbox.records.profile import KnownPages
    from thinbox.records.run import RunRecord
    from thinbox.sandbox.plan import Plan
    from thinbox.session.session import RunResult, Session
    from thinbox.surface.run_surface import RunSurface

_ONE_TENANT_ONLY = {
    "plan_name": "plan", "image": "image", "entrypoint": "entrypoint", "user": "user", "environment": "env",
    "wants_tty": "tty", "prefault": "prefault", "save_profile": "save-profile", "events": "events", "record": "record",
    "coverage_path": "coverage", "surface": "surface",
}  # fmt: skip
"""Options that several tenants have not, by their names; left aside, they would promise what is not done."""


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@machine_options
@kaslr_options
@click.option(
    "--policy",
    default="sci",
    show_default=True,
    metavar="NAME",
    help="sci, patch, function, transfer, callgraph, profile:FILE, package.module:Name, or several joined by +.",
)
@click.option(
    "--isolate", default="all", show_default=True, metavar="all|none|CALL,…", help="Which calls run isolated."
)
@workload_options
@click.option(
    "--tty/--no-tty", "-t/-T", "wants_tty", default=None, help="A terminal as stdio. [default: if yours is one]"
)
@click.option(
    "--prefault", type=click.Path(path_type=Path), metavar="FILE", help="Map what each call is known to need."
)
@click.option("--save-profile", type=click.Path(path_type=Path), metavar="FILE", help="Write what each call touched.")
@click.option(
    "--on-violation",
    type=click.Choice(("undo", "oops", "stop")),
    default="oops",
    show_default=True,
    help="Roll the call back and kill its process; kill as a kernel oops does; or end the run.",
)
@click.option(
    "--view",
    type=click.Choice(("none", "permissive", "strict")),
    help="Hide other tenants' data. [default: none; with several tenants permissive]",
)
@click.option("--tenant", "tenants", multiple=True, metavar="NAME=COMMAND", help="Run several at once. Repeatable.")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="Several tenants: their output, in files."
)
@click.option("--plan", "plan_name", metavar="FILE", help="What becomes of each call (docs/plan.md).")
@click.option("--json", "json_path", metavar="FILE", help="Write the record as JSON (- for stdout).")
@click.option(
    "--coverage", "coverage_path", metavar="FILE", help="Write the functions and pages each call used (- for stdout)."
)
@click.option(
    "--record",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write calls.parquet and faults.parquet (with --coverage: coverage.parquet).",
)
@click.option(
    "--surface", is_flag=True, help="Measure what each call leaves to an exploit: code pages, gadgets, functions."
)
@click.option(
    "--events", is_flag=True, help="Trace the pages touched, for `thinbox cost`: FILE.trace beside --json FILE."
)
@click.argument("command", nargs=-1, metavar="-- PROGRAM ARG… | FILE.toml")
def run(kernel_spec: str | None, memory: int, append: str, quiet: bool, **options: Any) -> None:
    """Run PROGRAM, or what an image says, on a real kernel, in this process, its system calls isolated.

    stdin, stdout, stderr and the exit status are the program's own; 137 means that thinbox killed it. A
    signal sent to thinbox goes to the program; a second Ctrl-C or SIGTERM ends thinbox.

    With a terminal, every key is the program's, Ctrl-C too. At the start of a line, ~. ends thinbox, ~^Z
    suspends it, and ~~ is a tilde.

    \b
    thinbox run -- sh -c 'echo hello | wc -c'
    thinbox run -- sh
    thinbox run --rootfs ./root -- /usr/bin/python3 -c 'print(1)'
    thinbox run --image redis.tar -- redis-server --version
    thinbox run --policy patch --json - -- mkdir /tmp/x
    thinbox run --tenant a='sh -c "id; ls /proc"' --tenant b=id
    """
    if options["tenants"] or _is_tenants_file(options["command"]):
        _run_tenants(kernel_spec, memory, append, quiet=quiet, options=options)
    if options["output"]:
        raise InputError("--output is for several tenants; one tenant's output is yours")
    from thinbox.boot.params import BootParams
    from thinbox.boot.ready import prepare
    from thinbox.cli.signals import run_with_signals
    from thinbox.cli.tenant import load_tenant_image, plan_tenant, require_something_to_run

    _require_record_extra(options["record"])
    require_something_to_run(options)
    if options["events"] and options["json_path"] in (None, "-"):
        raise click.UsageError("--events needs --json FILE; the trace is written beside it")
    if options["events"] and options["prefault"]:
        raise click.UsageError("--events takes no --prefault; `thinbox cost` works out what known pages save")
    progress = ProgressLine(quiet=quiet)
    try:
        image = load_tenant_image(options, progress)
        params = BootParams(memory, append, kaslr=options["kaslr"], kaslr_seed=options["kaslr_seed"])
        guest = prepare(kernel_spec, params, progress.say)
        from thinbox.session.session import RunOptions, Session

        stdin = _stdin()
        yours = _users_terminal(stdin, options["wants_tty"])
        terminal = _terminal(options["wants_tty"], yours)
        tenant = plan_tenant(image, options, terminal)
        run_options = RunOptions(
            policy=options["policy"],
            isolate=options["isolate"],
            rootfs=options["rootfs"],
            image=image,
            user=tenant.user,
            environment=tenant.environment,
            workdir=tenant.workdir,
            keep_faults=bool(options["record"] or options["surface"] or options["save_profile"]),
            prefault=_known_pages(options["prefault"]),
            keep_trace=options["events"],
            coverage=options["coverage_path"] is not None,
            on_violation=options["on_violation"],
            view=options["view"] or "none",
            plan=_plan(options["plan_name"]),
            stdin=stdin,
            terminal=terminal,
            keys=_keys(yours),
            on_output=lambda stream, data: _write_out(progress, stream, data),
            progress=progress.say,
        )
        session = Session(guest, tenant.command, run_options)
        tabulate = _prepare_surface(session, progress) if options["surface"] else None
        progress.clear()
        result = run_with_signals(session, yours)
    finally:
        progress.clear()
    if options["coverage_path"] and result.record.coverage is not None:
        write_json(options["coverage_path"], result.record.coverage.to_json())
    surface, refused = None, None
    try:
        if options["save_profile"]:
            from thinbox.cli.options import save_profile
            from thinbox.records.profile import touched_by

            save_profile(options["save_profile"], touched_by(result.record), guest.facts)
        surface = tabulate(result.record) if tabulate else None
    except InputError as error:
        # Of a record that leaves calls out; it is written all the same.
        refused = error
    _report(result, options["json_path"], options["record"], surface, quiet=quiet)
    if refused is not None:
        raise refused
    raise click.exceptions.Exit(result.exit_code)


def _is_tenants_file(command: tuple[str, ...]) -> bool:
    return len(command) == 1 and command[0].endswith(".toml")


def _run_tenants(
    kernel_spec: str | None, memory: int, append: str, *, quiet: bool, options: dict[str, Any]
) -> NoReturn:
    """Run several tenants; ends with their exit status."""
    from thinbox.boot.params import BootParams
    from thinbox.boot.ready import prepare
    from thinbox.cli import tenants as several
    from thinbox.cli.signals import run_with_signals

    if options["tenants"] and options["command"]:
        raise InputError("with several tenants, their programs stand in --tenant or in the file, none behind --")
    wrong = [f"--{word}" for name, word in _ONE_TENANT_ONLY.items() if options[name] not in (None, False, ())]
    if wrong:
        raise InputError(f"{' and '.join(wrong)}: for one tenant only, not for several at once")
    given = {name: options[name] for name in ("policy", "isolate", "on_violation", "rootfs")}
    defaults = given | {"view": options["view"] or "permissive", "workdir": options["workdir"] or "/"}
    if options["tenants"]:
        specs = several.parse_tenants(options["tenants"], defaults)
    else:
        specs = several.load_tenants(Path(options["command"][0]), defaults)
    progress = ProgressLine(quiet=quiet)
    prefixed = several.Prefixed([spec.name for spec in specs])
    params = BootParams(memory, append, kaslr=options["kaslr"], kaslr_seed=options["kaslr_seed"])
    try:
        guest = prepare(kernel_spec, params, progress.say)
        from thinbox.session.several import TenantsSession

        output = several.file_output(options["output"]) if options["output"] else prefixed.take
        session = TenantsSession(guest, specs, output)
        progress.clear()
        results = run_with_signals(session)
        prefixed.end()
    finally:
        progress.clear()
    if options["json_path"]:
        write_json(options["json_path"], several.tenants_object(results))
    for name, result in results.items():
        _say_what_was_refused(result.record, f"{name}: ")
        if not quiet:
            from thinbox.report.summary import render_summary

            click.echo(f"tenant {name}:\n{render_summary(result.record)}", err=True)
    raise click.exceptions.Exit(several.exit_status(results))


def _prepare_surface(session: "Session", progress: ProgressLine) -> "Callable[[RunRecord], RunSurface]":
    """Read the live kernel while it stands ready; return what measures the finished run by it."""
    from thinbox.surface.run_surface import load_surface, tabulate

    surface = load_surface(session, progress.say)
    return lambda record: tabulate(record, surface)


def _known_pages(path: Path | None) -> "KnownPages | None":
    from thinbox.records.profile import KnownPages

    return None if path is None else KnownPages.load(path)


def _plan(name: str | None) -> "Plan | None":
    if name is None:
        return None
    from thinbox.sandbox.plan_file import load_plan

    return load_plan(name)


def _stdin() -> Any:
    try:
        return sys.stdin.buffer
    except AttributeError:
        return None


def _users_terminal(stdin: Any, wanted: bool | None) -> "UserTerminal | None":
    """Return the user's terminal if keys are to go from it to a terminal of the tenant's."""
    if wanted is False or stdin is None or not stdin.isatty() or not (wanted or os.isatty(1)):
        return None
    from thinbox.cli.terminal import UserTerminal

    return UserTerminal(stdin.fileno())


def _terminal(wanted: bool | None, yours: "UserTerminal | None") -> "Terminal | None":
    """Return the terminal the tenant gets: asked for, or because the user sits at one."""
    if not wanted and yours is None:
        return None
    from thinbox.guest.terminal import Terminal

    rows, columns = yours.size if yours else (24, 80)
    # A stderr that goes elsewhere goes on going there.
    return Terminal(rows, columns, stderr=os.isatty(2))


def _keys(yours: "UserTerminal | None") -> Callable[[bytes], bytes] | None:
    if yours is None:
        return None
    from thinbox.cli.terminal import EscapeKeys

    return EscapeKeys(_interrupt, yours.suspend)


def _interrupt() -> None:
    raise KeyboardInterrupt


def _write_out(progress: ProgressLine, stream: int, data: bytes) -> None:
    progress.clear()
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(stream, view) :]
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        # A terminal whose other end is gone.
        raise BrokenPipeError from error


def _require_record_extra(folder: Path | None) -> None:
    if folder is None:
        return
    import importlib.util

    if importlib.util.find_spec("pyarrow") is None:
        raise InputError("--record needs pyarrow; install it with: pip install 'thinbox[record]'")


def _say_what_was_refused(record: "RunRecord", tenant: str = "") -> None:
    """Say refusals and kills, each once, and what the record leaves out; refusals that killed are said with the
    kills."""
    from thinbox.report.sentences import shorten

    refused = shorten(refusal.sentence() for refusal in record.refusals if refusal.errno)
    if record.refusals.truncated:
        refused.append(record.refusals.headline())
    left_out = record.left_out_sentence()
    for line in (*refused, *shorten(violation.sentence() for violation in record.kills), *[left_out] * bool(left_out)):
        click.echo(f"thinbox: {tenant}{line}", err=True)


def _report(
    result: "RunResult", json_path: str | None, folder: Path | None, surface: "RunSurface | None", *, quiet: bool
) -> None:
    record = result.record
    if json_path and record.events.trace is not None:
        trace_path = Path(f"{json_path}.trace")
        record.events.trace.save(trace_path)
        record.events.trace_file = trace_path.name
    if json_path:
        write_json(json_path, record.json_object() | ({} if surface is None else {"surface": surface.to_json()}))
    if folder:
        from thinbox.report.parquet import write_record

        write_record(record, folder)
    _say_what_was_refused(record)
    if record.stuck:
        click.echo("thinbox: a lock that the killed task held is waited for; the guest was given up", err=True)
    if not quiet:
        from thinbox.report.summary import render_summary

        click.echo(render_summary(record), err=True)
        if surface is not None:
            from thinbox.surface.run_surface import render_surface

            click.echo(render_surface(surface), err=True)
