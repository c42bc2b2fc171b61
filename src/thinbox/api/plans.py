"""Plans and exports for the public API: from results to a plan, from a plan to what container engines read."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from thinbox.errors import InputError
from thinbox.planning.exports import add_export, find_export
from thinbox.planning.filters import make_filter
from thinbox.planning.runtime_calls import find_runtimes

if TYPE_CHECKING:
    from thinbox.api.results import Result
    from thinbox.planning.filters import Filter
    from thinbox.sandbox.plan import Plan


def make_plan(results: "Sequence[Result]", name: str = "workload", *, strict: bool = False) -> "Plan":
    """Return the plan of a workload from its results, as `thinbox plan` makes it: what each call may do.

    `strict`: what was never isolated is refused, and a call that was not seen kills.
    """
    from thinbox.planning.evidence import gather_evidence
    from thinbox.planning.make_plan import PlanOptions
    from thinbox.planning.make_plan import make_plan as make

    if not results:
        raise InputError("a plan is made of at least one result")
    return make(gather_evidence([result.to_json() for result in results]), PlanOptions(name, strict=strict))


def export(plan: "Plan", kind: str, *, runtimes: Sequence[str] = (), steady_only: bool = False) -> bytes:
    """Return `plan` in the language `kind`: oci, docker, systemd, spo, bpf, gvisor, one added by `exporter`, or
    `package.module:function`.

    `runtimes` are whose own calls it allows as well (docker, podman, runc, crun, systemd, exec; none: only the plan's).
    """
    render = find_export(kind)
    return render(make_filter(plan, find_runtimes(tuple(runtimes) or ("none",)), steady_only=steady_only))


def exporter(name: str) -> "Callable[[Callable[[Filter], bytes]], Callable[[Filter], bytes]]":
    """Register the decorated function as `--export NAME=FILE` and for `export`: it gets a filter and returns bytes.

    Raises:
        InputError: the name is taken.
    """

    def add(render: "Callable[[Filter], bytes]") -> "Callable[[Filter], bytes]":
        add_export(name, render)
        return render

    return add


__all__ = ["export", "exporter", "make_plan"]
