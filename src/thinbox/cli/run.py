"""`thinbox run`: one program, one tenant."""

import errno
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from thinbox.cli.options import OnceCommand, guest_options, kaslr_options, machine_options, workload_options
from thinbox.cli.progress import ProgressLine
from thinbox.errors import InputError

if TYPE_CHECKING:
    from thinbox.boot.ready import ReadyGuest
    from thinbox.cli.terminal import UserTerminal
    from thinbox.container.image import ContainerImage
    from thinbox.guest.terminal import Terminal
    from thinbox.image.companions import KernelSpec
    from thinbox.records.profile import KnownPages
    from thinbox.records.run import RunRecord
    from thinbox.sandbox.plan import Plan
    from thinbox.session.options import TenantSpec
    from thinbox.session.session import Session
    from thinbox.surface.run_surface import RunSurface


@click.command(cls=OnceCommand, context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@machine_options
@kaslr_options
@click.option(
    "--policy",
    default="live",
    show_default=True,
    metavar="NAME",
    help="live, sci, patch, function, transfer, callgraph, guard, profile:FILE, package.module:Name, or several "
    "joined by +.",
)
@click.option(
    "--isolate", default="all", show_default=True, metavar="all|none|CALL,…", help="Which calls run isolated."
)
@workload_options
@guest_options
@click.option(
    "--tty/--no-tty", "-t/-T", "wants_tty", default=None, help="Give the program a terminal. [default: if yours is one]"
)
@click.option(
    "--prefault",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Map at each call's entry what this profile says it needs.",
)
@click.option("--save-profile", type=click.Path(path_type=Path), metavar="FILE", help="Write what each call touched.")
@click.option(
    "--on-violation",
    type=click.Choice(("undo", "oops", "stop")),
    default="oops",
    show_default=True,
    help="undo rolls the call back and kills its process; oops kills as a kernel oops does; stop ends the run.",
)
@click.option(
    "--view",
    type=click.Choice(("none", "permissive", "strict")),
    help="Hide other tenants' data from each tenant. [default: none; with several tenants permissive]",
)
@click.option(
    "--tenant", "tenants", multiple=True, metavar="NAME=COMMAND", help="Run several tenants at once. Repeatable."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write what tenants print to DIR/NAME.stdout and DIR/NAME.stderr; one alone is called tenant.",
)
@click.option("--plan", "plan_name", metavar="FILE", help="Apply a plan: what becomes of each call (docs/plan.md).")
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
def run(kernel_spec: "KernelSpec", memory: int, append: str, quiet: bool, **options: Any) -> None:
    """Run PROGRAM, or what an image says, on a real kernel inside this process, with its system calls isolated.

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
    from thinbox.boot.params import BootParams
    from thinbox.boot.ready import prepare
    from thinbox.cli.results import exit_status, require_record_extra, say_what_came, write_files
    from thinbox.cli.signals import run_with_signals

    alone = not options["tenants"] and not _is_tenants_file(options["command"])
    require_record_extra(options["record"])
    if alone:
        _require_fit(options)
    else:
        _require_fit_for_several(options)
    params = BootParams(memory, append, kaslr=options["kaslr"], kaslr_seed=options["kaslr_seed"], cpu=options["cpu"])
    progress = ProgressLine(quiet=quiet)
    yours = _users_terminal(_stdin(), options["wants_tty"]) if alone else None
    prepared = _One(options, progress, yours) if alone else _Several(options, progress)
    try:
        prepared.load()
        guest = prepare(kernel_spec, params, progress.say)
        session = prepared.session(guest)
        measures = _prepare_surfaces(session, progress) if options["surface"] else {}
        progress.clear()
        results = run_with_signals(session, yours)
        prepared.end()
    finally:
        progress.clear()
    surfaces: dict[str, RunSurface] = {}
    refused: InputError | None = None
    try:
        surfaces |= {name: measure(results[name].record) for name, measure in measures.items()}
    except InputError as error:
        # Of a record that leaves calls out; it is written all the same.
        refused = error
    write_files(results, surfaces, options, guest.facts, alone=alone)
    say_what_came(results, surfaces, alone=alone, quiet=quiet)
    if refused is not None:
        raise refused
    raise click.exceptions.Exit(exit_status(results))


def _is_tenants_file(command: tuple[str, ...]) -> bool:
    return len(command) == 1 and command[0].endswith(".toml")


def _require_fit(options: dict[str, Any]) -> None:
    """Raise for options of one program that do not go together."""
    from thinbox.cli.tenant import require_something_to_run

    require_something_to_run(options)
    if options["events"] and options["json_path"] in (None, "-"):
        raise click.UsageError("--events needs --json FILE; the trace is written beside it")
    if options["events"] and options["prefault"]:
        raise click.UsageError("--events takes no --prefault; `thinbox cost` works out what known pages save")


def _require_fit_for_several(options: dict[str, Any]) -> None:
    """Raise for what several tenants cannot have, each with its reason."""
    from thinbox.cli.tenant import require_options_that_fit

    require_options_that_fit(options)
    if options["tenants"] and options["command"]:
        raise InputError("with several tenants, their programs stand in --tenant or in the file, none behind --")
    if options["wants_tty"]:
        raise InputError("--tty is for one tenant: your keys, and one screen, cannot go to several at once")
    if options["events"]:
        raise InputError(
            "--events is for one tenant: its trace is of the pages one CPU touches, and several share that CPU; "
            "run each alone (what is counted without a trace is in every record)"
        )


class _One:
    """One program, alone in the guest, on the user's own streams."""

    def __init__(self, options: dict[str, Any], progress: ProgressLine, yours: "UserTerminal | None") -> None:
        self._options, self._progress, self._yours = options, progress, yours
        self._image: ContainerImage | None = None

    def load(self) -> None:
        """Read what there is to read before a kernel is fetched."""
        from thinbox.cli.tenant import load_tenant_image

        self._image = load_tenant_image(self._options, self._progress)

    def session(self, guest: "ReadyGuest") -> "Session":
        """Return the session, ready to run."""
        from thinbox.cli.tenant import plan_tenant
        from thinbox.cli.tenants import file_output
        from thinbox.session.options import ALONE, RunOptions
        from thinbox.session.session import Session

        options, progress = self._options, self._progress
        terminal = _terminal(options["wants_tty"], self._yours)
        tenant = plan_tenant(self._image, options, terminal)
        into = file_output(options["output"]) if options["output"] else None
        run_options = RunOptions(
            policy=options["policy"],
            isolate=options["isolate"],
            rootfs=options["rootfs"],
            image=self._image,
            user=tenant.user,
            environment=tenant.environment,
            workdir=tenant.workdir,
            keep_faults=_keeps_faults(options),
            prefault=_known_pages(options["prefault"]),
            keep_trace=options["events"],
            coverage=options["coverage_path"] is not None,
            on_violation=options["on_violation"],
            view=options["view"] or "none",
            plan=_plan(options["plan_name"]),
            modules=options["modules"],
            modules_from=options["modules_from"],
            disk=options["disk"],
            stdin=_stdin(),
            terminal=terminal,
            keys=_keys(self._yours),
            on_output=lambda stream, data: into(ALONE, stream, data) if into else _write_out(progress, stream, data),
            progress=progress.say,
        )
        return Session.alone(guest, tenant.command, run_options)

    def end(self) -> None:
        """Nothing is left to write."""


class _Several:
    """Several tenants, each line of their output with its tenant's name before it, or in files."""

    def __init__(self, options: dict[str, Any], progress: ProgressLine) -> None:
        self._options, self._progress = options, progress
        self._specs: list[TenantSpec] = []

    def load(self) -> None:
        """Read the file of tenants, and what it names."""
        from thinbox.cli import tenants as several

        options, say = self._options, self._progress.say
        defaults = {
            "policy": options["policy"],
            "isolate": options["isolate"],
            "view": options["view"] or "permissive",
            "on_violation": options["on_violation"],
            "rootfs": options["rootfs"],
            "image": options["image"],
            "cpu": options["cpu"],
            "entrypoint": options["entrypoint"],
            "user": options["user"],
            "env": options["environment"],
            "workdir": options["workdir"],
            "plan": options["plan_name"],
            "prefault": options["prefault"],
            "modules": options["modules"],
            "modules_from": options["modules_from"],
            "disk": options["disk"],
            "keep_faults": _keeps_faults(options),
            "coverage": options["coverage_path"] is not None,
        }
        if options["tenants"]:
            self._specs = several.parse_tenants(options["tenants"], defaults, say)
        else:
            self._specs = several.load_tenants(Path(options["command"][0]), defaults, say)
        self._prefixed = several.Prefixed([spec.name for spec in self._specs])

    def session(self, guest: "ReadyGuest") -> "Session":
        """Return the session, ready to run."""
        from thinbox.cli.tenants import file_output
        from thinbox.session.session import Session

        folder = self._options["output"]
        output = file_output(folder) if folder else self._prefixed.take
        return Session.apart(guest, self._specs, output, progress=self._progress.say)

    def end(self) -> None:
        """Write what came without an end of line."""
        self._prefixed.end()


def _keeps_faults(options: dict[str, Any]) -> bool:
    return bool(options["record"] or options["surface"] or options["save_profile"])


def _prepare_surfaces(session: "Session", progress: ProgressLine) -> "dict[str, Callable[[RunRecord], RunSurface]]":
    """Read the live kernel while it stands ready; return what measures each tenant's finished run by it."""
    from thinbox.surface.run_surface import load_surface, tabulate

    found: dict[str, Callable[[RunRecord], RunSurface]] = {}
    for name in session.tenants:
        surface = load_surface(session, progress.say, tenant=name)
        found[name] = partial(tabulate, surface=surface)
    return found


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
