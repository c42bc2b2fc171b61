"""The horizontal attack profiles others published, and a workload's beside them.

Why it exists: a number alone says nothing, and a number from another method says little; so each figure
stands with its source, and the differences of method stand with the table.

Rules of this file: figures as published, never scaled.
"""

from dataclasses import dataclass

from thinbox.records.coverage import RunCoverage

_RERUN = (
    "nabla-containers/nabla-measurements, graph-functions.png of 2019-02-19 (commit a8acce6), read off the graph, "
    "mean of ten runs"
)
_FIRST = "the same repository, graph-functions.png of 2018-08-03 (commit 27564d6), read off the graph"


@dataclass(frozen=True, slots=True)
class PublishedHap:
    """Distinct host kernel functions one sandbox entered under one load; `functions` is rounded as read."""

    sandbox: str
    workload: str
    functions: int
    source: str


PUBLISHED = (
    PublishedHap("docker (runc)", "node-express", 500, _RERUN),
    PublishedHap("gVisor, ptrace", "node-express", 330, _RERUN),
    PublishedHap("Kata, QEMU", "node-express", 281, _RERUN),
    PublishedHap("Nabla", "node-express", 156, _RERUN),
    PublishedHap("docker (runc)", "node-express", 490, _FIRST),
    PublishedHap("gVisor, ptrace", "node-express", 370, _FIRST),
    PublishedHap("Kata, QEMU", "node-express", 266, _FIRST),
    PublishedHap("Nabla", "node-express", 157, _FIRST),
)
"""The notion: J. Bottomley, "Measuring the Horizontal Attack Profile of Nabla Containers", 2018,
https://blog.hansenpartnership.com/measuring-the-horizontal-attack-profile-of-nabla-containers/ . The method:
README.md, runtest.bash and filters/ of that repository."""

METHOD = """\
- Theirs counts what ftrace can see: functions compiled with a hook for it. The last column counts ours so; the one
  before has every symbol of text but `.cold` parts: assembly, thunks and `notrace` functions too.
- Theirs is a server under load for half a minute, start and end left out. Ours is a whole program, with `execve` and
  its exit, which alone enter several hundred functions.
- Theirs traces the container runtime's processes and kernel threads that work for them, page faults of user code
  included. Ours is what the tenant's system calls execute, from `do_syscall_64` to its return.
- Both leave interrupts out: theirs by filtering five handlers out of the trace, ours by the frame of each interrupt.
- Both miss what the compiler inlined. Kernels, configurations and workloads differ: the figures can be set side by
  side, not subtracted.
"""
"""What differs in method, as Markdown."""


def render_comparison(measured: dict[str, RunCoverage]) -> str:
    """Return a Markdown table of `measured` workloads (label to coverage) and the published figures, with notes.

    Preconditions: labels hold no `|`.
    """
    lines = ["| what ran | sandbox | functions entered | of those ftrace sees |", "|---|---|---:|---:|"]
    lines += [f"| {label} | none (thinbox) | {run.hap:,} | {run.traceable:,} |" for label, run in measured.items()]
    sources: list[str] = []
    for figure in PUBLISHED:
        if figure.source not in sources:
            sources.append(figure.source)
        mark = sources.index(figure.source) + 1
        lines.append(f"| {figure.workload} | {figure.sandbox} [{mark}] | | about {figure.functions} |")
    notes = [f"[{mark}] {source}" for mark, source in enumerate(sources, 1)]
    return "\n".join([*lines, "", *notes, "", "What differs in method:", "", METHOD])
