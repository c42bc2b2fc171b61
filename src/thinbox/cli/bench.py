"""`thinbox bench`: its own speed, as ratios."""

import json
from typing import TYPE_CHECKING

import click

from thinbox.cli.options import kernel_options
from thinbox.cli.progress import ProgressLine

if TYPE_CHECKING:
    from thinbox.image.companions import KernelSpec


@click.command()
@click.option("--runs", default=3, show_default=True, help="Runs of each measurement; the median counts.")
@kernel_options
@click.option("--json", "json_path", metavar="FILE", help="Write the figures as JSON (- for stdout).")
def bench(runs: int, kernel_spec: "KernelSpec", json_path: str | None) -> None:
    """Measure thinbox itself, side by side with QEMU where it is installed. Takes a minute or two.

    The figures are host time: how long a user waits. They say nothing of what isolation would cost on a
    processor.
    """
    from thinbox.bench.measure import measure_all

    progress = ProgressLine(quiet=False)
    try:
        figures = measure_all(max(1, runs), kernel_spec, progress.say)
    finally:
        progress.clear()
    if json_path:
        data = {"schema": "thinbox.bench/1", "runs": runs, "figures": [figure.to_json() for figure in figures]}
        click.open_file(json_path, "w").write(json.dumps(data, indent=1) + "\n")
        if json_path == "-":
            return
    for figure in figures:
        value = "not measured" if figure.value is None else f"{figure.value:8.2f} {figure.unit}"
        click.echo(f"{figure.name:28} {value:>14}   wanted: {figure.wanted}\n{'':28} {figure.note}")
