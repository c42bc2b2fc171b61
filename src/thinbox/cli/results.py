"""What a finished `thinbox run` leaves behind: files that were asked for, lines on stderr, the exit status.

Why it exists: one tenant and several give the same things; several give each under its name.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from thinbox.cli.output import one_line, write_json
from thinbox.errors import InputError

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts
    from thinbox.records.run import RunRecord
    from thinbox.session.options import RunResult
    from thinbox.surface.run_surface import RunSurface

TENANTS_SCHEMA = "thinbox.tenants/1"
COVERAGE_SCHEMA = "thinbox.tenants-coverage/1"
Results = Mapping[str, "RunResult"]
Surfaces = Mapping[str, "RunSurface"]

_ENDED_BY_SIGILL = 128 + 4
_TRAP = re.compile(
    r"traps: (?P<who>[^\n\[]+)\[\d+\] trap invalid opcode ip:(?P<ip>[0-9a-f]+)(?:[^\n]* in (?P<file>[^\s\[]+))?"
)
"""What the kernel prints (arch/x86/kernel/traps.c, show_signal)."""


def require_record_extra(folder: Path | None) -> None:
    """Raise InputError if --record is wanted and Parquet cannot be written."""
    if folder is None:
        return
    import importlib.util

    if importlib.util.find_spec("pyarrow") is None:
        raise InputError("--record needs pyarrow; install it with: pip install 'thinbox[record]'")


def write_files(
    results: Results, surfaces: Surfaces, options: Mapping[str, Any], facts: "KernelFacts", *, alone: bool
) -> None:
    """Write what --coverage, --save-profile, --json and --record ask for; `alone`: one tenant, without its name."""
    records = {name: result.record for name, result in results.items()}
    if options["coverage_path"]:
        found = {name: record.coverage.to_json() for name, record in records.items() if record.coverage is not None}
        several = {"schema": COVERAGE_SCHEMA, "tenants": found}
        write_json(options["coverage_path"], next(iter(found.values())) if alone else several)
    if options["json_path"]:
        if alone:
            (record,) = records.values()
            _write_trace(record, options["json_path"])
        tenants = tenants_object(results, surfaces)
        write_json(options["json_path"], next(iter(tenants["tenants"].values())) if alone else tenants)
    if options["record"]:
        from thinbox.report.parquet import write_record

        for name, record in records.items():
            write_record(record, options["record"] if alone else options["record"] / name)
    if options["save_profile"]:
        # Last: it refuses a record that leaves calls out, and that is written all the same.
        from thinbox.cli.options import save_profile
        from thinbox.records.profile import touched_by

        calls = [touched for record in records.values() for touched in touched_by(record)]
        save_profile(options["save_profile"], calls, facts)


def _write_trace(record: "RunRecord", json_path: str) -> None:
    if record.events.trace is not None:
        path = Path(f"{json_path}.trace")
        record.events.trace.save(path)
        record.events.trace_file = path.name


def tenants_json(results: Results, surfaces: Surfaces | None = None) -> dict[str, Any]:
    """Return the object of `--json`, whole: each tenant's is that of a run (`thinbox.run/1`)."""
    return _object(results, {name: result.record.to_json() for name, result in results.items()}, surfaces or {})


def tenants_object(results: Results, surfaces: Surfaces | None = None) -> dict[str, Any]:
    """Return the object of `--json` for a writer that streams (`records.json_rows`)."""
    return _object(results, {name: result.record.json_object() for name, result in results.items()}, surfaces or {})


def _object(results: Results, tenants: dict[str, Any], surfaces: Surfaces) -> dict[str, Any]:
    for name, surface in surfaces.items():
        tenants[name]["surface"] = surface.to_json()
    kernel = next(iter(tenants.values()))["kernel"]
    return {"schema": TENANTS_SCHEMA, "kernel": kernel, "exit_code": exit_status(results), "tenants": tenants}


def exit_status(results: Results) -> int:
    """Return the first tenant's status that is not 0, or 0."""
    return next((result.exit_code for result in results.values() if result.exit_code), 0)


def say_what_came(results: Results, surfaces: Surfaces, *, alone: bool, quiet: bool) -> None:
    """Write refusals and kills to stderr, and unless `quiet` the table of calls."""
    for name, result in results.items():
        record = result.record
        tenant = "" if alone else f"{name}: "
        if result.not_started:
            click.echo(f"thinbox: {tenant}{result.not_started}", err=True)
        _say_what_was_refused(record, tenant)
        if result.exit_code == _ENDED_BY_SIGILL:
            # The console is everybody's, and a program chooses its name.
            said = _illegal_instruction(result.console if alone else "")
            click.echo(f"thinbox: {tenant}{one_line(said)}", err=True)
        if record.stuck:
            said = "a lock that the killed task held is waited for; the guest was given up"
            click.echo(f"thinbox: {tenant}{said}", err=True)
        if quiet:
            continue
        from thinbox.report.summary import render_summary

        click.echo(render_summary(record) if alone else f"tenant {name}:\n{render_summary(record)}", err=True)
        if name in surfaces:
            from thinbox.surface.run_surface import render_surface

            click.echo(render_surface(surfaces[name]), err=True)


def _illegal_instruction(console: str) -> str:
    """Say who asked for what the CPU does not have, as far as the kernel said it."""
    found = _TRAP.search(console)
    where = f" in {found['file']}" if found and found["file"] else ""
    who = f"{found['who']} at 0x{found['ip']}{where}" if found else "the program"
    return f"{who} was ended by SIGILL: the guest's CPU (--cpu) has no such instruction; v2 has no AVX"


def _say_what_was_refused(record: "RunRecord", tenant: str) -> None:
    """Say refusals and kills, each once, and what the record leaves out; refusals that killed are said with the
    kills."""
    from thinbox.isolation.verdict import remedy
    from thinbox.report.sentences import shorten

    refused = shorten(refusal.sentence() for refusal in record.refusals if refusal.errno)
    if record.refusals.truncated:
        refused.append(record.refusals.headline())
    left_out = record.left_out_sentence()
    kills = shorten(violation.sentence() for violation in record.kills)
    remedies = dict.fromkeys(text for violation in record.kills if (text := remedy(violation)))
    for line in (*refused, *kills, *remedies, *[left_out] * bool(left_out)):
        click.echo(f"thinbox: {tenant}{line}", err=True)


__all__ = ["exit_status", "require_record_extra", "say_what_came", "tenants_json", "write_files"]
