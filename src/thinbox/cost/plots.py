"""Plots of a workload's cost: against faults per call, per CPU, per mode. matplotlib is imported here only, late."""

from pathlib import Path
from typing import Any

from thinbox.cost.model import ModeCost
from thinbox.errors import InputError


def write_plots(costs: list[ModeCost], faults: Any, folder: Path) -> list[Path]:
    """Write `faults.svg` (cost against faults), `cpus.svg` and `modes.svg`; return their paths."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise InputError("--plot needs matplotlib; install it with: pip install 'thinbox[plot]'") from error
    mpl.use("svg")
    # The same bytes every time: element names from a fixed salt, no date.
    mpl.rcParams["svg.hashsalt"] = "thinbox"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shown = [cost for cost in costs if cost.mode.name != "none"]
        return [
            _against_faults(shown, faults, folder / "faults.svg"),
            _bars(shown, "cpu", folder / "cpus.svg"),
            _bars(shown, "mode", folder / "modes.svg"),
        ]
    except OSError as error:
        raise InputError(f"cannot write plots to {folder}: {error.strerror}") from error


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, metadata={"Date": None})
    return path


def _against_faults(costs: list[ModeCost], faults: Any, path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for cost in costs:
        if cost.mode.name != "sci-pcid" and not (cost.mode.name == "sci" and not cost.cpu.pcid):
            continue
        axes.plot(faults, cost.per_call.mean(axis=1), ".", markersize=2, label=f"{cost.cpu.name}, {cost.mode.name}")
    axes.set(
        xlabel="pages granted in the call",
        ylabel="cycles added (middle of the interval)",
        xscale="symlog",
        yscale="log",
    )
    axes.legend(markerscale=6)
    return _save(figure, path)


def _bars(costs: list[ModeCost], by: str, path: Path) -> Path:
    from matplotlib.figure import Figure

    outer = list(dict.fromkeys(getattr(cost, by).name for cost in costs))
    figure = Figure(figsize=(9, 2.2 * len(outer)), layout="constrained")
    for i, name in enumerate(outer):
        rows = [cost for cost in costs if getattr(cost, by).name == name]
        labels = [cost.mode.name if by == "cpu" else cost.cpu.name for cost in rows]
        lows = [max(1.0, cost.median.low) for cost in rows]
        widths = [max(1.0, cost.median.high) - low for cost, low in zip(rows, lows, strict=True)]
        axes = figure.add_subplot(len(outer), 1, i + 1)
        axes.barh(labels, widths, left=lows)
        axes.set(title=name, xscale="log", xlabel="cycles added to the median call, low to high")
        axes.invert_yaxis()
    return _save(figure, path)
