"""`thinbox compare`: the same workload in several runtimes."""

import json
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from thinbox.cli.options import machine_options
from thinbox.cli.output import write_output
from thinbox.cli.progress import ProgressLine
from thinbox.errors import InputError

if TYPE_CHECKING:
    from thinbox.image.companions import KernelSpec


@click.command(context_settings={"allow_interspersed_args": False})
@machine_options
@click.option(
    "--rootfs",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Root file system; what PROGRAM writes stays. [default: busybox]",
)
@click.option("--runs", default=3, show_default=True, metavar="N", help="Host runs, of which the median counts.")
@click.option("--calls", is_flag=True, help="Instead of a workload: what single calls cost, supervised too.")
@click.option(
    "--runsc",
    "binaries",
    multiple=True,
    metavar="PATH",
    help="A binary of gVisor's; repeatable. [default: the installed one]",
)
@click.option(
    "--platform",
    "platforms",
    multiple=True,
    metavar="NAME",
    help="A platform of gVisor's; repeatable. [default: ptrace and systrap]",
)
@click.option("--json", "json_path", metavar="FILE", help="Write the rows as JSON (- for stdout).")
@click.argument("command", nargs=-1, metavar="-- PROGRAM ARG…")
def compare(
    kernel_spec: "KernelSpec",
    cpu: str,
    memory: int,
    append: str,
    quiet: bool,
    rootfs: Path | None,
    runs: int,
    calls: bool,
    binaries: tuple[str, ...],
    platforms: tuple[str, ...],
    json_path: str | None,
    command: tuple[str, ...],
) -> None:
    """Run PROGRAM natively, under its seccomp profile, under gVisor, and in thinbox three times.

    The first needs bubblewrap (apt install bubblewrap), the third gVisor (apt install runsc). What gVisor asks of the
    host is counted by the kernel and read from its loaded filter, as root.

    \b
    thinbox compare -- sh -c 'for i in 1 2 3; do echo $i; done | wc -l'
    thinbox compare --runsc runsc --runsc ./newer/runsc -- true
    thinbox compare --calls --platform systrap
    """
    from thinbox.planning import call_costs, comparison, runtimes
    from thinbox.planning.gvisor_rows import GvisorChoice
    from thinbox.planning.runsc import PLATFORMS

    if calls == bool(command) or runs < 1:
        raise InputError("give a program to compare, or --calls (and not both); --runs is at least 1")
    progress = ProgressLine(quiet=quiet)
    choice = GvisorChoice(binaries, platforms or PLATFORMS)
    # What runs in other runtimes is ended on the way out, so SIGTERM has to take that way too.
    kept = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="thinbox-compare-") as made:
            if calls:
                columns = call_costs.find_columns(choice)
                costs = call_costs.measure_calls(Path(made), progress.say, columns, runs)
                text, result = call_costs.render_costs(costs), costs.to_json()
            else:
                from thinbox.boot.params import BootParams
                from thinbox.boot.ready import prepare

                root = rootfs
                if root is None:
                    root = Path(made)
                    runtimes.make_busybox_root(root)
                elif not root.is_dir():
                    raise InputError(
                        f"{root} is not a directory; compare runs it on this machine too, so unpack it first"
                    )
                guest = prepare(kernel_spec, BootParams(memory, append, cpu=cpu), progress.say)
                found = comparison.compare_runtimes(guest, command, root, runs, progress.say, choice)
                text, result = comparison.render_comparison(found), found.to_json()
    except OSError as error:
        raise InputError(f"cannot compare: {error.strerror or error}") from error
    finally:
        signal.signal(signal.SIGTERM, kept)
        progress.clear()
    if json_path != "-":
        click.echo(text)
    if json_path:
        # Behind the table: what took minutes is not lost for a folder that is not there.
        write_output(json_path, json.dumps(result, indent=1) + "\n")
