"""CPU profiles: the figures of one CPU, each an interval with its source, and the geometry of its TLBs.

Why it exists: a cost without the figures it stands on cannot be checked. Profiles are data
(`data/cpus/*.toml`); `thinbox cost --calibrate` writes one of the host.

Rules of this file:
- A figure without a source, or with low above high, is refused.
- `cited` means that the source was read and says so; everything else is `assumed`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thinbox.cost import tlb
from thinbox.errors import InputError
from thinbox.host.files import load_toml

SCHEMA = "thinbox.cpu/1"
FOLDER = Path(__file__).parent.parent / "data" / "cpus"
SOFTWARE = Path(__file__).parent.parent / "data" / "software.toml"
NAMES = (
    "frequency_ghz",
    "cr3_keep",
    "cr3_flush",
    "fault_round_trip",
    "syscall_round_trip",
    "invlpg",
    "flush_full",
    "walk_load",
    "l2_hit",
)
"""Figures every profile has: cycles, except the first. `walk_load` is one page-table entry of a walk."""
SOFTWARE_NAMES = ("pti_trampoline", "enter_leave", "grant", "forget", "table_page", "asi_exit")
STRUCTURES = ("i4k", "i2m", "d4k", "d2m", "d1g", "second", "second_1g", "pde", "pdpte", "pml4e")
STATUS = ("cited", "assumed", "measured", "inferred")


@dataclass(frozen=True, slots=True)
class Figure:
    """An interval, and where it comes from; `status` is one of `STATUS`."""

    low: float
    high: float
    status: str
    source: str


@dataclass(frozen=True, slots=True)
class Structure:
    """One TLB or paging-structure cache: `entries` in sets of `ways`."""

    entries: int
    ways: int
    status: str
    source: str


MOST_ENTRIES = 1 << 16
"""Of one structure; those that are described have 2,048 at most. The model looks at every way."""


@dataclass(frozen=True, slots=True)
class CpuProfile:
    """One CPU. `unified_second`: one second-level TLB for code and data; `first_for_all_sizes`: the first level
    holds pages of every size together."""

    name: str
    title: str
    meltdown: bool
    pcid: bool
    invpcid: bool
    unified_second: bool
    first_for_all_sizes: bool
    note: str
    figures: dict[str, Figure]
    structures: dict[str, Structure]

    def geometry(self) -> np.ndarray:
        """Return (sets, ways, own or shared number) of each structure of `tlb`, shape (11, 3)."""
        second_i = "second" if self.unified_second else "second_i"
        order = ("i4k", "i2m", "d4k", "d2m", "d1g", second_i, "second", "second_1g", "pde", "pdpte", "pml4e")
        alias = list(range(tlb.STRUCTURES))
        if self.unified_second:
            alias[tlb.SECOND_I] = tlb.SECOND_D
        if self.first_for_all_sizes:
            alias[tlb.I2M] = tlb.I4K
            alias[tlb.D2M] = alias[tlb.D1G] = tlb.D4K
        rows = [
            (self.structures[name].entries // self.structures[name].ways, self.structures[name].ways, alias[i])
            for i, name in enumerate(order)
        ]
        return np.array(rows, dtype=np.int64)


def new_state(geometry: np.ndarray) -> np.ndarray:
    """Return an empty TLB of `geometry`, as `tlb` wants it."""
    head = np.zeros((tlb.STRUCTURES, tlb.GEOMETRY_COLUMNS), dtype=np.int64)
    at = tlb.ENTRIES
    for i, (sets, ways, alias) in enumerate(geometry.tolist()):
        head[i] = (at, sets, ways, alias)
        at += 2 * sets * ways
    state = np.zeros(at, dtype=np.int64)
    state[: tlb.HEAD] = head.ravel()
    state[tlb.ENTRIES :] = -1
    return state


def _figure(place: str, value: Any) -> Figure:
    try:
        figure = Figure(float(value["low"]), float(value["high"]), str(value["status"]), str(value["source"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{place}: a figure needs low, high, status and source") from error
    if not 0 <= figure.low <= figure.high or figure.status not in STATUS or not figure.source.strip():
        raise InputError(
            f"{place}: low must not exceed high, status be one of {', '.join(STATUS)}, source not be empty"
        )
    return figure


def _figures(place: str, table: Any, names: tuple[str, ...]) -> dict[str, Figure]:
    if not isinstance(table, dict) or missing(table, names):
        absent = names if not isinstance(table, dict) else missing(table, names)
        raise InputError(f"{place} lacks the figures {', '.join(absent)}")
    return {name: _figure(f"{place}, {name}", table[name]) for name in names}


def missing(table: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    """Return the names that `table` lacks."""
    return [name for name in names if name not in table]


def _structure(place: str, value: Any) -> Structure:
    try:
        found = Structure(int(value["entries"]), int(value["ways"]), str(value["status"]), str(value["source"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{place}: a structure needs entries, ways, status and source") from error
    if found.entries > MOST_ENTRIES:
        raise InputError(f"{place}: no TLB has more than {MOST_ENTRIES} entries")
    sets = found.entries // found.ways if found.ways > 0 else 0
    if sets * found.ways != found.entries or sets < 1 or sets & (sets - 1):
        raise InputError(f"{place}: entries must be a power of two times ways")
    return found


def load_profile(path: Path) -> CpuProfile:
    """Read one profile; `InputError` names what is wrong with it."""
    data = load_toml(path)
    if data.get("schema") != SCHEMA:
        raise InputError(f"{path} has schema {data.get('schema')!r}, wanted {SCHEMA!r}")
    structures = data.get("tlb")
    names = (*STRUCTURES, *(() if data.get("unified_second") else ("second_i",)))
    if not isinstance(structures, dict) or missing(structures, names):
        raise InputError(f"{path} must have the TLBs {', '.join(names)}")
    try:
        return CpuProfile(
            name=str(data["name"]),
            title=str(data["title"]),
            meltdown=bool(data["meltdown"]),
            pcid=bool(data["pcid"]),
            invpcid=bool(data["invpcid"]),
            unified_second=bool(data["unified_second"]),
            first_for_all_sizes=bool(data["first_for_all_sizes"]),
            note=str(data["note"]),
            figures=_figures(str(path), data.get("figures"), NAMES),
            structures={name: _structure(f"{path}, {name}", structures[name]) for name in names},
        )
    except KeyError as error:
        raise InputError(f"{path} lacks {error}") from error


def load_software() -> dict[str, Figure]:
    """Return what the isolating code itself costs."""
    return _figures(str(SOFTWARE), load_toml(SOFTWARE).get("figures"), SOFTWARE_NAMES)


def cpu_names() -> list[str]:
    """Names of the profiles that come with thinbox, Intel first, each maker's oldest first."""
    order = ("skylake-server", "ice-lake-server", "alder-lake", "zen-2", "zen-3", "zen-4")
    found = sorted(path.stem for path in FOLDER.glob("*.toml"))
    return [name for name in order if name in found] + [name for name in found if name not in order]


def find_profile(name: str) -> CpuProfile:
    """Return a profile by name, or of a TOML file by path."""
    path = Path(name)
    if path.suffix == ".toml":
        return load_profile(path)
    if name not in cpu_names():
        raise InputError(
            f"there is no CPU profile {name!r}; choose from {', '.join(cpu_names())}, or give a .toml file"
        )
    return load_profile(FOLDER / f"{name}.toml")
