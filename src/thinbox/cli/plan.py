"""`thinbox plan`: from recorded runs to a plan; from a plan to profiles."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from thinbox.cli.options import machine_options, workload_options
from thinbox.cli.output import write_output
from thinbox.errors import InputError

if TYPE_CHECKING:
    from thinbox.image.companions import KernelSpec
    from thinbox.planning.evidence import Evidence
    from thinbox.sandbox.plan import Plan

EXIT_FOUND = 1


@click.command()
@machine_options
@click.option("--output", "-o", metavar="FILE", default="-", help="Where the plan goes (TOML). [default: stdout]")
@click.option("--name", metavar="NAME", help="The plan's name. [default: the file's, or workload]")
@click.option("--strict", is_flag=True, help="Kill by default, refuse what never ran isolated.")
@click.option("--emulate/--no-emulate", default=True, help="Use emulations where they are whole. [default: yes]")
@click.option("--phase-marker", multiple=True, metavar="CALL", help="The first of these begins the steady state.")
@click.option(
    "--attack", multiple=True, type=click.Path(path_type=Path), metavar="FILE", help="thinbox.attack/1, as evidence."
)
@click.option("--export", "exports", multiple=True, metavar="KIND=FILE", help="oci, docker, systemd, spo, bpf, gvisor.")
@click.option(
    "--runtime",
    multiple=True,
    metavar="NAME",
    help="Whose own calls exports allow: docker, podman, runc, crun, each with -nnp; systemd, exec, none.",
)
@click.option("--steady", is_flag=True, help="Exports without what only start-up needs.")
@click.option("--diff", "older", metavar="PLAN", help="Say what changed since this plan; status 1 if it got looser.")
@click.option(
    "--import",
    "profile",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Compare a seccomp profile with the runs.",
)
@click.option("--verify", is_flag=True, help="Run the workload again under the plan; status 1 if it fails.")
@click.option("--policy", metavar="NAME", help="For --verify, as for run. [default: the recorded one]")
@workload_options
@click.argument("inputs", nargs=-1, required=True, metavar="RUN.json…|PLAN")
def plan(
    inputs: tuple[str, ...], kernel_spec: "KernelSpec", memory: int, append: str, quiet: bool, **options: Any
) -> None:
    """Make a plan from recorded runs: what the sandbox does with each call, and why.

    Runs are what `thinbox run --json` writes; with --surface and --coverage they hold more evidence. In their
    place one plan can be given, to export or compare it.

    --verify runs what was recorded; --policy, --rootfs, --image, --env, --user, --workdir and --entrypoint are for it,
    and are those of the run.

    \b
    thinbox run --json run.json -- sh -c 'echo hello'
    thinbox plan run.json -o hello.toml --verify
    thinbox plan redis.json -o redis.toml --verify --image redis.tar
    thinbox plan hello.toml --export oci=seccomp.json --export bpf=seccomp.bpf
    thinbox plan --diff hello.toml newer.toml
    thinbox plan nabla                    # print a plan that thinbox brings
    """
    from thinbox.cli.verify import require_verify, verify
    from thinbox.planning.evidence import RUN_SCHEMA, load_object

    require_verify(options)
    exports = _wanted_exports(options["exports"])
    paths = [Path(name) for name in inputs]
    runs: list[dict[str, Any]] = []
    if all(path.suffix == ".json" for path in paths):
        runs = [load_object(path, RUN_SCHEMA) for path in paths]
        evidence = _evidence(runs, options)
        if options["profile"]:
            _import(options["profile"], evidence, runs)
            return
        made = _make(evidence, options)
    else:
        if len(inputs) != 1:
            raise InputError("give runs (.json), or one plan (.toml, or a name that thinbox brings), not both")
        if options["profile"]:
            raise InputError("--import compares a profile with runs: give .json files of `thinbox run --json`")
        from thinbox.sandbox.plan_file import load_plan

        if options["verify"]:
            raise InputError("--verify runs a recorded workload again: give its run (.json)")
        made = load_plan(inputs[0])
    worse = _diff(options["older"], made) if options["older"] else False
    wants_nothing_else = not exports and not options["older"]
    if runs or options["output"] != "-" or wants_nothing_else:
        _write_plan(made, options["output"])
    _export(made, exports, options)
    if options["verify"]:
        worse |= not verify(made, runs, (kernel_spec, memory, append, options["cpu"]), options, quiet=quiet)
    if worse:
        raise click.exceptions.Exit(EXIT_FOUND)


def _evidence(runs: list[dict[str, Any]], options: dict[str, Any]) -> "Evidence":
    from thinbox.planning.evidence import ATTACK_SCHEMA, gather_evidence, load_object

    attacks = [load_object(path, ATTACK_SCHEMA) for path in options["attack"]]
    return gather_evidence(runs, attacks, options["phase_marker"])


def _make(evidence: "Evidence", options: dict[str, Any]) -> "Plan":
    from thinbox.planning.make_plan import PlanOptions, make_plan

    output = options["output"]
    name = options["name"] or ("workload" if output == "-" else Path(output).stem)
    return make_plan(evidence, PlanOptions(name, options["strict"], options["emulate"], options["phase_marker"]))


def _write_plan(made: "Plan", output: str) -> None:
    from thinbox.sandbox.plan_text import render_plan

    text = render_plan(made, ("Made by `thinbox plan`. Rules are read from the top; see docs/plan.md.",))
    write_output(output, text)


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _wanted_exports(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return (kind, file) of each --export; looked at before anything is written."""
    from thinbox.planning.exports import EXPORTS, find_export

    found = []
    for word in words:
        kind, equals, place = word.partition("=")
        if not equals or not place:
            raise InputError(f"--export takes KIND=FILE with KIND one of {', '.join(EXPORTS)}, not {word!r}")
        find_export(kind)
        found.append((kind, place))
    return found


def _export(made: "Plan", exports: list[tuple[str, str]], options: dict[str, Any]) -> None:
    from thinbox.planning.exports import WITHOUT_COMMENTS, find_export, render_evidence
    from thinbox.planning.filters import make_filter
    from thinbox.planning.runtime_calls import find_runtimes

    for kind, place in exports:
        default = {"systemd": ("systemd",), "bpf": ("exec",), "gvisor": ("none",)}.get(kind, ("runc",))
        found = make_filter(made, find_runtimes(options["runtime"] or default), steady_only=options["steady"])
        _write(Path(place), find_export(kind)(found))
        if kind in WITHOUT_COMMENTS:
            _write(Path(f"{place}.evidence.json"), render_evidence(found))


def _diff(older: str, made: "Plan") -> bool:
    from thinbox.planning.difference import compare_plans, render_changes
    from thinbox.sandbox.plan_file import load_plan

    changes = compare_plans(load_plan(older), made)
    click.echo(render_changes(changes) or "no difference", err=True)
    return any(change.direction == "looser" for change in changes)


def _import(path: Path, evidence: "Evidence", runs: list[dict[str, Any]]) -> None:
    from thinbox.planning.profile_file import load_profile
    from thinbox.planning.profile_import import compare_profile, kernel_versions, made_calls

    kernels = kernel_versions(evidence.kernels)
    report = compare_profile(load_profile(path), made_calls(runs), kernels, compat_calls=evidence.compat)
    click.echo(report.render())
