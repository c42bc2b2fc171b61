"""`thinbox run`: one program, one tenant."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from thinbox.cli.options import machine_options
from thinbox.cli.progress import ProgressLine
from thinbox.errors import InputError

if TYPE_CHECKING:
    from thinbox.session.session import RunResult, Session

_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@machine_options
@click.option("--policy", default="sci", show_default=True, metavar="NAME", help="sci, patch, or package.module:Name.")
@click.option(
    "--isolate", default="all", show_default=True, metavar="all|none|CALL,…", help="Which calls run isolated."
)
@click.option(
    "--rootfs", type=click.Path(path_type=Path), metavar="DIR|TAR", help="Root file system. [default: busybox]"
)
@click.option("--env", "-e", "environment", multiple=True, metavar="NAME=VALUE", help="Set a variable. Repeatable.")
@click.option("--workdir", default="/", show_default=True, metavar="DIR", help="Where the program starts.")
@click.option(
    "--on-violation",
    type=click.Choice(("undo", "oops", "stop")),
    default="oops",
    show_default=True,
    help="Roll the call back and kill its process; kill as a kernel oops does; or end the run.",
)
@click.option("--json", "json_path", metavar="FILE", help="Write the record as JSON (- for stdout).")
@click.option(
    "--record", type=click.Path(path_type=Path), metavar="DIR", help="Write calls.parquet and faults.parquet."
)
@click.argument("command", nargs=-1, required=True, metavar="-- PROGRAM ARG…")
def run(kernel_spec: str | None, memory: int, append: str, quiet: bool, **options: Any) -> None:
    """Run PROGRAM on a real kernel, in this process, its system calls isolated.

    stdin, stdout, stderr and the exit status are the program's own; 137 means that thinbox killed it. A
    signal sent to thinbox goes to the program; a second Ctrl-C ends thinbox.

    \b
    thinbox run -- sh -c 'echo hello | wc -c'
    thinbox run --rootfs ./root -- /usr/bin/python3 -c 'print(1)'
    thinbox run --policy patch --json - -- mkdir /tmp/x
    """
    from thinbox.boot.params import BootParams
    from thinbox.boot.ready import prepare

    _require_record_extra(options["record"])
    progress = ProgressLine(quiet=quiet)
    try:
        guest = prepare(kernel_spec, BootParams(memory, append), progress.say)
        from thinbox.session.session import RunOptions, Session

        run_options = RunOptions(
            policy=options["policy"],
            isolate=options["isolate"],
            rootfs=options["rootfs"],
            environment=_environment(options["environment"]),
            workdir=options["workdir"],
            keep_faults=options["record"] is not None,
            on_violation=options["on_violation"],
            stdin=_stdin(),
            on_output=_write_out,
            progress=progress.say,
        )
        session = Session(guest, options["command"], run_options)
        progress.clear()
        result = _run_with_signals(session)
    finally:
        progress.clear()
    _report(result, options["json_path"], options["record"], quiet=quiet)
    raise click.exceptions.Exit(result.exit_code)


def _stdin() -> Any:
    try:
        return sys.stdin.buffer
    except AttributeError:
        return None


def _environment(pairs: tuple[str, ...]) -> tuple[str, ...] | None:
    from thinbox.guest.tenant import TenantOptions

    values = dict(entry.split("=", 1) for entry in TenantOptions(("",)).environment)
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--env takes NAME=VALUE, not {pair!r}")
        values[name] = value
    return tuple(f"{name}={value}" for name, value in values.items())


def _write_out(stream: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(stream, view) :]


def _run_with_signals(session: "Session") -> "RunResult":
    """Run; Ctrl-C and other signals go to the tenant, the second Ctrl-C to thinbox."""
    seen = 0
    pending: list[int] = []

    def note(number: int, _frame: Any) -> None:
        pending.append(number)

    def check() -> None:
        nonlocal seen
        while pending:
            number = pending.pop(0)
            seen += number == signal.SIGINT
            if seen > 1:
                raise KeyboardInterrupt
            session.signal(number)

    kept = {number: signal.signal(number, note) for number in (signal.SIGINT, *_FORWARDED)}
    session.machine.check_signals = check
    try:
        return session.run()
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _require_record_extra(folder: Path | None) -> None:
    if folder is None:
        return
    import importlib.util

    if importlib.util.find_spec("pyarrow") is None:
        raise InputError("--record needs pyarrow; install it with: pip install 'thinbox[record]'")


def _report(result: "RunResult", json_path: str | None, folder: Path | None, *, quiet: bool) -> None:
    record = result.record
    if json_path:
        text = json.dumps(record.to_json(), indent=1) + "\n"
        try:
            if json_path == "-":
                sys.stdout.write(text)
            else:
                Path(json_path).write_text(text)
        except OSError as error:
            raise InputError(f"cannot write {json_path}: {error.strerror}") from error
    if folder:
        from thinbox.report.parquet import write_record

        write_record(record, folder)
    for violation in record.kills:
        click.echo(f"thinbox: {violation.sentence()}", err=True)
    if record.stuck:
        click.echo("thinbox: the killed task waits for a lock it holds itself; the guest was given up", err=True)
    if not quiet:
        from thinbox.report.summary import render_summary

        click.echo(render_summary(record), err=True)
