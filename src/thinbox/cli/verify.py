"""`thinbox plan --verify`: recorded workloads, run again under the plan made of them.

Why it exists: a record holds the words that were run, not where; the root, the image and what the user wanted otherwise
are given again, by the options of `thinbox run`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from thinbox.cli.progress import ProgressLine
from thinbox.errors import InputError

if TYPE_CHECKING:
    from thinbox.image.companions import KernelSpec
    from thinbox.sandbox.plan import Plan

_FOR_VERIFY = ("policy", "rootfs", "image", "entrypoint", "environment", "user", "workdir")


def require_verify(options: Mapping[str, Any]) -> None:
    """Raise a usage error if options say how to run a workload and none is run, or do not fit together."""
    from thinbox.cli.tenant import require_options_that_fit

    given = [name for name in _FOR_VERIFY if options[name] not in (None, ())]
    if given and not options["verify"]:
        word = "env" if given[0] == "environment" else given[0]
        raise click.UsageError(f"--{word} goes with --verify.", click.get_current_context())
    require_options_that_fit(options)


def verify(
    made: "Plan",
    runs: Sequence[Mapping[str, Any]],
    machine: "tuple[KernelSpec, int, str, str]",
    options: Mapping[str, Any],
    *,
    quiet: bool,
) -> bool:
    """Run each recorded workload under `made` and say what came of it; return whether the plan holds for all.

    `machine` is kernel, memory in MiB, words for the kernel's command line, and the level of the CPU.
    """
    from thinbox.boot.params import BootParams
    from thinbox.boot.ready import prepare
    from thinbox.cli.tenant import load_tenant_image, plan_tenant
    from thinbox.planning.verify import verify_plan
    from thinbox.session.session import RunOptions

    wanted = [_as_recorded(options, run["command"]) for run in runs]
    policies = [_policy_of(run["policy"], options["policy"]) for run in runs]
    progress = ProgressLine(quiet=quiet)
    holds = True
    try:
        image = load_tenant_image(wanted[0], progress)
        guest = prepare(machine[0], BootParams(machine[1], machine[2], cpu=machine[3]), progress.say)
        for run, asked, policy in zip(runs, wanted, policies, strict=True):
            tenant = plan_tenant(image, asked, None)
            how = RunOptions(
                policy=policy,
                rootfs=options["rootfs"],
                image=image,
                user=tenant.user,
                environment=tenant.environment,
                workdir=tenant.workdir,
                progress=progress.say,
            )
            check = verify_plan(guest, made, tenant.command, run["exit_code"], how)
            progress.clear()
            click.echo(check.render(), err=True)
            holds &= check.holds
    finally:
        progress.clear()
    return holds


def _policy_of(recorded: str, given: str | None) -> str:
    """Return what names the policy of a run, by which its calls are isolated again.

    Raises:
        InputError: `given`, --policy, is another, or there is none and the record's word does not suffice.
    """
    from thinbox.session.session import choose_policy

    if recorded == "none":
        recorded = "sci"
    if given is not None:
        if choose_policy(given).name != recorded:
            raise InputError(f"the run was recorded under policy {recorded}, not {given}; give that, or no --policy")
        return given
    try:
        choose_policy(recorded)
    except InputError as error:
        raise InputError(
            f"the run was recorded under policy {recorded}, which is known by its file or module only: "
            "give --policy profile:FILE, or package.module:Name, as for run"
        ) from error
    return recorded


def _as_recorded(options: Mapping[str, Any], command: Sequence[str]) -> dict[str, Any]:
    """Return the options with which `thinbox run` starts exactly the words of `command`, an image's entrypoint
    among them.

    Raises:
        InputError: an --entrypoint is given, and the words do not begin with it.
    """
    from thinbox.cli.tenant import parse_entrypoint

    asked = {**options, "command": tuple(command)}
    words = parse_entrypoint(options["entrypoint"])
    if words is None or not options["image"]:
        return asked | ({"entrypoint": ""} if options["image"] else {})
    if tuple(command[: len(words)]) != words:
        raise InputError(f"the recorded command begins with {command[0]!r}, not with what --entrypoint says")
    return asked | {"entrypoint": ""}
