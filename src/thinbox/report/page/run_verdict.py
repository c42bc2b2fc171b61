"""How a run ended, in plain words.

Rules of this file: what thinbox did comes first, what the program did second; whatever makes the record incomplete is
in the headline, not below it.
"""

import signal

from thinbox.report.page.blocks import Headline, count
from thinbox.report.page.run_file import RunFile
from thinbox.report.page.visible import shorten

_LONGEST_SENTENCE = 600
_NAMED = 3


def headline_of(run: RunFile) -> Headline:
    """Return the verdict of a run."""
    ended = f"exit {exit_text(run.exit_code)}"
    kills = run.violations
    if kills:
        sentence = shorten(kills[0].sentence(), _LONGEST_SENTENCE)
        others = len(kills) + run.kills_left_out - 1
        more = f" ({count(others, 'more kill')} below)" if others else ""
        return Headline("bad", f"{sentence}{more}; {ended}{_limits(run)}.")
    if run.not_started:
        return Headline("warn", f"Never began: {shorten(run.not_started, _LONGEST_SENTENCE)}; {ended}{_limits(run)}.")
    if run.refusals:
        first = shorten(run.refusals[0].sentence(), _LONGEST_SENTENCE)
        more = f" ({count(run.totals.refused - 1, 'more refusal')})" if run.totals.refused > 1 else ""
        return Headline("warn", f"{first}{more}; {ended}{_limits(run)}.")
    if _limits(run):
        return Headline("warn", f"Incomplete: no call was killed; {ended}{_limits(run)}.")
    if not run.totals.isolated:
        return Headline("plain", f"Ran un-isolated, so nothing was judged; {ended}.")
    plain = run.totals.calls - run.totals.isolated
    some = f", {count(plain, 'call')} not isolated" if plain else ""
    return Headline("good", f"Ran to its end, no call killed{some}; {ended}{_outside(run)}.")


def _outside(run: RunFile) -> str:
    """Name what ran outside calls, so that nobody takes isolated calls for all there was."""
    unjudged = {name: times for name, times in run.outside.items() if times and not name.endswith(", judged")}
    if not unjudged:
        return ""
    found = sorted(unjudged.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{times:,} {shorten(name, 60)}" for name, times in found[:_NAMED])
    more = f" and {count(len(found) - _NAMED, 'other kind')}" if len(found) > _NAMED else ""
    return f"; outside its calls the kernel worked for it unjudged: {named}{more}"


def short_verdict(run: RunFile) -> tuple[str, Headline]:
    """Return the verdict in a word or two, for a row among others, and the whole."""
    whole = headline_of(run)
    if run.stuck:
        return "given up", whole
    if run.violations:
        return f"killed {len(run.violations) + run.kills_left_out:,}", whole
    if run.not_started:
        return "never began", whole
    if run.refusals:
        return f"refused {run.totals.refused:,}", whole
    return {"warn": "incomplete", "plain": "not judged"}.get(whole.tone, "no kill"), whole


def _limits(run: RunFile) -> str:
    found = [
        f"the record leaves out {count(left_out, what)}"
        for left_out, what in (
            (run.calls_left_out, "call"),
            (run.kills_left_out, "kill"),
            (run.faults_left_out, "fault"),
            (run.event_rows_left_out, "event row"),
        )
        if left_out
    ]
    if run.stuck:
        found.append(
            "a lock that the killed task held is waited for, so the guest was given up and the record ends there"
        )
    if any(kill.undone for kill in run.violations):
        found.append("what a killed call had done was rolled back")
    if run.stopped:
        found.append("the run was ended at the violation (--on-violation stop)")
    if run.refusals_truncated:
        found.append("not every kind of refusal is listed")
    if run.coverage and run.coverage.lost_blocks:
        found.append(f"coverage lost {count(run.coverage.lost_blocks, 'block')}: its figures are lower bounds")
    if run.events and run.events.references and run.events.references.lost:
        found.append(f"the trace of pages is cut, {count(run.events.references.lost, 'word')} found no room")
    return "".join(f"; {text}" for text in found)


def exit_text(code: int) -> str:
    """Return an exit status, with the signal it may stand for."""
    if code > 128:
        try:
            return f"status {code} (128 + {signal.Signals(code - 128).name})"
        except ValueError:
            pass
    return f"status {code}"
