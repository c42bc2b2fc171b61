"""The command line: one module per command, imported only when it is called.

Exit status: the tenant's own; 137 when thinbox killed it; 2 for bad usage or input; 3 when the machine
failed; 130 after Ctrl-C. Errors are one line on stderr.
"""

import gc
import importlib
import io
import os
import sys
import traceback
from typing import Any

import click

from thinbox import __version__
from thinbox.cli.output import one_line
from thinbox.errors import EXIT_INPUT, EXIT_INTERRUPTED, EXIT_MACHINE, ThinboxError, did_you_mean

COMMANDS = {
    "kernel": "find, fetch and describe kernels",
    "boot": "boot to a ready snapshot",
    "run": "run a program as a tenant, with its system calls isolated",
    "audit": "run every system call on its own, isolated and not, and compare",
    "attack": "try exploits against isolation policies",
    "cost": "say what isolation would cost on real CPUs",
    "plan": "turn recorded runs into what each call may do; export profiles for container engines",
    "report": "make one page of records, to send around",
    "compare": "run the same workload natively, under seccomp, gVisor and thinbox",
    "bench": "measure thinbox's own speed, side by side with peers",
}


_OBJECTS_BETWEEN_COLLECTIONS = 100_000
"""Python's own 700 has it look through a kernel's symbols hundreds of times; few cycles are made here."""


_SHOWN = {"traceback": False}


class LazyGroup(click.Group):
    """Lists the commands without importing them, so that `thinbox --help` and every command start fast."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names in the order a new user needs them."""
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        """Import the module of one command."""
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"thinbox.cli.{name}"), name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command; of one that is not there, say what may be meant."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}{did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C as `Abort`, for which click prints no empty line of its own."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.Abort from None

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list from the table, importing nothing."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="thinbox")
@click.option("--debug", is_flag=True, help="Show the whole traceback of an error, and of a mistake in a policy.")
def group(debug: bool) -> None:
    """Run programs on a real Linux kernel inside this process, each system call on a page table of its own.

    \b
    Start with:
      thinbox run -- sh -c 'echo hello; uname -a'
      thinbox run --isolate none -- sh -c 'echo hello'     # the same, not isolated, to compare
      thinbox run --json run.json -- ls -l /               # one record per call
    """
    _SHOWN["traceback"] = debug


def main() -> None:
    """Entry point: turn exceptions into one line and an exit status."""
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    for stream in (sys.stdout, sys.stderr):
        # A tenant's words that are no UTF-8 are kept as lone surrogates (PEP 383).
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = group.main(standalone_mode=False)
    except click.exceptions.Exit as done:
        status = done.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "thinbox"
        click.echo(f"thinbox: {error.format_message().rstrip('.')}; see `{command} --help`", err=True)
        status = EXIT_INPUT
    except click.ClickException as error:
        click.echo(f"thinbox: {error.format_message()}", err=True)
        status = EXIT_INPUT
    except (KeyboardInterrupt, click.Abort):
        click.echo("thinbox: interrupted", err=True)
        status = EXIT_INTERRUPTED
    except ThinboxError as error:
        if _SHOWN["traceback"]:
            traceback.print_exc()
        click.echo(f"thinbox: {one_line(str(error))}", err=True)
        status = error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = EXIT_MACHINE
    sys.stdout.flush()
    sys.stderr.flush()
    # Not `sys.exit`: to take half a million objects apart one by one takes a tenth of a short command.
    os._exit(status if isinstance(status, int) else 0)
