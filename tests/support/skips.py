"""Says once, at the end of a run, what to install so that nothing is skipped; a pytest plugin."""

import re
from collections import Counter

_PACKAGE = r"[a-z0-9][a-z0-9.+-]*[a-z0-9+]"
_INSTALL = re.compile(rf"apt install ({_PACKAGE}(?: {_PACKAGE})*)")


def advice(reasons):
    """Return lines for the reasons of skipped tests, one for each: the packages they ask for, then what none helps."""
    packages, helped, others = set(), 0, Counter()
    for reason in reasons:
        asked = _INSTALL.search(reason)
        if asked is None:
            others[" ".join(reason.split())] += 1
        else:
            helped += 1
            packages.update(asked[1].split())
    lines = [f"{helped} skipped: apt install {' '.join(sorted(packages))}"] if helped else []
    return lines + [f"{count} skipped: {reason}" for reason, count in others.most_common()]


def pytest_terminal_summary(terminalreporter):
    reports = terminalreporter.stats.get("skipped", [])
    # A report says where, and "Skipped: " before the reason.
    reasons = [report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr) for report in reports]
    lines = advice([reason.removeprefix("Skipped: ") for reason in reasons])
    if lines:
        terminalreporter.section("skipped, and what to do to have none")
    for line in lines:
        terminalreporter.line(line)
