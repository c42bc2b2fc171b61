"""`thinbox cost`: what isolation would cost on real CPUs."""

import json
from pathlib import Path

import click

from thinbox.cli.output import write_output
from thinbox.errors import InputError


@click.command()
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="RUN.json…")
@click.option("--cpu", "cpus", multiple=True, metavar="NAME|FILE", help="CPU profile; repeatable. [default: all]")
@click.option("--mode", "modes", multiple=True, metavar="NAME", help="Mode of isolation; repeatable. [default: all]")
@click.option("--exact", is_flag=True, help="Replay the whole trace, not windows of it. Takes a minute.")
@click.option("--json", "json_path", metavar="FILE", help="Write the figures as JSON (- for stdout).")
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="DIR", help="Write faults.svg, cpus.svg and modes.svg."
)
@click.option(
    "--page", type=click.Path(path_type=Path), metavar="FILE", help="Write the answer to the review (docs/cost.md)."
)
@click.option("--calibrate", is_flag=True, help="Measure this host instead, and write a profile.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), default=Path("host.toml"), show_default=True,
    metavar="FILE", help="Where --calibrate writes the profile.",
)  # fmt: skip
def cost(
    runs: tuple[Path, ...],
    cpus: tuple[str, ...],
    modes: tuple[str, ...],
    exact: bool,
    json_path: str | None,
    plot: Path | None,
    page: Path | None,
    calibrate: bool,
    output: Path,
) -> None:
    """Say what each mode of isolation would add to the calls of RUN.json, on each CPU, as intervals.

    RUN.json comes from `thinbox run --json`; with `--events` too, misses are replayed instead of bounded.

    \b
    thinbox run --events --json run.json -- sh -c 'ls -l /'
    thinbox cost run.json
    thinbox cost --cpu zen-2 --mode sci --mode sci-prepopulated run.json
    thinbox cost --calibrate -o host.toml; thinbox cost --cpu host.toml run.json
    """
    if calibrate:
        _calibrate(output)
        return
    if not runs:
        raise click.UsageError("give a RUN.json, or --calibrate")
    if len(runs) > 1 and (json_path or plot or page):
        raise click.UsageError("--json, --plot and --page take one RUN.json")
    from thinbox.cost.model import Model
    from thinbox.cost.modes import MODES, find_mode
    from thinbox.cost.profiles import cpu_names, find_profile
    from thinbox.cost.workload import load_workload
    from thinbox.report.cost_table import costs_json, render_costs

    for name in modes:
        if find_mode(name) is None:
            raise InputError(f"there is no mode {name!r}; choose from {', '.join(mode.name for mode in MODES)}")
    chosen = tuple(mode for mode in MODES if not modes or mode.name in modes)
    profiles = [find_profile(name) for name in cpus or cpu_names()]
    for path in runs:
        model = Model(load_workload(path), exact=exact)
        costs = model.costs(profiles, chosen)
        title = model.workload.title
        if json_path:
            write_output(json_path, json.dumps(costs_json(title, model, costs), indent=1) + "\n")
        if plot:
            from thinbox.cost.plots import write_plots

            write_plots(costs, model.workload.faults, plot)
        if page:
            from thinbox.report.cost_page import render_page

            write_output(str(page), render_page(model, costs))
        if json_path != "-":
            click.echo(render_costs(title, costs))


def _calibrate(output: Path) -> None:
    from thinbox.cost.calibrate import measure_host, profile_text

    measured = measure_host()
    write_output(str(output), profile_text(measured))
    for line in measured.lines():
        click.echo(line)
    click.echo(f"written to {output}; use it with: thinbox cost --cpu {output} RUN.json")
