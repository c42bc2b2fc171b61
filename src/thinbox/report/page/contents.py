"""All documents as one page's contents: what is compared first, then each record in the order given."""

from collections.abc import Sequence
from dataclasses import dataclass

from thinbox.report.page.attack_file import AttackFile
from thinbox.report.page.attack_section import attack_section
from thinbox.report.page.audit_file import AuditFile
from thinbox.report.page.audit_section import audit_section, audits_part
from thinbox.report.page.blocks import Headline, Part, Section, count
from thinbox.report.page.compare_file import CallCostsFile, CompareFile
from thinbox.report.page.compare_section import call_costs_section, compare_section
from thinbox.report.page.cost_file import CostFile
from thinbox.report.page.cost_section import cost_section, run_cost_blocks
from thinbox.report.page.coverage_file import CoverageFile
from thinbox.report.page.coverage_section import coverage_section
from thinbox.report.page.document import Document
from thinbox.report.page.plan_section import plan_section
from thinbox.report.page.run_comparison import Named, overview, same_workloads
from thinbox.report.page.run_file import RunFile, TenantsFile
from thinbox.report.page.run_section import run_section


@dataclass(frozen=True, slots=True)
class Contents:
    """A page: its title, what is beside one another, and the sections."""

    title: str
    comparisons: tuple[Part, ...]
    sections: tuple[Section, ...]


def contents_of(documents: Sequence[Document], title: str) -> Contents:
    """Return the contents of a page that shows `documents`, in that order."""
    runs = [named for document in documents for named in _runs_of(document)]
    audits = [(document.name, document.body) for document in documents if isinstance(document.body, AuditFile)]
    several = len(runs) > 1 and len(documents) > 1
    comparisons = [Part("Runs", (overview(runs, "Runs on this page"),))] if several else []
    comparisons += same_workloads(runs)
    if len(audits) > 1:
        comparisons.append(audits_part(audits))
    sections = [section for document in documents for section in _sections_of(document, runs)]
    return Contents(title, tuple(comparisons), tuple(sections))


def _runs_of(document: Document) -> list[Named]:
    body = document.body
    if isinstance(body, RunFile):
        return [(document.name, body)]
    if isinstance(body, TenantsFile):
        return [(f"{document.name}: {name}", run) for name, run in body.tenants.items()]
    return []


def _sections_of(document: Document, runs: Sequence[Named]) -> list[Section]:
    body, name = document.body, document.name
    if isinstance(body, RunFile):
        return [run_section(body, name, run_cost_blocks(body, document.raw))]
    if isinstance(body, TenantsFile):
        return _tenants(body, document)
    if isinstance(body, AuditFile):
        return [audit_section(body, name)]
    if isinstance(body, AttackFile):
        return [attack_section(body, name)]
    if isinstance(body, CompareFile):
        return [compare_section(body, name)]
    if isinstance(body, CallCostsFile):
        return [call_costs_section(body, name)]
    if isinstance(body, CoverageFile):
        return [coverage_section(body, name, tuple(of for of, run in runs if run.coverage == body.totals))]
    if isinstance(body, CostFile):
        return [cost_section(body, name)]
    return [plan_section(body, name)]


def _tenants(body: TenantsFile, document: Document) -> list[Section]:
    killed = [name for name, run in body.tenants.items() if run.violations]
    text = f"{count(len(body.tenants), 'tenant')} on one guest, Linux {body.kernel.release}; "
    text += f"calls were killed in {', '.join(killed)}" if killed else "no call was killed"
    headline = Headline("bad" if killed else "good", f"{text}; exit status {body.exit_code}.")
    table = (overview(_runs_of(document), "Its tenants"),) if body.tenants else ()
    sections = [Section("Tenants", document.name, "several at once on one guest", headline, table)]
    for name, run in body.tenants.items():
        cost = run_cost_blocks(run, document.raw["tenants"][name])
        sections.append(run_section(run, document.name, cost, name))
    return sections
