"""`thinbox kernel`: find, fetch and describe kernels."""

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from thinbox.cli.options import kernel_argument
from thinbox.errors import InputError, KernelImageError
from thinbox.image import KernelFacts, KernelFile, KernelImage, list_kernels, load_facts, resolve_kernel

if TYPE_CHECKING:
    from thinbox.image.companions import Companions, KernelSpec
    from thinbox.kernel.doctor import Beside, Diagnosis

SCHEMA = "thinbox.kernel/1"

_SPEC_HELP = """KERNEL is a bzImage, a vmlinux, a Debian package file, a libkrunfw.so, a build folder, or a release such
as 6.1.0-56-cloud-amd64; KERNEL,symbols=FILE,types=FILE is short for --symbols and --types.
Without it the newest Debian cloud kernel is meant, fetched once without
root and cached."""

_json_option = click.option(
    "--json", "json_file", metavar="FILE", help="Write the result as JSON to FILE ('-': standard output)."
)


def _say(line: str) -> None:
    click.echo(f"thinbox: {line}", err=True)


@click.group(invoke_without_command=True, short_help="Find, fetch and describe kernels.")
@click.pass_context
def kernel(context: click.Context) -> None:
    """Find, fetch and describe kernels; without a command, describe the default one.

    Kernels are cached under the user's cache folder ($THINBOX_CACHE names another).
    """
    if context.invoked_subcommand is None:
        context.invoke(info)


@kernel.command(help=f"Fetch the newest version of a kernel and prepare it for use.\n\n{_SPEC_HELP}")
@kernel_argument
@_json_option
def fetch(spec: "KernelSpec", json_file: str | None) -> None:
    """Fetch a kernel, asking the archive even if the cache has one, and print where it is."""
    found = resolve_kernel(spec, _say, refresh=True)
    _, facts = load_facts(found, _say)
    result = {"schema": SCHEMA, "path": str(found.path), "release": facts.release, "sha256": found.data_sha256}
    if not _wrote_json(result, json_file):
        click.echo(found.path)


@kernel.command("list", short_help="List the installed and the cached kernels.")
@_json_option
def list_(json_file: str | None) -> None:
    """List the kernels that need no fetching: those in /boot that can be read, and the cached ones."""
    kernels = [_describe_file(found) for found in list_kernels()]
    if _wrote_json({"schema": SCHEMA, "kernels": kernels}, json_file):
        return
    if not kernels:
        _say("no kernels yet; `thinbox kernel fetch` gets one")
    width = max((len(entry["release"]) for entry in kernels), default=0)
    for entry in kernels:
        click.echo(f"{entry['release']:{width}}  {entry['origin']:9}  {entry['path']}")


@kernel.command(help=f"Describe a kernel: release, build, symbols, types, calls, sizes.\n\n{_SPEC_HELP}")
@kernel_argument
@_json_option
def info(spec: "KernelSpec | None" = None, json_file: str | None = None) -> None:
    """Describe a kernel on standard output."""
    found = resolve_kernel(spec, _say)
    image, facts = load_facts(found, _say)
    result = describe_kernel(found, image, facts)
    if not _wrote_json(result, json_file):
        click.echo(render_kernel(result))


@kernel.command(help=f"Say all that a kernel lacks, what that disables, and what to do about it.\n\n{_SPEC_HELP}")
@kernel_argument
@_json_option
def doctor(spec: "KernelSpec", json_file: str | None) -> None:
    """Print the findings; exit status 1 if the kernel can not be booted and isolated."""
    from thinbox.image.kernel import load_kernel_image
    from thinbox.kernel.doctor import diagnose

    found = resolve_kernel(spec, _say)
    image = load_kernel_image(found.path)
    diagnosis = diagnose(image, _read_beside(found.companions, image), _say)
    if not _wrote_json(describe_diagnosis(found, diagnosis), json_file):
        click.echo(render_diagnosis(diagnosis))
    if not (diagnosis.is_usable_for("boot") and diagnosis.is_usable_for("isolation")):
        raise SystemExit(1)


def _read_beside(files: "Companions", image: KernelImage) -> "Beside":
    """Read the files beside a kernel; what is wrong with one is a finding, among all others."""
    from thinbox.image.btf import TypeTable
    from thinbox.image.companions import load_symbols, load_types
    from thinbox.image.kallsyms import parse_symbols
    from thinbox.kernel.doctor import Beside

    symbols = types = symbols_error = types_error = None
    try:
        symbols = None if files.symbols is None else load_symbols(files.symbols, image)
    except KernelImageError as error:
        symbols_error = str(error)
    if files.types is not None and files.symbols is None:
        # Whose the types are, its own symbols say.
        with contextlib.suppress(KernelImageError):
            symbols = parse_symbols(image)
    try:
        types = None if files.types is None else TypeTable(load_types(files.types, image, symbols, _say)[0])
    except KernelImageError as error:
        types_error = str(error)
    return Beside(symbols, types, symbols_error, types_error)


def describe_diagnosis(found: KernelFile, diagnosis: "Diagnosis") -> dict[str, Any]:
    """Return what `doctor --json` writes."""
    from thinbox.kernel.doctor import USES

    return {
        "schema": SCHEMA,
        "release": diagnosis.release or found.label,
        "path": str(found.path),
        "sha256": found.data_sha256,
        "uses": {use: diagnosis.is_usable_for(use) for use in USES},
        "findings": [asdict(finding) for finding in diagnosis.findings],
    }


def render_diagnosis(diagnosis: "Diagnosis") -> str:
    """Return a line for each use, and a paragraph for each thing that is missing."""
    from thinbox.kernel.doctor import USES

    lines = [f"kernel {diagnosis.release or 'without a banner'}"]
    for use in USES:
        lacking = [f.feature for f in diagnosis.findings if use in f.uses and not f.is_fine]
        lines.append(f"{use:15}{'no: ' + ', '.join(lacking) if lacking else 'yes'}")
    advised = ""
    for finding in diagnosis.findings:
        if not finding.is_fine:
            lines += [f"{finding.feature}: no {', no '.join(finding.missing)}", f"  so {finding.disables}"]
            lines += [f"  {finding.advice if finding.advice != advised else 'do the same'}"]
            advised = finding.advice
    return "\n".join(lines)


def describe_kernel(found: KernelFile, image: KernelImage, facts: KernelFacts) -> dict[str, Any]:
    """Return what `info --json` writes; all sizes are bytes."""
    symbols = facts.symbols
    return {
        "schema": SCHEMA,
        "release": facts.release,
        "build": facts.build,
        "banner": facts.banner,
        "path": str(found.path),
        "sha256": facts.sha256,
        "compression": image.compression,
        "file_bytes": found.path.stat().st_size,
        "vmlinux_bytes": len(image.vmlinux),
        "memory_bytes": sum(segment.memory_bytes for segment in image.segments),
        "text_bytes": symbols.text_end - symbols.text_start,
        "symbols": len(symbols),
        "text_symbols": len(symbols.text_starts),
        "types": len(facts.types),
        "syscall_numbers": len(facts.sys_call_table),
        "syscalls": len(facts.sys_call_table) - len(facts.unimplemented),
        "config": facts.config,
    }


def render_kernel(result: dict[str, Any]) -> str:
    """Return the result of `describe_kernel` as lines for a terminal."""
    config = ", ".join(
        name if value is True else f"{name} {value}" for name, value in result["config"].items() if value is not False
    )
    missing = ", ".join(name for name, value in result["config"].items() if value is False)
    rows = [
        ("release", result["release"]),
        ("build", result["build"]),
        ("file", f"{result['path']} ({_mb(result['file_bytes'])}, {result['compression']})"),
        ("sha256", result["sha256"]),
        ("unpacked", f"{_mb(result['vmlinux_bytes'])}, {_mb(result['memory_bytes'])} in memory"),
        ("text", f"{_mb(result['text_bytes'])}, {result['text_symbols']} functions"),
        ("symbols", str(result["symbols"])),
        ("types", str(result["types"])),
        ("syscalls", f"{result['syscalls']} of {result['syscall_numbers']} numbers"),
        ("config", config + (f"; without {missing}" if missing else "")),
    ]
    return "\n".join(f"{label:10}{value}" for label, value in rows)


def _describe_file(found: KernelFile) -> dict[str, Any]:
    return {
        "release": found.label,
        "origin": "installed" if found.path.parent == Path("/boot") else "cached",
        "path": str(found.path),
        "file_bytes": found.path.stat().st_size,
        "sha256": found.data_sha256,
    }


def _wrote_json(result: dict[str, Any], json_file: str | None) -> bool:
    """Write `result` where --json says; tell whether standard output holds it (so nothing else may)."""
    if json_file is None:
        return False
    text = json.dumps(result, indent=2)
    if json_file == "-":
        click.echo(text)
        return True
    try:
        Path(json_file).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {json_file}: {error.strerror}; give --json another file") from error
    return False


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
