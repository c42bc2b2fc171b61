"""`make rounds`, or `PYTHONPATH=tests python -m benchmarks.rounds [NAME…]`: what plans change for the tests' images.

Prints the table of docs/plan.md. Every image is run un-isolated, isolated, and under the plan made of the latter.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.support.rounds import Round
from tests.support.service_images import IMAGES
from thinbox.boot.ready import prepare
from thinbox.cli.progress import ProgressLine
from thinbox.sandbox.plan import Disposition

HEADER = (
    "| image | calls | un-isolated: before | after | reaching the kernel: before | after | emulated "
    "| different calls: isolated | emulated | start-up only |"
)


def main() -> None:
    """Print the table of the images named, or of all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rounds", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(IMAGES)} (default: all)")
    names = parser.parse_args().names or list(IMAGES)
    unknown = [name for name in names if name not in IMAGES]
    if unknown:
        parser.error(f"there is no image {unknown[0]!r}; there are {', '.join(IMAGES)}")
    progress = ProgressLine(quiet=False)
    guest = prepare(progress=progress.say)
    lines = [HEADER, "|---|" + "---:|" * (HEADER.count("|") - 2)]
    with tempfile.TemporaryDirectory(prefix="thinbox-rounds-") as scratch:
        for name in names:
            progress.say(f"{name}: un-isolated, isolated, under its plan")
            folder = Path(scratch) / name
            folder.mkdir()
            lines.append(_row(Round(guest, IMAGES[name], folder)))
    progress.clear()
    sys.stdout.write("\n".join(lines) + "\n")


def _row(found: Round) -> str:
    """Return one line of the table; raises SystemExit if the plan does not hold: there is nothing to compare then."""
    plain, planned = found.plain, found.planned
    if planned.record["refusals"] or planned.record["kills"] or planned.exit_code != plain.exit_code:
        raise SystemExit(f"{found.image.name} did not run under its plan as before: {planned.stderr.decode()}")
    emulated = sum(rule.answer.disposition is Disposition.EMULATE for rule in found.allowed)
    figures = (
        len(plain.record["calls"]),
        plain.unisolated,
        planned.unisolated,
        plain.reaching,
        planned.reaching,
        planned.emulated,
        len(found.allowed) - emulated,
        emulated,
        len(found.start_only),
    )
    return f"| {found.image.name} | " + " | ".join(f"{figure:,}" for figure in figures) + " |"


if __name__ == "__main__":
    main()
