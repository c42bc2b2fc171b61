"""What of a kernel can be used, and what cannot: everything that is missing, at once, with what it disables.

Why it exists: a kernel of one's own lacks several things, and a refusal names the first.

Rules of this file: looks at the file alone, runs nothing; asks what the features themselves ask (`probe_…`), so that
what is said here is what happens later. What is measured on a running kernel is not known here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from thinbox.errors import KernelImageError
from thinbox.image.btf import TypeTable, empty_types
from thinbox.image.facts import find_banner, has_data_symbols, read_call_table
from thinbox.image.kallsyms import parse_symbols
from thinbox.image.types import find_types
from thinbox.kernel import cred as credentials
from thinbox.kernel import (
    current,
    entry,
    generated_code,
    id_maps,
    memcg,
    module,
    mount,
    open_files,
    page,
    pipe,
    pti,
    reclaim,
    sanitizer,
    sealed,
    slab,
    sock,
    softirq,
    start,
    task,
    text,
    unwind,
    user_pages,
    watched,
)
from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.kernel import KernelImage
    from thinbox.image.symbols import SymbolTable

USES = ("boot", "isolation", "views", "guard", "stack policies", "attacks")
"""What a kernel can be used for."""
_ALL_BUT_BOOT = USES[1:]


@dataclass(frozen=True, slots=True)
class Feature:
    """Something of a kernel's that is asked for: by which probe, for which uses."""

    name: str
    probe: Callable[[Probe], object]
    uses: tuple[str, ...]
    disables: str
    is_text: bool = False
    """Whether it asks for functions alone, which a kernel without CONFIG_KALLSYMS_ALL or types names as well."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of it: the shapes found, or all that is missing, and what to do about it."""

    feature: str
    uses: tuple[str, ...]
    shapes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    disables: str = ""
    advice: str = ""

    @property
    def is_fine(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings of one kernel; `release` is "" if it has no banner."""

    release: str
    findings: tuple[Finding, ...]

    def is_usable_for(self, use: str) -> bool:
        """Whether nothing that `use` needs is missing."""
        return all(found.is_fine for found in self.findings if use in found.uses)


def _probe_pti(probe: Probe) -> None:
    probe.symbol(pti.WITNESS)
    probe.symbol("entry_SYSCALL_64")


FEATURES = (
    Feature("what a guest starts on", start.probe_start, USES, start.DISABLES, is_text=True),
    Feature("running task", current.probe_current, USES, current.DISABLES),
    Feature("page-table isolation", _probe_pti, USES, "no guest can be used"),
    Feature("entry code", entry.probe_entry, USES, entry.DISABLES),
    Feature("dispatch of calls", entry.probe_dispatchers, _ALL_BUT_BOOT, "no call can be isolated", is_text=True),
    Feature("patching of text", text.probe_text_patchers, _ALL_BUT_BOOT, "no policy can judge", is_text=True),
    Feature("reach beyond calls", watched.probe_watched, _ALL_BUT_BOOT, watched.DISABLES),
    Feature("modules", module.probe_module, _ALL_BUT_BOOT, module.DISABLES),
    Feature("generated code", generated_code.probe_generated_code, _ALL_BUT_BOOT, generated_code.DISABLES),
    Feature("pages", page.probe_page, ("views",), page.DISABLES),
    Feature("slabs", slab.probe_slab, ("views",), slab.DISABLES),
    Feature("memory cgroups", memcg.probe_memcg, ("views",), memcg.DISABLES),
    Feature("mounts", mount.probe_mount, ("views",), mount.DISABLES),
    Feature("open files", open_files.probe_files, ("views",), open_files.DISABLES),
    Feature("list of tasks", task.probe_task, ("views",), task.DISABLES),
    Feature("sealed image", sealed.probe_sealed, ("views",), sealed.DISABLES),
    Feature("pages for all to map", user_pages.probe_user_pages, ("views",), user_pages.DISABLES),
    Feature("sockets", sock.probe_sock, ("views",), sock.DISABLES),
    Feature("soft interrupts", softirq.probe_softirq, ("views",), softirq.DISABLES),
    Feature("memory nodes", reclaim.probe_reclaim, ("views",), reclaim.DISABLES),
    Feature("address sanitizer", sanitizer.probe_sanitizer, ("views",), sanitizer.DISABLES, is_text=True),
    Feature("credentials", credentials.probe_cred, ("views", "guard"), credentials.DISABLES),
    Feature("user namespaces", id_maps.probe_id_maps, ("guard",), id_maps.DISABLES),
    Feature("ORC unwind tables", unwind.probe_unwind, ("stack policies",), unwind.DISABLES),
    Feature("pipes", pipe.probe_pipe, ("attacks",), pipe.DISABLES),
)

_OPTIONS = (
    (("orc", "ORC"), "CONFIG_UNWINDER_ORC=y"),
    (("root_mem_cgroup", "memory_cgrp_id"), "CONFIG_MEMCG=y"),
    (("security_socket_post_create",), "CONFIG_SECURITY_NETWORK=y"),
    (("vmemmap_base",), "CONFIG_SPARSEMEM_VMEMMAP=y and CONFIG_RANDOMIZE_MEMORY=y"),
    (("allocation profiling",), "CONFIG_MEM_ALLOC_PROFILING=n"),
    ((sanitizer.LACKING,), "CONFIG_KASAN=n"),
    *start.PARTS,
)
"""What says, among the names that are missing, which option is."""
_UNKNOWN = "this kernel keeps it in a way thinbox does not know; a newer thinbox may"
NO_TYPES = (
    "build it with CONFIG_DEBUG_INFO_BTF=y, or give the vmlinux of its build, with BTF or DWARF "
    "(CONFIG_DEBUG_INFO_DWARF5=y): --types FILE"
)
NO_SYMBOLS = (
    "build it with CONFIG_KALLSYMS=y and CONFIG_KALLSYMS_ALL=y, or give the vmlinux or System.map of its build: "
    "--symbols FILE"
)
NEITHER = (
    "build it with CONFIG_KALLSYMS_ALL=y and CONFIG_DEBUG_INFO_BTF=y, or give its vmlinux: --symbols FILE --types FILE"
)
_NO_BANNER = "give a Linux kernel"
_EVERYTHING = "nothing can be done with it"
_BLIND = f"{_EVERYTHING}, and what else it lacks cannot be told"


@dataclass(frozen=True, slots=True)
class Beside:
    """What was read of files beside a kernel: its symbols and types, or why there are none; all None where its own are
    meant."""

    symbols: "SymbolTable | None" = None
    types: TypeTable | None = None
    symbols_error: str | None = None
    types_error: str | None = None


def diagnose(
    image: "KernelImage", beside: Beside | None = None, progress: Callable[[str], None] | None = None
) -> Diagnosis:
    """Look at an unpacked kernel; what is `beside` it is used in place of its own. Of its types, DWARF is read, too."""
    beside = beside or Beside()
    findings: list[Finding] = []
    symbols = beside.symbols
    if symbols is not None:
        findings.append(Finding("symbols", USES, ("given",)))
    else:
        wanted = Finding("symbols", USES, disables=_BLIND, advice=NO_SYMBOLS)
        symbols = _try(lambda: _read_symbols(image, beside), findings, wanted)
    has_data = symbols is not None and has_data_symbols(symbols)
    if symbols is not None and not has_data:
        findings.append(
            Finding("symbols of data", USES, missing=("CONFIG_KALLSYMS_ALL",), disables=_EVERYTHING, advice=NO_SYMBOLS)
        )
    types = beside.types
    if types is not None:
        findings.append(Finding("types", USES, ("from a file",)))
    else:
        wanted = Finding("types", USES, disables=_EVERYTHING, advice=NO_TYPES)
        known = symbols
        types = _try(lambda: _read_own_types(image, known, beside, progress), findings, wanted)
    release = _try_banner(image, symbols, findings)
    if symbols is not None:
        table = symbols
        wanted = Finding("table of calls", USES, disables=_EVERYTHING, advice=NO_SYMBOLS if not has_data else _UNKNOWN)
        _try(lambda: read_call_table(image, table), findings, wanted)
        facts = SimpleNamespace(symbols=symbols, types=types if types is not None else empty_types())
        has = _Has(data=has_data, types=types is not None)
        findings += [_ask(facts, feature, has) for feature in FEATURES]
    return Diagnosis(release, tuple(findings))


def _read_symbols(image: "KernelImage", beside: Beside) -> "SymbolTable":
    if beside.symbols_error is not None:
        raise KernelImageError(beside.symbols_error)
    return parse_symbols(image)


def _read_own_types(
    image: "KernelImage", symbols: "SymbolTable | None", beside: Beside, progress: Callable[[str], None] | None
) -> TypeTable:
    if beside.types_error is not None:
        raise KernelImageError(beside.types_error)
    return TypeTable(find_types(image, symbols, progress)[0])


def _try(read: Callable[[], Any], findings: list[Finding], wanted: Finding) -> Any:
    """Return what `read` returns, None if the kernel has nothing of the kind, and note which."""
    try:
        found = read()
    except KernelImageError as error:
        findings.append(
            Finding(
                wanted.feature,
                wanted.uses,
                (),
                (f"{wanted.feature} ({str(error).partition(';')[0]})",),
                wanted.disables,
                wanted.advice,
            )
        )
        return None
    findings.append(Finding(wanted.feature, wanted.uses, wanted.shapes))
    return found


def _try_banner(image: "KernelImage", symbols: "SymbolTable | None", findings: list[Finding]) -> str:
    found = _try(
        lambda: find_banner(image, symbols), findings, Finding("banner", USES, (), (), _EVERYTHING, _NO_BANNER)
    )
    return "" if found is None else str(found[0])


@dataclass(frozen=True, slots=True)
class _Has:
    """Whether a kernel has the symbols of its data, and types."""

    data: bool
    types: bool


def _ask(facts: SimpleNamespace, feature: Feature, has: _Has) -> Finding:
    probe = Probe(cast("Any", facts), feature.name, feature.disables)
    try:
        feature.probe(probe)
    except KeyError as error:  # what a probe asks of shapes that contradict one another
        probe.lacks(str(error.args[0]) if error.args else "what it asks for")
    if not probe.missing:
        return Finding(feature.name, feature.uses, tuple(probe.shapes))
    missing = tuple(probe.missing)
    if not has.types and not feature.is_text:
        # What types would say is not named one by one.
        missing = tuple(name for name in missing if "." not in name and not name.startswith("struct ")) or ("types",)
    return Finding(feature.name, feature.uses, (), missing, feature.disables, _advise(missing, has, feature))


def _advise(missing: tuple[str, ...], has: _Has, feature: Feature) -> str:
    if not has.data and not feature.is_text:
        return NEITHER if not has.types else NO_SYMBOLS
    if not has.types and not feature.is_text:
        return NO_TYPES
    text_of = " ".join(missing)
    options = [option for words, option in _OPTIONS if any(word in text_of for word in words)]
    return f"build it with {' and '.join(options)}" if options else _UNKNOWN
