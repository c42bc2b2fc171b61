"""Options that several commands share."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from thinbox.boot.params import DEFAULT_MEMORY_MIB
from thinbox.errors import InputError
from thinbox.machine.cpu_model import BARE_CPU, DEFAULT_CPU

if TYPE_CHECKING:
    from thinbox.image.companions import KernelSpec
    from thinbox.image.facts import KernelFacts
    from thinbox.records.profile import Touched


class OnceCommand(click.Command):
    """A command whose options are given once, unless they may be repeated: else the last would win without a word."""

    def make_parser(self, ctx: click.Context) -> Any:
        """Return click's parser, which refuses what it would pass over."""
        parser = super().make_parser(ctx)
        parse = parser.parse_args

        def parse_once(args: list[str]) -> Any:
            values, rest, order = parse(args)
            for param in order:
                is_repeatable = not isinstance(param, click.Option) or param.multiple or param.is_flag
                if not is_repeatable and order.count(param) > 1:
                    raise click.UsageError(f"{param.opts[0]} is given twice; it takes one value", ctx)
            return values, rest, order

        parser.parse_args = parse_once  # type: ignore[method-assign]
        return parser


_BESIDE = "thinbox.kernel_files"


def _keep_file(context: click.Context, param: click.Parameter, value: Path | None) -> None:
    context.meta.setdefault(_BESIDE, {})[param.name] = value


def _join_spec(context: click.Context, _param: click.Parameter, value: str | None) -> "KernelSpec":
    from thinbox.image.companions import Companions, KernelSpec

    files = context.meta.get(_BESIDE, {})
    return KernelSpec(value, Companions(files.get("symbols"), files.get("types")))


def kernel_files(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --symbols and --types, which become part of the kernel's specification."""
    for option in (
        click.option(
            "--types",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="The kernel's types, if they are not in it: its vmlinux (BTF or DWARF), or raw BTF.",
            **_BESIDE_KERNEL,
        ),
        click.option(
            "--symbols",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="The kernel's symbols, if they are not in it: its vmlinux, or its System.map.",
            **_BESIDE_KERNEL,
        ),
    ):
        command = option(command)
    return command


_BESIDE_KERNEL: dict[str, Any] = {"callback": _keep_file, "is_eager": True, "expose_value": False}
"""Read before the kernel's name, and given to the command within that."""


def kernel_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --kernel, --symbols and --types, which are one argument, `kernel_spec`."""
    command = kernel_files(command)
    return click.option(
        "--kernel",
        "kernel_spec",
        metavar="K",
        callback=_join_spec,
        help="A bzImage, a vmlinux, a Debian package file, a libkrunfw.so, a build folder, or a release; "
        "K,symbols=FILE,types=FILE is short for --symbols and --types. [default: Debian's newest cloud kernel]",
    )(command)


def kernel_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add [KERNEL], --symbols and --types, which are one argument, `spec`."""
    return click.argument("spec", metavar="[KERNEL]", required=False, callback=_join_spec)(kernel_files(command))


def machine_options(command: Callable[..., Any], default_cpu: str = DEFAULT_CPU) -> Callable[..., Any]:
    """Add --kernel, --symbols, --types, --cpu, --memory, --append and --quiet."""
    for option in (
        click.option("--quiet", "-q", is_flag=True, help="Say nothing on stderr but errors."),
        click.option("--append", default="", metavar="WORDS", help="Words added to the kernel command line."),
        click.option(
            "--cpu",
            default=default_cpu,
            show_default=True,
            metavar="LEVEL[,±FEATURE…]",
            help="The CPU: v1 or v2, as the x86-64 ABI counts levels (v2 has AES, SMEP, SMAP too); features are added "
            "or left out behind it: v2,-smap.",
        ),
        click.option(
            "--memory", default=DEFAULT_MEMORY_MIB, show_default=True, metavar="MIB", help="Guest memory in MiB."
        ),
    ):
        command = option(command)
    return kernel_options(command)


def bare_machine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`machine_options` with a CPU that does not keep the kernel from user memory, as exploits presume."""
    return machine_options(command, BARE_CPU)


def kaslr_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --kaslr and --kaslr-seed."""
    for option in (
        click.option(
            "--kaslr-seed",
            default=0,
            metavar="N",
            help="Seed of --kaslr: another number, another address. [default: 0]",
        ),
        click.option("--kaslr", is_flag=True, help="Let the kernel's decompressor put the kernel at a random address."),
    ):
        command = option(command)
    return command


def save_profile(path: Path, calls: "Sequence[Touched]", facts: "KernelFacts") -> None:
    """Write the profile of these calls, for `--prefault FILE` and `--policy profile:FILE`."""
    from thinbox.records.profile import profile_from

    data = profile_from(calls, facts.symbols, facts.sha256)
    try:
        # What decides is not read again if others may write it, whatever the umask.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with open(handle, "wb") as file:
            file.write(data)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; give --save-profile another file") from error


def workload_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what says in which root and how a program runs: --rootfs, --env, --workdir, --image, --entrypoint, --user."""
    for option in (
        click.option(
            "--user", "-u", metavar="NAME|UID[:GROUP]", help="Who the program runs as. [default: the image's, or root]"
        ),
        click.option(
            "--entrypoint", metavar="PROGRAM", help="Run this with the arguments instead of the image's entrypoint."
        ),
        click.option(
            "--image",
            metavar="FILE|DIR[:NAME]",
            help="Container image: docker save's or an OCI archive, an OCI layout, or a root file system.",
        ),
        click.option("--workdir", metavar="DIR", help="Where the program starts. [default: the image's, or /]"),
        click.option(
            "--env", "-e", "environment", multiple=True, metavar="NAME=VALUE", help="Set a variable. Repeatable."
        ),
        click.option(
            "--rootfs",
            type=click.Path(path_type=Path),
            metavar="DIR|TAR",
            help="Root file system of the program. [default: busybox]",
        ),
    ):
        command = option(command)
    return command


def guest_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what a tenant finds in the guest beside the kernel: --modules, --modules-from, --disk."""
    for option in (
        click.option(
            "--disk",
            metavar="SIZE[:FS]",
            help="A disk of its own, in memory, mounted at /disk: 64M, 64M:ext2. [FS: ext4]",
        ),
        click.option(
            "--modules-from",
            type=click.Path(path_type=Path),
            metavar="DIR|DEB",
            help="Where the kernel's modules are. [default: its package]",
        ),
        click.option(
            "--modules",
            default="",
            callback=_split_names,
            metavar="NAME[,NAME…]|auto",
            help="Load these modules of the kernel, and what they need, before the program starts; auto: when the "
            "kernel asks for them. [default: none]",
        ),
    ):
        command = option(command)
    return command


def _split_names(_context: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())
