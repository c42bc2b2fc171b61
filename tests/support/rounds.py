"""A round: an image run un-isolated, run isolated, a plan made of that, and the image run again under the plan.

Why it exists: the issue's promise is about the whole way, for every image. Each step is taken once, when it is first
asked for, so that tests share them. `Round` takes the steps by the Python API, `CommandRound` by the commands a user
types.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.support.service_images import ServiceImage
from thinbox.boot.ready import ReadyGuest
from thinbox.container.image import load_image
from thinbox.planning.evidence import gather_evidence
from thinbox.planning.make_plan import PlanOptions, make_plan
from thinbox.sandbox.plan import Disposition, Phase, Plan, Rule
from thinbox.sandbox.plan_file import load_plan, parse_plan
from thinbox.sandbox.plan_text import render_plan
from thinbox.session.session import RunOptions, run

SOURCE = Path(__file__).resolve().parents[2] / "src"
COMMAND_LIMIT_S = 600
_TIMES = re.compile(rb"\d\d[ /][A-Z][a-z]{2}[ /]\d{4}[ :]\d\d:\d\d:\d\d(\.\d{3})?")
"""As redis, nginx and http.server write a moment into their logs."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One run: what it said, and its record, the object of `thinbox.run/1`."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    record: Mapping[str, Any]

    @property
    def reaching(self) -> int:
        """Calls of which the shared kernel ran anything."""
        return int(self.record["totals"]["reaching_kernel"])

    @property
    def unisolated(self) -> int:
        """Calls the shared kernel ran un-isolated."""
        return int(self.record["totals"]["reaching_unisolated"])

    @property
    def emulated(self) -> int:
        """Calls that were answered outside the kernel."""
        return sum(call["disposition"] == "emulate" for call in self.record["calls"])

    @property
    def output(self) -> tuple[bytes, bytes]:
        """Both streams, but for the moments a service writes into its log."""
        return _TIMES.sub(b"(a moment)", self.stdout), _TIMES.sub(b"(a moment)", self.stderr)


class Round:
    """The steps of one image; its files lie in `folder`."""

    def __init__(self, guest: ReadyGuest, image: ServiceImage, folder: Path) -> None:
        self.guest, self.image, self.folder = guest, image, folder

    @cached_property
    def path(self) -> Path:
        """The image's archive or layout."""
        return self.image.write(self.folder)

    @cached_property
    def plain(self) -> Ran:
        """The image, no call isolated."""
        return self._run("plain", isolate="none")

    @cached_property
    def isolated(self) -> Ran:
        """The image, every call isolated: the recorded run."""
        return self._run("isolated")

    @cached_property
    def plan(self) -> Plan:
        """The plan made of the recorded run, as it comes back from its text."""
        evidence = gather_evidence([self.isolated.record], marker=self.image.marker)
        made = make_plan(evidence, PlanOptions(self.image.name, marker=self.image.marker))
        return parse_plan(render_plan(made), self.image.name, None)

    @cached_property
    def planned(self) -> Ran:
        """The image under that plan."""
        return self._run("planned", plan=self.plan)

    @property
    def start_only(self) -> tuple[Rule, ...]:
        """The plan's rules that end with start-up."""
        return tuple(rule for rule in self.plan.every_rule if rule.phase is Phase.START)

    @property
    def allowed(self) -> tuple[Rule, ...]:
        """The plan's rules that refuse nothing."""
        refusing = (Disposition.DENY, Disposition.KILL)
        return tuple(rule for rule in self.plan.every_rule if rule.answer.disposition not in refusing)

    def _run(self, step: str, isolate: str = "all", plan: Plan | None = None) -> Ran:
        image = load_image(str(self.path))
        launch = image.launch(self.image.arguments)
        options = RunOptions(
            image=image,
            policy=self.image.policy,
            isolate=isolate,
            plan=plan,
            environment=launch.environment,
            user=launch.user,
            workdir=launch.workdir,
        )
        result = run(self.guest, launch.command, options)
        # As a reader of the file would have it.
        record = json.loads(json.dumps(result.record.to_json()))
        return Ran(result.exit_code, result.stdout, result.stderr, record)


class CommandRound(Round):
    """The same by `thinbox run` and `thinbox plan`, whose files are the steps' names in `folder`."""

    verified: subprocess.CompletedProcess[bytes]
    """`thinbox plan --verify`, once the plan is made."""

    @cached_property
    def plan(self) -> Plan:
        record, plan_file = self.folder / "isolated.json", self.folder / f"{self.image.name}.toml"
        assert self.isolated.exit_code == 0, self.isolated.stderr
        words = [w for name in self.image.marker for w in ("--phase-marker", name)]
        self.verified = thinbox("plan", record, "-o", plan_file, *words, "--verify", "--image", self.path)
        return load_plan(str(plan_file))

    def run_command(self, step: str, *words: object) -> Ran:
        """Run the image with more options, the record in a file called after `step`."""
        record = self.folder / f"{step}.json"
        options = ("--image", self.path, "--policy", self.image.policy, "--json", record, *words)
        done = thinbox("run", *options, "--", *self.image.arguments)
        assert record.exists(), done.stderr
        return Ran(done.returncode, done.stdout, done.stderr, json.loads(record.read_text()))

    def _run(self, step: str, isolate: str = "all", plan: Plan | None = None) -> Ran:
        words = ("--plan", self.folder / f"{plan.name}.toml") if plan is not None else ("--isolate", isolate)
        return self.run_command(step, *words)


def thinbox(command: str, *words: object) -> subprocess.CompletedProcess[bytes]:
    """Run a command of thinbox, in a process of its own, quietly."""
    return subprocess.run(
        [sys.executable, "-m", "thinbox", command, "-q", *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=COMMAND_LIMIT_S,
        check=False,
    )
