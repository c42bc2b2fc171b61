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
from thinbox.image.btf import TypeTable, empty_types, locate_btf, parse_types
from thinbox.image.facts import find_banner, has_data_symbols, read_call_table
from thinbox.image.kallsyms import parse_symbols
from thinbox.kernel import cred as credentials
from thinbox.kernel import (
    current,
    entry,
    generated_code,
    memcg,
    module,
    mount,
    open_files,
    page,
    pipe,
    pti,
    reclaim,
    slab,
    sock,
    softirq,
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
    Feature("running task", current.probe_current, USES, current.DISABLES),
    Feature("page-table isolation", _probe_pti, USES, "no guest can be used"),
    Feature("entry code", entry.probe_entry, USES, entry.DISABLES),
    Feature("dispatch of calls", entry.probe_dispatchers, _ALL_BUT_BOOT, "no call can be isolated"),
    Feature("patching of text", text.probe_text_patchers, _ALL_BUT_BOOT, "no policy can judge"),
    Feature("reach beyond calls", watched.probe_watched, _ALL_BUT_BOOT, watched.DISABLES),
    Feature("modules", module.probe_module, _ALL_BUT_BOOT, module.DISABLES),
    Feature("generated code", generated_code.probe_generated_code, _ALL_BUT_BOOT, generated_code.DISABLES),
    Feature("pages", page.probe_page, ("views",), page.DISABLES),
    Feature("slabs", slab.probe_slab, ("views",), slab.DISABLES),
    Feature("memory cgroups", memcg.probe_memcg, ("views",), memcg.DISABLES),
    Feature("mounts", mount.probe_mount, ("views",), mount.DISABLES),
    Feature("open files", open_files.probe_files, ("views",), open_files.DISABLES),
    Feature("list of tasks", task.probe_task, ("views",), task.DISABLES),
    Feature("pages for all to map", user_pages.probe_user_pages, ("views",), user_pages.DISABLES),
    Feature("sockets", sock.probe_sock, ("views",), sock.DISABLES),
    Feature("soft interrupts", softirq.probe_softirq, ("views",), softirq.DISABLES),
    Feature("memory nodes", reclaim.probe_reclaim, ("views",), reclaim.DISABLES),
    Feature("credentials", credentials.probe_cred, ("views", "guard"), credentials.DISABLES),
    Feature("ORC unwind tables", unwind.probe_unwind, ("stack policies",), unwind.DISABLES),
    Feature("pipes", pipe.probe_pipe, ("attacks",), pipe.DISABLES),
)

_ADVICE = (
    (("orc", "ORC"), "build it with CONFIG_UNWINDER_ORC=y"),
    (("root_mem_cgroup", "memory_cgrp_id"), "build it with CONFIG_MEMCG=y"),
    (("security_socket_post_create",), "build it with CONFIG_SECURITY_NETWORK=y"),
    (("vmemmap_base",), "build it with CONFIG_SPARSEMEM_VMEMMAP=y and CONFIG_RANDOMIZE_MEMORY=y"),
    (("allocation profiling",), "build it with CONFIG_MEM_ALLOC_PROFILING=n"),
)
_UNKNOWN = "this kernel keeps it in a way thinbox does not know; a newer thinbox may"
NO_TYPES = "build it with CONFIG_DEBUG_INFO_BTF=y, or give the types of its vmlinux (--kernel KERNEL,types=FILE)"
NO_SYMBOLS = (
    "build it with CONFIG_KALLSYMS=y and CONFIG_KALLSYMS_ALL=y, or give its symbols (--kernel KERNEL,symbols=FILE)"
)


def diagnose(image: "KernelImage", symbols: "SymbolTable | None" = None, types: TypeTable | None = None) -> Diagnosis:
    """Look at an unpacked kernel; `symbols` and `types` are used in place of its own, if given."""
    findings: list[Finding] = []
    if symbols is None:
        symbols = _try(lambda: parse_symbols(image), findings, Finding("symbols", USES, advice=NO_SYMBOLS))
    else:
        findings.append(Finding("symbols", USES, ("from a file",)))
    if symbols is not None and not has_data_symbols(symbols):
        findings.append(
            Finding("symbols of data", USES, missing=("CONFIG_KALLSYMS_ALL",), disables=_EVERYTHING, advice=NO_SYMBOLS)
        )
    if types is None:
        known = symbols
        own = _try(lambda: parse_types(image, known), findings, Finding("types", USES, ("BTF",), advice=NO_TYPES))
    else:
        own = types
        findings.append(Finding("types", USES, ("from a file",)))
    release = _try_banner(image, symbols, findings)
    if symbols is not None:
        table = symbols
        _try(lambda: read_call_table(image, table), findings, Finding("table of calls", USES, advice=NO_SYMBOLS))
        facts = SimpleNamespace(symbols=symbols, types=own if own is not None else empty_types())
        has_types = own is not None
        findings += [_ask(facts, feature, has_types=has_types) for feature in FEATURES]
    return Diagnosis(release, tuple(findings))


_EVERYTHING = "nothing can be done with it"


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
                _EVERYTHING,
                wanted.advice,
            )
        )
        return None
    findings.append(Finding(wanted.feature, wanted.uses, wanted.shapes))
    return found


def _try_banner(image: "KernelImage", symbols: "SymbolTable | None", findings: list[Finding]) -> str:
    found = _try(lambda: find_banner(image, symbols), findings, Finding("banner", USES, advice="give a Linux kernel"))
    return "" if found is None else str(found[0])


def _ask(facts: SimpleNamespace, feature: Feature, *, has_types: bool) -> Finding:
    probe = Probe(cast("Any", facts), feature.name, feature.disables)
    feature.probe(probe)
    if not probe.missing:
        return Finding(feature.name, feature.uses, tuple(probe.shapes))
    missing = tuple(probe.missing)
    if not has_types:
        # What types would say is not named one by one.
        missing = tuple(name for name in missing if "." not in name and not name.startswith("struct ")) or ("types",)
    return Finding(feature.name, feature.uses, (), missing, feature.disables, _advise(missing, has_types=has_types))


def _advise(missing: tuple[str, ...], *, has_types: bool) -> str:
    if not has_types:
        return NO_TYPES
    text_of = " ".join(missing)
    return next((advice for words, advice in _ADVICE if any(word in text_of for word in words)), _UNKNOWN)


def has_own_types(image: "KernelImage", symbols: "SymbolTable | None") -> bool:
    """Tell whether the kernel carries BTF."""
    return locate_btf(image, symbols)[1] > 0
