"""docs/cost.md: the answer to the review of the proposal, made from one traced run; every sentence with its figure.

Why it exists: the objections of 2019 were questions about numbers. `thinbox cost --page FILE RUN.json` writes the
answers; nobody edits them.
"""

from thinbox.cost.model import Interval, ModeCost, Model
from thinbox.cost.modes import MODES
from thinbox.cost.peers import break_even, reference_cpu
from thinbox.cost.published import measurements
from thinbox.report.cost_table import break_even_json, per_fault, rate_for, span, surface_json

_SHARES = (0.01, 0.05, 0.20)


def render_page(model: Model, costs: list[ModeCost]) -> str:
    """Return the page as Markdown; `costs` should have every mode on every CPU."""
    by = {(cost.cpu.name, cost.mode.name): cost for cost in costs}
    cpus = list(dict.fromkeys(cost.cpu.name for cost in costs))
    parts = [
        _head(model),
        _over_pti(by, cpus),
        _over_nothing(by, cpus),
        _pcid(by, cpus),
        _prepopulation(model, by, cpus),
        _rates(by, cpus),
        _gvisor(model, costs),
        _fault(model, costs),
        _modes(),
        _validation(),
        _limits(model),
    ]
    return "\n".join(part for part in parts if part)


def _head(model: Model) -> str:
    calls = len(model.workload.names)
    how = "misses replayed through the TLB model" if model.workload.trace else "misses bounded, no trace"
    return f"""# What system call isolation costs

Read here what isolation would add to a call on six CPUs, by cause, and against gVisor's emulation. To have the same for a run of
your own, trace it (it takes some five times as long) and ask [`thinbox cost`](commands/thinbox-cost.md):

    thinbox run --events --json run.json -- ls -l /
    thinbox cost run.json

`thinbox cost --calibrate` measures your own CPU.

Made by `thinbox cost --page docs/cost.md RUN.json` from a run of {calls:,} calls ({how}), made by
`thinbox run --events --json RUN.json -- sh -c "$(cat src/thinbox/data/script.sh)"`. Do not edit.

All figures are modelled: they are events counted in the emulator, times published or assumed cycles of a CPU
(`src/thinbox/data/cpus`). Intervals run from the lowest to the highest figures. Cycles are those added to a call.
"""


def _median(cost: ModeCost) -> str:
    return f"{span(cost.median)} cycles at the median call, {span(cost.total.scaled(1 / max(1, len(cost.per_call))))} at the mean"


def _less(one: Interval, other: Interval) -> Interval:
    """What `one` adds to `other`, figures of both alike: low less low, high less high."""
    low, high = one.low - other.low, one.high - other.high
    return Interval(min(low, high), max(low, high))


def _over_pti(by: dict[tuple[str, str], ModeCost], cpus: list[str]) -> str:
    lines = ["## What SCI adds over PTI, where the CPU needs it\n"]
    for cpu in cpus:
        pti = by.get((cpu, "pti"))
        if pti is None or not pti.cpu.meltdown:
            continue
        lines.append(f"- On {pti.cpu.title}, PTI alone adds {_median(pti)}.")
        for name in ("sci", "sci-prepopulated"):
            cost = by.get((cpu, name))
            if cost:
                lines.append(
                    f"- {cost.mode.title} adds {span(_less(cost.median, pti.median))} cycles to that at the median call."
                )
    return "\n".join(lines) + "\n"


def _over_nothing(by: dict[tuple[str, str], ModeCost], cpus: list[str]) -> str:
    lines = [
        "## What it adds over nothing, where there is no PTI\n",
        "| CPU | SCI as proposed | pre-populated | grants kept |",
        "|---|---:|---:|---:|",
    ]
    for cpu in cpus:
        row = [by.get((cpu, name)) for name in ("sci", "sci-prepopulated", "sci-keep")]
        if row[0] is not None and not row[0].cpu.meltdown:
            lines.append(
                f"| {row[0].cpu.title} | " + " | ".join(span(cost.median) if cost else "" for cost in row) + " |"
            )
    return "\n".join(lines) + "\n\nCycles at the median call.\n"


def _pcid(by: dict[tuple[str, str], ModeCost], cpus: list[str]) -> str:
    lines = ["## What PCIDs save\n"]
    for cpu in cpus:
        with_them, without = by.get((cpu, "sci-pcid")), by.get((cpu, "sci-nopcid"))
        if with_them and without:
            saved = _less(without.median, with_them.median)
            share = f"{100 * saved.low / without.median.low:.0f} to {100 * saved.high / without.median.high:.0f} %"
            lines.append(
                f"- {with_them.cpu.title}: {span(saved)} of {span(without.median)} cycles at the median call, {share}."
            )
    lines.append(
        "\nThat is little, for the faults cost more than the flushes. It is much once the faults are gone (next section)."
    )
    return "\n".join(lines) + "\n"


def _prepopulation(model: Model, by: dict[tuple[str, str], ModeCost], cpus: list[str]) -> str:
    surface = surface_json(model)
    lines = ["## What pre-population saves\n"]
    if surface:
        before = (
            sorted(model.workload.faults.tolist())[len(model.workload.faults) // 2] if len(model.workload.faults) else 0
        )
        lines.append(
            f"- Faults at the median call fall from {before:,} to {surface['faults_median']:.0f} "
            f"(mean {surface['faults_mean']:.1f}); wanted: at most 2."
        )
        lines.append(
            f"- For that, the median call has {surface['code_pages']:.0f} code pages and {surface['data_pages']:.0f} data pages "
            "mapped that it does not touch: the surface it adds."
        )
        lines.append("- Known pages are those that another call touched. The profile here is of the same workload.")
    for cpu in cpus:
        plain, spared = by.get((cpu, "sci")), by.get((cpu, "sci-prepopulated"))
        if plain and spared:
            factor = Interval(
                plain.median.low / max(1.0, spared.median.low), plain.median.high / max(1.0, spared.median.high)
            )
            low, high = sorted((factor.low, factor.high))
            lines.append(
                f"- {plain.cpu.title}: from {span(plain.median)} to {span(spared.median)} cycles at the median call, {low:.0f} to {high:.0f} times less."
            )
    return "\n".join(lines) + "\n"


def _rates(by: dict[tuple[str, str], ModeCost], cpus: list[str]) -> str:
    heads = " | ".join(f"more than {100 * share:.0f} %" for share in _SHARES)
    lines = [
        "## From how many calls a second it costs more than a share of a CPU\n",
        f"| CPU | mode | {heads} |",
        "|---|---|" + "---:|" * len(_SHARES),
    ]
    for cpu in cpus:
        for name in ("pti", "sci", "sci-prepopulated", "asi"):
            cost = by.get((cpu, name))
            if cost and (name != "pti" or cost.cpu.meltdown):
                cells = " | ".join(span(rate_for(cost, share)) for share in _SHARES)
                lines.append(f"| {cost.cpu.title} | {name} | {cells} |")
    return (
        "\n".join(lines)
        + "\n\nThese are calls as this workload mixes them (the mean call). Below the low end isolation never costs that much, above the high end always.\n"
    )


def _gvisor(model: Model, costs: list[ModeCost]) -> str:
    rows = break_even_json(model, costs)
    if not rows:
        return ""
    lines = [
        "## When it is cheaper than user-space emulation\n",
        f"Against gVisor as measured (`src/thinbox/data/gvisor.toml`), on {rows[0]['cpu']}; ns added to a call.\n",
        "| call | mode | isolation adds | gVisor ptrace adds | gVisor systrap adds | cheaper than ptrace | than systrap |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    for row in rows:
        if row["mode"] in ("sci", "sci-prepopulated"):
            theirs = [span(Interval(**row["gvisor_ns"][name])) for name in ("ptrace", "systrap")]
            who = [
                {"isolation": "yes", "gvisor": "no", "open": "open"}[row["cheaper"][name]]
                for name in ("ptrace", "systrap")
            ]
            lines.append(
                f"| {row['call']} | {row['mode']} | {span(Interval(**row['added_ns']))} | {' | '.join(theirs)} | {' | '.join(who)} |"
            )
    return "\n".join(lines) + "\n"


def _fault(model: Model, costs: list[ModeCost]) -> str:
    cost = next((c for c in costs if c.cpu.name == reference_cpu() and c.mode.name == "sci-pcid"), None)
    if cost is None:
        return ""
    one = per_fault(model, cost)
    lines = [f"A granted fault costs {span(one)} cycles there, besides misses. By faults alone:\n"]
    for row in break_even(cost, model.workload.names, one):
        faults = row.faults["systrap"]
        lines.append(
            f"- {row.call}: isolation is cheaper than systrap below {span(Interval(faults.low, faults.low))} faults in "
            f"any case, dearer above {span(Interval(faults.high, faults.high))}."
        )
    return "\n".join(lines) + "\n"


def _modes() -> str:
    lines = ["## What each mode gives away\n", "| mode | what it is | what it gives away |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {mode.name} | {mode.title} | {mode.gives_away} |" for mode in MODES)]) + "\n"


def _validation() -> str:
    lines = [
        "## What the model was held against\n",
        "`tests/cost/test_validation.py` says which of these the model meets and which it does not.\n",
        "| measurement | measured | source |",
        "|---|---:|---|",
    ]
    for row in measurements().values():
        measured = (
            f"{row.measured.low:g}"
            if row.measured.low == row.measured.high
            else f"{row.measured.low:g} to {row.measured.high:g}"
        )
        lines.append(f"| {row.name} | {measured} {row.quantity} | {row.source} |")
    return (
        "\n".join(lines)
        + """

It does not meet the dummy call (18 faults for the least call on 6.1), printk (72 on 6.1), and Gregg's 2 % with PCIDs (it meets
that without them). No published figure was found for a fault taken in ring 0, for CR3 writes of Ice Lake and AMD, or for any call
under SCI.
"""
    )


def _limits(model: Model) -> str:
    lost = model.workload.trace.lost if model.workload.trace else 0
    return f"""## What the model leaves out

- Data is traced by frame, code by page. Touches that repeat within a filter of 16 slots are counted, not replayed. Words lost: {lost:,}.
- A long trace is replayed in windows, one in eight; `--exact` replays all of it. CR3 writes and faults are never sampled.
- Caches, branch predictors, SMT siblings, IPIs of other CPUs and the mitigations of other bugs cost nothing here.
- A miss costs its walk in full, and nothing hides it. Its low figure is an entry in the first-level cache.
- The record counts the kernel's INVLPGs and flushes. They are alike in every mode.
- SCI without PTI must give up global pages, for they would survive the switch. The model does so.
"""
