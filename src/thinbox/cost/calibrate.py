"""`thinbox cost --calibrate`: measures what can be measured on this host, and writes a profile of it.

Why it exists: profiles are published figures and guesses; a host's own are better, where it gives them.

Rules of this file:
- The probe is C (`data/probe.c`), built with the host's compiler: an interpreter's overhead would drown a fault.
- User code cannot write CR3 or take a fault in ring 0: such figures are inferred, and marked so.
- Ticks are the time-stamp counter's; where the core clock differs, "cycles" of the profile are ticks.
"""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from thinbox.cost.profiles import NAMES, SCHEMA, CpuProfile, Figure, find_profile
from thinbox.errors import InputError, MachineError

PROBE = Path(__file__).parent.parent / "data" / "probe.c"
_LIMIT_S = 120
_MEASURED = (
    "ticks_per_ns",
    "system_call",
    "page_fault",
    "switch_thread",
    "switch_process",
    "load_first_level",
    "load_second_level",
    "load_walk",
)


@dataclass(frozen=True, slots=True)
class HostMeasurement:
    """What the probe measured, in ticks (`ticks_per_ns` excepted), and the profile made of it."""

    ticks: dict[str, float]
    cpu: str
    virtual: bool
    profile: CpuProfile

    def lines(self) -> list[str]:
        """Return what was measured and what was inferred, for the terminal."""
        per_ns = self.ticks["ticks_per_ns"]
        out = [f"{self.cpu}{', virtual: walks go through two tables' if self.virtual else ''}; {per_ns:.2f} ticks a ns"]
        out += [f"measured  {n:18} {self.ticks[n]:9.1f} ticks  {self.ticks[n] / per_ns:9.1f} ns" for n in _MEASURED[1:]]
        for name in NAMES:
            figure = self.profile.figures[name]
            out.append(f"{figure.status:9} {name:18} {figure.low:9.1f} .. {figure.high:.1f}")
        return out


def measure_host() -> HostMeasurement:
    """Build and run the probe; `InputError` without a C compiler, `MachineError` when the probe fails."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        raise InputError("--calibrate needs a C compiler: apt install gcc")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "probe"
        try:
            command = [compiler, "-O2", "-pthread", "-o", str(program), str(PROBE)]
            subprocess.run(command, check=True, capture_output=True, timeout=_LIMIT_S)
            done = subprocess.run([str(program)], check=True, capture_output=True, text=True, timeout=_LIMIT_S)
        except (subprocess.SubprocessError, OSError) as error:
            raise MachineError(f"the probe failed: {error}") from error
    ticks = parse_probe(done.stdout)
    cpuinfo = Path("/proc/cpuinfo").read_text()
    fields = {
        key.strip(): value.strip()
        for key, _c, value in (line.partition(":") for line in cpuinfo.split("\n\n")[0].splitlines())
    }
    flags = set(fields.get("flags", "").split())
    meltdown = "cpu_meltdown" in fields.get("bugs", "").split()
    near = nearest(fields.get("vendor_id", ""), int(fields.get("cpu family", 0)), int(fields.get("model", 0)))
    profile = profile_of(ticks, find_profile(near), fields.get("model name", "unknown"), flags)
    profile = replace(profile, meltdown=meltdown)
    return HostMeasurement(ticks, fields.get("model name", "unknown"), "hypervisor" in flags, profile)


def parse_probe(text: str) -> dict[str, float]:
    """Return the probe's figures by name; `MachineError` if one is missing or not positive."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        name, _space, value = line.partition(" ")
        try:
            found[name] = float(value)
        except ValueError as error:
            raise MachineError(f"the probe printed {line!r}") from error
    absent = [name for name in _MEASURED if found.get(name, 0.0) <= 0]
    if absent:
        raise MachineError(f"the probe did not measure {', '.join(absent)}")
    return found


def nearest(vendor: str, family: int, model: int) -> str:
    """Return the profile whose TLB geometry is taken over: by family and model (CPUID leaf 1)."""
    if vendor == "AuthenticAMD":
        if family == 0x17:
            return "zen-2"
        return "zen-4" if family > 0x19 or model in range(0x10, 0x20) or model >= 0x60 else "zen-3"
    if model in (0x97, 0x9A, 0xB7, 0xBA, 0xBF):
        return "alder-lake"
    return "ice-lake-server" if model in (0x6A, 0x6C, 0x7D, 0x7E, 0x8F, 0xCF) else "skylake-server"


def profile_of(ticks: dict[str, float], near: CpuProfile, cpu: str, flags: set[str]) -> CpuProfile:
    """Return a profile with the measured figures in place of those of `near`."""
    figures = dict(near.figures)

    def put(name: str, low: float, high: float, status: str, source: str) -> None:
        figures[name] = Figure(round(max(0.0, min(low, high)), 1), round(max(low, high), 1), status, source)

    rate = ticks["ticks_per_ns"]
    figures["frequency_ghz"] = Figure(
        round(rate, 3), round(rate, 3), "measured", "time-stamp counter against CLOCK_MONOTONIC"
    )
    call, fault = ticks["system_call"], ticks["page_fault"]
    put(
        "syscall_round_trip",
        0.3 * call,
        call,
        "inferred",
        "getppid, of which the kernel's own work is part; low: three tenths",
    )
    put(
        "fault_round_trip", 0.3 * fault, fault, "inferred",
        "read fault on the zero page, of which the kernel's work is part; low: three tenths",
    )  # fmt: skip
    table = max(0.0, ticks["switch_process"] - ticks["switch_thread"])
    name = "cr3_keep" if "pcid" in flags else "cr3_flush"
    if table >= near.figures[name].low:
        why = "context switch between processes less between threads: CR3 write, bookkeeping, misses after it"
        put(name, near.figures[name].low, table, "inferred", why)
    else:
        lost = f"the switch between processes cost {table:.0f} ticks more than between threads; noise: {near.name}'s"
        figures[name] = replace(near.figures[name], source=lost)
    first, second, walk = (ticks[f"load_{name}"] for name in ("first_level", "second_level", "walk"))
    put(
        "l2_hit",
        0.5 * (second - first),
        second - first,
        "inferred",
        "chase through 400 pages less through 32; cache misses included",
    )
    put(
        "walk_load", max(1.0, (walk - second) / 4), max(1.0, walk - second), "inferred",
        "chase through 16,384 pages less through 400: one to four entries, and misses of the data itself",
    )  # fmt: skip
    return replace(
        near,
        name="host",
        title=f"this host: {cpu}",
        pcid="pcid" in flags,
        invpcid="invpcid" in flags,
        note=f"Written by thinbox cost --calibrate; TLB geometry of {near.name}.",
        figures=figures,
    )


def profile_text(measured: HostMeasurement) -> str:
    """Return the profile as TOML."""
    profile = measured.profile

    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    lines = [f"schema = {quoted(SCHEMA)}", f"name = {quoted(profile.name)}", f"title = {quoted(profile.title)}"]
    lines += [f"{name} = {str(getattr(profile, name)).lower()}" for name in ("meltdown", "pcid", "invpcid")]
    lines.append(f"unified_second = {str(profile.unified_second).lower()}")
    lines.append(f"first_for_all_sizes = {str(profile.first_for_all_sizes).lower()}")
    lines.append(f"note = {quoted(profile.note)}")
    for name, figure in profile.figures.items():
        lines += ["", f"[figures.{name}]", f"low = {figure.low}", f"high = {figure.high}"]
        lines += [f"status = {quoted(figure.status)}", f"source = {quoted(figure.source)}"]
    for name, structure in profile.structures.items():
        lines += ["", f"[tlb.{name}]", f"entries = {structure.entries}", f"ways = {structure.ways}"]
        lines += [f"status = {quoted(structure.status)}", f"source = {quoted(structure.source)}"]
    return "\n".join(lines) + "\n"
