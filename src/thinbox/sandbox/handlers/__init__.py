"""The emulations that thinbox brings, by the name of the call."""

from collections.abc import Mapping
from types import MappingProxyType

from thinbox.sandbox.emulated_call import Handler
from thinbox.sandbox.handlers.clocks import CLOCKS
from thinbox.sandbox.handlers.files import FILES
from thinbox.sandbox.handlers.identity import IDENTITY
from thinbox.sandbox.handlers.randomness import RANDOMNESS
from thinbox.sandbox.handlers.system import SYSTEM

HANDLERS: Mapping[str, Handler] = MappingProxyType({**IDENTITY, **CLOCKS, **RANDOMNESS, **SYSTEM, **FILES})
SELF_CONTAINED = frozenset({*IDENTITY, *CLOCKS, *RANDOMNESS, *SYSTEM}) - {
    "getpgid",
    "getsid",
    "prlimit64",
    "sched_getaffinity",
}
"""Those that answer every form of their call by themselves; the others need an `otherwise` for some."""
