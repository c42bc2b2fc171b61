"""`thinbox boot`: make the ready snapshot, or say that it is there."""

import json
import sys
import time
from typing import TYPE_CHECKING

import click

from thinbox.cli.options import kaslr_options, machine_options
from thinbox.cli.progress import ProgressLine
from thinbox.errors import InputError

if TYPE_CHECKING:
    from thinbox.image.companions import KernelSpec


@click.command()
@machine_options
@kaslr_options
@click.option("--fresh", is_flag=True, help="Boot even if a snapshot is cached.")
@click.option("--console", is_flag=True, help="Print what the kernel printed, on stdout.")
@click.option("--json", "json_path", metavar="FILE", help="Write facts of the boot as JSON (- for stdout).")
def boot(
    kernel_spec: "KernelSpec",
    cpu: str,
    memory: int,
    append: str,
    kaslr: bool,
    kaslr_seed: int,
    quiet: bool,
    fresh: bool,
    console: bool,
    json_path: str | None,
) -> None:
    """Boot a kernel to user space, in this process, and cache the waiting guest as a snapshot.

    `thinbox run` does this by itself when it has to.
    """
    from thinbox.boot.params import BootParams
    from thinbox.boot.ready import prepare

    progress = ProgressLine(quiet=quiet)
    started = time.perf_counter()
    try:
        params = BootParams(memory, append, kaslr=kaslr, kaslr_seed=kaslr_seed, cpu=cpu)
        guest = prepare(kernel_spec, params, progress.say, rebuild=fresh)
    finally:
        progress.clear()
    seconds = time.perf_counter() - started
    virtual_s = guest.snapshot.devices["clock"] / 1e9
    pages = len(guest.snapshot.numbers)
    if console:
        sys.stdout.write(guest.console.replace("\r\n", "\n"))
    if json_path:
        facts = {
            "schema": "thinbox.boot/1",
            "kernel": {"release": guest.facts.release, "sha256": guest.facts.sha256},
            "cpu": cpu,
            "memory_mib": memory,
            "slide": guest.facts.slide,
            "command_line": guest.params.full_command_line,
            "from_cache": guest.from_cache,
            "virtual_ns": guest.snapshot.devices["clock"],
            "pages_in_use": pages,
            "wall_s": round(seconds, 3),
        }
        text = json.dumps(facts, indent=2) + "\n"
        try:
            with click.open_file(json_path, "w") as stream:
                stream.write(text)
        except OSError as error:
            raise InputError(f"cannot write {json_path}: {error.strerror}; give --json another file") from error
    if not quiet:
        source = "from the cache" if guest.from_cache else "booted"
        click.echo(
            f"thinbox: Linux {guest.facts.release} is ready, {source} in {seconds:.1f} s "
            f"({virtual_s:.2f} s of virtual time, {pages * 4 // 1024} MiB in use)",
            err=True,
        )
