"""The call that a sandbox answers with random bytes from the plan's seed."""

import errno

from thinbox.sandbox.call_error import CallError
from thinbox.sandbox.emulated_call import EmulatedCall, Handler

_NONBLOCK, _RANDOM, _INSECURE = 1, 2, 4
"""GRND_* (include/uapi/linux/random.h)."""
LONGEST_BYTES = 1 << 20
"""Bytes one call gives; a longer one gets a short count, as an interrupted one of the kernel's."""


def getrandom(call: EmulatedCall) -> int:
    """`ssize_t getrandom(void *, size_t, unsigned flags)`."""
    flags, size = call.args[2] & 0xFFFFFFFF, min(call.args[1], LONGEST_BYTES)
    both = _RANDOM | _INSECURE
    if flags & ~(_NONBLOCK | both) or flags & both == both:
        raise CallError(errno.EINVAL)
    stream = call.services.random
    call.write(call.args[0], stream.peek(size))
    stream.skip(size)
    return size


RANDOMNESS: dict[str, Handler] = {"getrandom": getrandom}
"""By name of the call."""
