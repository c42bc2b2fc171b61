"""Policy `profile`: only code that each call was seen to need in a recorded corpus (`thinbox.profile/1`).

Any data. A profile holds, for each call's name, the 4 KiB pages of text it fetched from (by pages), or the
functions it faulted in (by functions). The corpus's hash is part of the policy's name and of each refusal.

Cannot see: anything done with the pages learned; a transfer into their middle (join it: `profile:F+transfer`).
Kills what the corpus did not exercise: an error path seen for the first time is a false kill.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from thinbox.address import PAGE_SHIFT
from thinbox.errors import InputError
from thinbox.foreign_text import parse_json
from thinbox.isolation.policies.sci import DATA, NO_SYMBOL
from thinbox.isolation.policy import CallView
from thinbox.isolation.verdict import Access, AccessKind, Verdict

SCHEMA = "thinbox.profile/1"
PAGES, FUNCTIONS = "pages", "functions"
_SHOWN_DIGITS = 12

Learned = Iterable[tuple[str, int, str]]
"""(call's name, bytes from the start of the text, function): one code fault of the corpus each."""


def build_profile(
    learned: Learned,
    kernel_sha256: str,
    *,
    by: str = PAGES,
    known: dict[str, Any] | None = None,
    text_start: int = 0,
) -> bytes:
    """Return the profile of a corpus as JSON text, the same for the same corpus in any order.

    `known` is for others than this policy: the pages most calls of a name touch, data too (`--prefault`), with
    the kernel's text at `text_start`, for addresses of data hold there only.
    """
    if by not in (PAGES, FUNCTIONS):
        raise InputError(f"a profile is learned by pages or by functions, not by {by!r}")
    calls: dict[str, set[Any]] = {}
    for call, offset, function in learned:
        calls.setdefault(call, set()).add(offset >> PAGE_SHIFT if by == PAGES else function)
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "kernel": {"sha256": kernel_sha256},
        "by": by,
        "calls": {name: sorted(calls[name]) for name in sorted(calls)},
    }
    if known is not None:
        content["known"] = known
        content["kernel"]["text_start"] = f"{text_start:#x}"
    return json.dumps(content, indent=1).encode() + b"\n"


class Profile:
    """Any data; code on the pages, or in the functions, learned for the call's name."""

    grants_all_data = True
    judges_ends = False
    """What it learned are calls; the ends of tasks by signals are judged by `live`."""

    def __init__(self, calls: dict[str, frozenset[Any]], by: str, kernel_sha256: str, corpus_sha256: str) -> None:
        self._calls, self._by = calls, by
        self.kernel_sha256, self.corpus_sha256 = kernel_sha256, corpus_sha256
        short = corpus_sha256[:_SHOWN_DIGITS]
        self.name = f"profile:{short}"
        self._granted = Verdict(
            granted=True,
            rule="P",
            reason=f"learned for this call from corpus {short}",
            cacheable=True,
            per_syscall=True,
        )
        self._refused = Verdict(granted=False, rule="P", reason=f"not learned for this call from corpus {short}")
        self._unknown = Verdict(granted=False, rule="P", reason=f"this call is not in corpus {short}")

    @classmethod
    def from_json(cls, data: bytes) -> "Profile":
        """Load what `build_profile` returned.

        Raises:
            InputError: it is no profile, or of another version.
        """
        content = parse_json(data, "the profile")
        try:
            schema, by = content["schema"], content["by"]
            if schema != SCHEMA or by not in (PAGES, FUNCTIONS):
                raise InputError(f"the profile has schema {schema!r} by {by!r}; this thinbox reads {SCHEMA}")
            kind = int if by == PAGES else str
            calls = {str(name): frozenset(map(kind, values)) for name, values in content["calls"].items()}
            kernel = str(content["kernel"]["sha256"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"this is no profile ({error!r}); make one with thinbox.records.profile") from error
        return cls(calls, by, kernel, hashlib.sha256(data).hexdigest())

    def check_access(self, access: Access, call: CallView) -> Verdict:
        """Judge one access."""
        if access.kind is not AccessKind.FETCH:
            return DATA
        if access.symbol is None or access.generated:
            return NO_SYMBOL
        learned = self._calls.get(call.name)
        if learned is None:
            return self._unknown
        key = (access.vaddr - call.text_start) >> PAGE_SHIFT if self._by == PAGES else access.symbol
        return self._granted if key in learned else self._refused
